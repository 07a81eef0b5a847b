"""The packed row: every token where it belongs, worked by hand and by a slow reading of the row."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.families import branch_lists, completions
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.packing import PackedBatch, Piece, count_packed_tokens, pack_branches, pack_riders


def test_a_row_worked_by_hand() -> None:
    # 0 1 2 | 3 4 | 5   then   6 | 7 8
    # 1 2 3 | 4 5 | 6          7 | 8 9
    batch = pack_branches([Branch([1, 2, 3], [4, 5]), Branch([7], [8, 9]), Branch([1, 2, 3], [6])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert batch.pieces == (Piece(0, 3), Piece(3, 5, (0, 3)), Piece(5, 6, (0, 3)), Piece(6, 9))
    assert batch.states.tolist() == [2, 3, 6, 7, 2]
    assert batch.targets.tolist() == [4, 5, 8, 9, 6]
    assert batch.owners.tolist() == [0, 0, 1, 1, 2]
    assert batch.prompts == ((0, 3), (6, 7))
    assert (batch.n_branches, batch.n_tokens, batch.keeps) == (3, 9, None)


def test_riders_worked_by_hand() -> None:
    carried = [Branch([1, 2, 3], [4, 5]), Branch([7], [8, 9])]
    carrier = pack_branches(carried, keep_prompts=True)
    riders = pack_riders(
        [Branch([7], [5, 6, 4]), Branch([1, 2, 3], [9]), Branch([7], [4, 8])], carrier, carried
    )
    # last tokens predict nothing that is scored, so they are not fed
    assert riders.input_ids.tolist() == [[5, 6, 4]]
    assert riders.position_ids.tolist() == [[1, 2, 1]]
    assert riders.pieces == (Piece(0, 2, (5, 6)), Piece(2, 3, (5, 6)))
    # of two kept states −2 is behind the first prompt and −1 behind the second
    assert riders.states.tolist() == [-1, 0, 1, -2, -1, 2]
    assert riders.targets.tolist() == [5, 6, 4, 9, 4, 8]
    assert riders.owners.tolist() == [0, 0, 0, 1, 2, 2]
    assert riders.rides_on is carrier.keeps


def test_riders_of_one_token_feed_one_token_in_vain() -> None:
    carried = [Branch([1, 2, 3], [4, 5])]
    riders = pack_riders([Branch([1, 2, 3], [9])], pack_branches(carried, keep_prompts=True), carried)
    assert riders.n_tokens == 1  # a row without tokens no model takes
    assert riders.states.tolist() == [-1]
    assert riders.targets.tolist() == [9]


def seen_by(batch: PackedBatch, place: int) -> list[int]:
    """Places of the row that a token sees, from the pieces alone."""
    (piece,) = [piece for piece in batch.pieces if piece.start <= place < piece.stop]
    return [*(range(*piece.prompt) if piece.prompt else ()), *range(piece.start, place + 1)]


@given(branches=branch_lists())
@settings(deadline=None)
def test_each_scored_token_is_predicted_from_exactly_what_stands_before_it(branches: list[Branch]) -> None:
    batch = pack_branches(branches)
    ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    scored: list[list[tuple[list[int], int]]] = [[] for _ in branches]
    for state, target, owner in zip(
        batch.states.tolist(), batch.targets.tolist(), batch.owners.tolist(), strict=True
    ):
        seen = seen_by(batch, state)
        assert [positions[place] for place in seen] == list(range(len(seen)))
        scored[owner].append(([ids[place] for place in seen], target))
    for found, (prompt_ids, completion_ids) in zip(scored, branches, strict=True):
        whole = [*prompt_ids, *completion_ids]
        assert found == [(whole[:n], whole[n]) for n in range(len(prompt_ids), len(whole))]


@given(branches=branch_lists())
@settings(deadline=None)
def test_a_row_holds_every_prompt_once_and_every_completion(branches: list[Branch]) -> None:
    batch = pack_branches(branches)
    distinct = {tuple(branch.prompt_ids) for branch in branches}
    n_tokens = sum(map(len, distinct)) + sum(len(branch.completion_ids) for branch in branches)
    assert batch.n_tokens == n_tokens == count_packed_tokens(branches)
    held = [tuple(batch.input_ids[0, start:stop].tolist()) for start, stop in batch.prompts]
    assert sorted(held) == sorted(distinct)
    covered = [place for piece in batch.pieces for place in range(piece.start, piece.stop)]
    assert covered == list(range(n_tokens))


@given(branches=branch_lists(), ids=st.lists(completions, min_size=1, max_size=4))
@settings(deadline=None)
def test_riders_see_their_own_prompt_in_the_carrier_s_row(
    branches: list[Branch], ids: list[list[int]]
) -> None:
    carrier = pack_branches(branches, keep_prompts=True)
    others = [Branch(branches[n % len(branches)].prompt_ids, completion) for n, completion in enumerate(ids)]
    riders = pack_riders(others, carrier, branches)
    fed = [branch for branch in others if len(branch.completion_ids) > 1]
    for piece, branch in zip(riders.pieces, fed, strict=False):
        assert piece.prompt is not None
        assert carrier.input_ids[0, slice(*piece.prompt)].tolist() == branch.prompt_ids
        assert riders.input_ids[0, piece.start : piece.stop].tolist() == branch.completion_ids[:-1]
        assert int(riders.position_ids[0, piece.start]) == len(branch.prompt_ids)
    assert len(riders.pieces) == max(len(fed), 1)


def test_moving_a_batch_keeps_its_store() -> None:
    batch = pack_branches([Branch([1], [2])], keep_prompts=True)
    moved = batch.to("meta")
    assert moved.keeps is batch.keeps
    assert moved.input_ids.device == torch.device("meta")
    assert (moved.pieces, moved.prompts, moved.n_branches) == (batch.pieces, batch.prompts, 1)
