"""The load-balancing loss of a mixture of experts; `test_against_trl` holds its number against TRL's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.paths import PackedPath, PaddedPath
from thumbtune.errors import ConfigError
from thumbtune.training.router_loss import RouterLoss, weigh_tokens


def test_a_token_counts_as_often_as_rows_of_their_own_would_hold_it() -> None:
    branches = [Branch([1, 2], [3]), Branch([9], [8, 7]), Branch([1, 2], [4, 5])]
    packed = weigh_tokens(PackedPath("because"), branches)
    assert packed.tolist() == [[2, 2, 1, 1, 1, 1, 1, 1]], "x x y y'y' | x y y"
    padded = weigh_tokens(PaddedPath(0, "because"), branches)
    assert padded.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert packed.sum() == padded.sum() == sum(len(p) + len(c) for p, c in branches)


def test_the_loss_is_that_of_two_means_worked_out_by_hand() -> None:
    """Two experts, one to a token; tokens A, A, B in weights 2 (A shared) and 1, routed to experts 0 and 1."""

    class Config:
        num_experts, num_experts_per_tok, output_router_logits = 2, 1, False

    class Causal:
        pass

    loss = RouterLoss(Causal(), Config(), 0.5)
    to_first, to_second = [0.8, 0.2], [0.4, 0.6]
    loss._logits = (torch.tensor([to_first, to_second]).log(),)
    branches = [Branch([1], []), Branch([1], [2])]  # the prompt's token counts twice
    # share of tokens: 2/3 and 1/3; mean probability: (2 × 0.8 + 0.4) / 3 and (2 × 0.2 + 0.6) / 3; times two experts
    expected = 2 * (2 / 3 * 2.0 / 3 + 1 / 3 * 1.0 / 3)
    assert float(loss.take(PackedPath("because"), branches)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("engine", ["packed", "padded"])
def test_a_model_without_experts_refuses_a_weight_for_them(lab: Any, engine: str) -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM is no mixture of experts .* Leave it out"):
        lab.trainer(engine=engine, router_aux_loss_coef=0.01)
    assert lab.trainer(engine=engine, router_aux_loss_coef=0.0).router_loss is None
    with pytest.raises(ConfigError, match="router_aux_loss_coef=-1: 0 or more"):
        lab.config(router_aux_loss_coef=-1)
