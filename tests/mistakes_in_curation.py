"""Deliberate mistakes in the curation of votes and in snapshots; `test_deliberate_mistakes.py` makes them."""

from __future__ import annotations

from mistakes import Mistake

CURATE = "loop/test_curate.py"
SNAPSHOT = "loop/test_snapshot.py"

CURATION_MISTAKES = [
    Mistake(
        "a superseded press counts",
        "loop/curate.py",
        "ranked.vote_id != ranked.newest_id",
        "ranked.vote_id < 0",
        (f"{CURATE}::test_the_newest_press_of_a_kind_counts_and_may_take_back",),
    ),
    Mistake(
        "the oldest votes of one are kept",
        "loop/curate.py",
        "newest_first = [votes.created_us.desc(), votes.completion_id, votes.kind]",
        "newest_first = [votes.created_us, votes.completion_id, votes.kind]",
        (f"{CURATE}::test_of_each_voter_the_newest_votes_are_kept",),
    ),
    Mistake(
        "votes are counted for voters",
        "loop/curate.py",
        'opinions = votes.select(*pair, "label", "user_key").distinct()',
        'opinions = votes.select(*pair, "label", "user_key")',
        (f"{CURATE}::test_one_voter_is_one_voice_however_often_the_same_answer_was_served",),
    ),
    Mistake(
        "as many votes as are allowed are a burst",
        "loop/curate.py",
        "counted.n_in_window > rules.burst_votes",
        "counted.n_in_window >= rules.burst_votes",
        (f"{CURATE}::test_more_votes_than_allowed_in_one_minute_of_the_clock_are_all_out",),
    ),
    Mistake(
        "a voter who is held out is trained on",
        "loop/curate.py",
        "held_out = _is_held_out(votes.asked_by, rules) | _is_held_out(votes.user_key, rules)",
        "held_out = _is_held_out(votes.asked_by, rules)",
        (f"{CURATE}::test_a_row_is_held_out_if_the_one_who_asked_or_the_one_who_voted_is",),
    ),
    Mistake(
        "a prompt of the hold-out is trained on",
        "loop/curate.py",
        '(~beside.held_out & beside.held_prompt.notnull(), "prompt is in the hold-out")',
        '(beside.held_out & ~beside.held_out, "prompt is in the hold-out")',
        (f"{CURATE}::test_training_shares_no_prompt_and_no_conversation_with_the_hold_out",),
    ),
    Mistake(
        "two spellings of one letter are two texts",
        "loop/staging.py",
        'unicodedata.normalize("NFC", canonical)',
        "canonical",
        (f"{SNAPSHOT}::test_texts_that_look_the_same_are_the_same",),
    ),
    Mistake(
        "rows stand in the order of their votes",
        "loop/snapshot.py",
        'beside.order_by("prompt_digest", "completion_digest", "correction_digest", "label")',
        'beside.order_by("vote_id")',
        (f"{SNAPSHOT}::test_the_digest_hangs_on_what_was_voted_not_on_the_order_or_the_database",),
    ),
    Mistake(
        "the hold-out has no part in near duplicates",
        "loop/snapshot.py",
        "for row in read_columns(held_out, columns):",
        "for row in []:",
        (f"{SNAPSHOT}::test_training_holds_nothing_nearly_the_same_as_the_hold_out_whatever_its_label",),
    ),
]
