"""The reference pass: computed once, found again only where nothing that matters has changed, never half-written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.families import assert_same
from thumbtune.engine import reference
from thumbtune.engine.logprobs import Branch, score_branches
from thumbtune.engine.paths import PaddedPath, choose_path
from thumbtune.engine.reference import fingerprint_weights, reference_log_probs

PADDED = PaddedPath(0, "asked for")
BRANCHES = [Branch([1, 2, 3], [4, 5]), Branch([1, 2, 3], [6]), Branch([7], [8, 9])]


@pytest.fixture(scope="module")
def loaded(tiny_model_path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_path)


@pytest.fixture
def model(loaded: Any) -> Any:
    return copy.deepcopy(loaded)


def score(model: Any, cache: Path | None, branches: list[Branch] = BRANCHES, **changed: Any) -> Tensor:
    return reference_log_probs(model, branches, cache=cache, **{"path": PADDED, **changed})


def count_forwards(model: Any) -> list[int]:
    """A list that grows by one with each forward of the model."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def cached_file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def lora_on(model: Any, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, **settings)
        )
    return adapted


def test_the_scores_are_those_of_score_branches(model: Any, tmp_path: Path) -> None:
    expected = score_branches(model, BRANCHES, pad_token_id=0)
    assert torch.equal(score(model, None), expected)
    assert torch.equal(score(model, tmp_path), expected)


def test_what_is_cached_is_read_back_bit_for_bit_without_a_single_forward(model: Any, tmp_path: Path) -> None:
    calls = count_forwards(model)
    computed = score(model, tmp_path)
    assert len(calls) > 0
    calls.clear()
    assert torch.equal(score(model, tmp_path), computed)
    assert calls == []


def test_a_copy_of_the_model_elsewhere_finds_the_cache(model: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    score(model, tmp_path / "cache")
    model.save_pretrained(tmp_path / "moved")
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    calls = count_forwards(moved)
    score(moved, tmp_path / "cache")
    assert calls == []


def test_no_cache_folder_keeps_nothing_and_computes_each_time(model: Any, tmp_path: Path) -> None:
    calls = count_forwards(model)
    score(model, None)
    first = len(calls)
    score(model, None)
    assert len(calls) == 2 * first
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "branches",
    [
        [*BRANCHES[:2], Branch([7], [8, 10])],  # another token
        [*BRANCHES[:2], Branch([7, 8], [9])],  # the same tokens, cut elsewhere
        BRANCHES[::-1],  # another order
        BRANCHES[:2],  # a row less
        [Branch([1, 2, 3], [4, 5, 6]), *BRANCHES[2:]],  # two rows run together
    ],
)
def test_other_token_ids_are_another_key(model: Any, tmp_path: Path, branches: list[Branch]) -> None:
    score(model, tmp_path)
    assert torch.equal(score(model, tmp_path, branches), score_branches(model, branches, pad_token_id=0))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_smallest_change_of_one_weight_is_another_key(model: Any, tmp_path: Path) -> None:
    score(model, tmp_path)
    with torch.no_grad():
        weight = model.model.norm.weight
        weight[0] = torch.nextafter(weight[0], weight[0] + 1)
    calls = count_forwards(model)
    score(model, tmp_path)
    assert len(calls) > 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cut", [4096, 9])
def test_the_packed_path_scores_the_same_branches_and_is_another_key(
    model: Any, tmp_path: Path, cut: int
) -> None:
    padded = score(model, tmp_path, max_tokens=cut)
    packed = choose_path(model, "packed", pad_token_id=0)
    found = score(model, tmp_path, path=packed, max_tokens=cut)
    assert_same(found, padded)
    assert torch.equal(found, packed.score(model, BRANCHES, max_tokens=cut))
    assert len(list(tmp_path.iterdir())) == 2
    calls = count_forwards(model)
    assert torch.equal(score(model, tmp_path, path=packed, max_tokens=cut), found)
    assert calls == []


@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"max_tokens": 16}, {"fingerprint": "another"}])
def test_another_precision_chunk_size_or_fingerprint_is_another_key(
    model: Any, tmp_path: Path, changed: dict[str, Any]
) -> None:
    score(model, tmp_path)
    calls = count_forwards(model)
    score(model, tmp_path, **changed)
    assert len(calls) > 0


@pytest.mark.parametrize("given_fingerprint", [None, "of these weights"])
def test_equal_weights_that_are_used_in_another_way_are_another_key(
    model: Any, tmp_path: Path, given_fingerprint: str | None
) -> None:
    # the base of the rotations is a setting, not a weight
    from transformers import LlamaForCausalLM

    config = copy.deepcopy(model.config)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 100.0}
    other = LlamaForCausalLM(config)
    other.load_state_dict(model.state_dict())
    assert fingerprint_weights(other) == fingerprint_weights(model)
    ours = score(model, tmp_path, fingerprint=given_fingerprint)
    theirs = score(other, tmp_path, fingerprint=given_fingerprint)
    assert not torch.equal(ours, theirs)
    assert torch.equal(theirs, score_branches(other, BRANCHES, pad_token_id=0))


def test_an_adapter_acting_twice_as_strongly_is_another_key(model: Any, tmp_path: Path) -> None:
    weak = score(lora_on(copy.deepcopy(model), lora_alpha=2), tmp_path)
    strong = score(lora_on(copy.deepcopy(model), lora_alpha=4), tmp_path)
    assert not torch.equal(weak, strong)


def test_an_adapter_switched_off_is_another_key(model: Any, tmp_path: Path) -> None:
    adapted = lora_on(model)
    switched_on = score(adapted, tmp_path)
    with adapted.disable_adapter():
        switched_off = score(adapted, tmp_path)
    assert not torch.equal(switched_on, switched_off)


def test_the_base_under_a_fresh_adapter_is_found_again_under_another_fresh_adapter(
    model: Any, tmp_path: Path
) -> None:
    bases = [lora_on(copy.deepcopy(model), lora_alpha=alpha) for alpha in (2, 4)]
    calls = count_forwards(bases[1].get_base_model())
    for adapted in bases:
        with adapted.disable_adapter():
            score(adapted, tmp_path, fingerprint=fingerprint_weights(adapted, without="lora_"))
    assert calls == []


def test_fingerprints_see_names_shapes_and_precision() -> None:
    def digest(**tensors: Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return fingerprint_weights(module)

    plain = digest(a=torch.zeros(4))
    assert digest(a=torch.zeros(4)) == plain
    assert digest(b=torch.zeros(4)) != plain
    assert digest(a=torch.zeros(2, 2)) != plain
    assert digest(a=torch.zeros(4, dtype=torch.int32)) != plain
    assert digest(a=torch.zeros(4), c=torch.zeros(1)) != plain


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"not a safetensors file",
    ],
    ids=["half", "all but a byte", "empty", "something else"],
)
def test_a_cache_file_that_is_not_whole_is_computed_anew_and_mended(
    model: Any, tmp_path: Path, damage: Any
) -> None:
    computed = score(model, tmp_path)
    file = cached_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(score(model, tmp_path), computed)
    assert cached_file(tmp_path).read_bytes() == whole


def test_a_cache_file_with_another_number_of_scores_is_computed_anew(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    computed = score(model, tmp_path)
    save_file({"log_probs": torch.zeros(len(BRANCHES) + 1)}, cached_file(tmp_path))
    assert torch.equal(score(model, tmp_path), computed)


def test_a_write_that_fails_leaves_nothing_behind(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(reference.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        score(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_dies_while_scoring_leaves_no_cache_file(model: Any, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(model, tmp_path / "cache", on_progress=interrupt)
    assert not (tmp_path / "cache").exists()


def test_the_file_appears_in_one_step(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    replace = reference.os.replace

    def watched(staging: str, path: Path) -> None:
        assert not path.exists()
        seen.append((Path(staging).parent.name, Path(staging).stat().st_size))
        replace(staging, path)

    monkeypatch.setattr(reference.os, "replace", watched)
    score(model, tmp_path)
    assert seen == [(tmp_path.name, cached_file(tmp_path).stat().st_size)]
