"""Deliberate mistakes in the loop; `test_deliberate_mistakes.py` makes them."""

from __future__ import annotations

from mistakes import Mistake

CURATE = "loop/test_curate.py"
SNAPSHOT = "loop/test_snapshot.py"
EVIDENCE = "loop/test_evidence.py"
CANARY = "loop/test_canary.py"
GATE = "loop/test_gate.py"
LOOK = "loop/test_look.py"
CYCLE = "loop/test_cycle.py"

LOOP_MISTAKES = [
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
    Mistake(
        "the level is taken from the block itself",
        "loop/evidence.py",
        "up = np.cumsum(champion_up + canary_up, axis=-1) - (champion_up + canary_up)",
        "up = np.cumsum(champion_up + canary_up, axis=-1)",
        (f"{EVIDENCE}::test_it_equals_the_product_taken_block_by_block",),
    ),
    Mistake(
        "the nearest pair of rates is the plain mean of both arms",
        "loop/evidence.py",
        "pooled = (n * champion + canary) / (n + 1)",
        "pooled = (champion + canary) / 2",
        (f"{EVIDENCE}::test_a_block_is_worth_at_most_one_wherever_the_claim_is_false",),
    ),
    Mistake(
        "the bets weigh more than one together",
        "loop/evidence.py",
        "+ np.log(weight)",
        "",
        (f"{EVIDENCE}::test_the_first_block_by_hand",),
    ),
    Mistake(
        "harm looks at the same thumb",
        "loop/evidence.py",
        "        1 - canary_up,\n",
        "        canary_up,\n",
        (f"{EVIDENCE}::test_harm_is_the_same_claim_about_the_other_thumb",),
    ),
    Mistake(
        "the last test to speak decides",
        "loop/canary.py",
        "if first_harm < first_better:",
        "if first_harm > first_better:",
        (f"{CANARY}::test_the_first_test_to_speak_decides",),
    ),
    Mistake(
        "a canary's vote is matched with one of the champion at any share",
        "loop/canary.py",
        "return max(1, round((1 - share) / share))",
        "return 1",
        (f"{CANARY}::test_a_block_has_the_champions_of_its_share[0.25-3]",),
    ),
    Mistake(
        "errors are no reason",
        "loop/canary.py",
        "if n < ERROR_ANSWERS or",
        "if True or",
        (f"{CANARY}::test_errors_end_a_canary_that_gets_no_votes",),
    ),
    Mistake(
        "one person's every vote counts",
        "loop/look.py",
        "if voted[vote.user_key] > rules.votes_of_one_user:",
        "if False:",
        (f"{LOOK}::test_of_one_person_the_first_vote_counts_as_it_was_pressed[sqlite]",),
    ),
    Mistake(
        "a canary is promoted without its pointer",
        "store/canaries.py",
        'if state == "promoted":',
        "if False:",
        (f"{LOOK}::test_a_better_one_is_promoted_with_its_pointer_in_one_transaction[sqlite]",),
    ),
    Mistake(
        "votes from before the canary count",
        "store/canaries.py",
        "completions.c.created_us >= canary.started_us, *until",
        "completions.c.created_us >= 0, *until",
        (f"{LOOK}::test_what_is_not_of_this_trial_does_not_count[sqlite]",),
    ),
    Mistake(
        "users are drawn anew at each stage",
        "store/canaries.py",
        'f"{self.id}\\0{user_key}"',
        'f"{self.id}{self.share}\\0{user_key}"',
        (f"{LOOK}::test_users_stay_where_they_were_when_the_share_grows[sqlite]",),
    ),
    Mistake(
        "what cannot be told passes",
        "loop/gate.py",
        'else "not enough data" if "not enough data" in outcomes else "pass"',
        'else "pass"',
        (f"{GATE}::test_too_few_cases_are_not_enough_data_and_no_pass",),
    ),
    Mistake(
        "more thumbs excuse flattery",
        "loop/gate.py",
        '"refuse" if shift.low > rules.flattery_nats else "pass"',
        '"pass"',
        (f"{GATE}::test_more_thumbs_are_no_way_around_the_flattery_probe",),
    ),
    Mistake(
        "votes are resampled instead of prompts",
        "evaluation/statistics.py",
        "members.setdefault(prompt, []).append(row)",
        "members.setdefault(row, []).append(row)",
        (f"{GATE}::test_votes_on_one_prompt_are_one_witness",),
    ),
    Mistake(
        "a canary is staged again after a kill",
        "loop/cycle.py",
        "if known is not None:",
        "if False:",
        (f"{CYCLE}::test_what_broke_off_is_taken_up_without_doing_anything_twice",),
    ),
    Mistake(
        "each turn begins at the base",
        "loop/training.py",
        'goes_on = champion.kind == "adapter"',
        "goes_on = False",
        (f"{CYCLE}::test_a_second_turn_waits_for_the_canary_and_then_learns_from_its_champion",),
    ),
]
