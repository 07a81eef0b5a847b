"""Deliberate mistakes in the store and the gateway; `test_deliberate_mistakes.py` makes them."""

from __future__ import annotations

from mistakes import Mistake

VOTES = "store/test_votes.py"
COMMITTER = "store/test_committer.py"
EXPORT = "store/test_export.py"
PRESSES = "gateway/test_votes.py"
BROKEN_OFF = "gateway/test_broken_off.py"
SECURITY = "gateway/test_security.py"
LOCAL = "gateway/test_local_engine.py"
PROTOCOL = "gateway/test_protocol.py"
UPSTREAM = "gateway/test_upstream.py"

SERVICE_MISTAKES = [
    Mistake(
        "an idempotency key is forgotten",
        "store/votes.py",
        "if vote.idempotency_key is not None else None",
        "if False else None",
        (f"{PRESSES}::test_an_idempotency_key_with_another_body_is_a_conflict",),
    ),
    Mistake(
        "a used idempotency key swallows another vote",
        "store/votes.py",
        'return "repeated" if _says_the_same(vote, earlier) else "conflict"',
        'return "repeated"',
        (
            f"{VOTES}::test_the_same_request_twice_is_one_vote[sqlite]",
            f"{PRESSES}::test_an_idempotency_key_with_another_body_is_a_conflict",
        ),
    ),
    Mistake(
        "a batch does not see its own presses",
        "store/votes.py",
        "            current[place] = row\n",
        "",
        (f"{VOTES}::test_a_batch_is_settled_in_the_order_of_its_presses[sqlite]",),
    ),
    Mistake(
        "all votes are read to take a few",
        "store/votes.py",
        "    _look_up_by_index(connection)\n",
        "",
        (f"{VOTES}::test_postgresql_never_reads_all_votes_to_take_a_few[postgresql]",),
    ),
    Mistake(
        "a client votes on another's answer",
        "store/votes.py",
        "if press.own_only and owner != vote.user_key:",
        "if False:",
        (
            f"{VOTES}::test_an_unknown_completion_and_a_strangers_one_are_told_apart_inside[sqlite]",
            f"{PRESSES}::test_a_client_votes_on_its_own_answers_only_and_a_voter_on_any",
        ),
    ),
    Mistake(
        "the oldest press counts",
        "store/reading.py",
        "newer.c.id > votes.c.id",
        "newer.c.id < votes.c.id",
        (f"{VOTES}::test_the_newest_press_counts_and_every_one_is_kept[sqlite]",),
    ),
    Mistake(
        "a retraction counts as a vote",
        "store/reading.py",
        "votes.c.label.is_not(None)",
        "votes.c.id.is_not(None)",
        (
            f"{VOTES}::test_a_vote_can_be_taken_back_and_given_again[sqlite]",
            f"{PRESSES}::test_a_retracted_vote_is_not_listed_and_a_second_retraction_changes_nothing",
        ),
    ),
    Mistake(
        "a hint replaces a vote",
        "store/reading.py",
        "newer.c.kind == votes.c.kind",
        "newer.c.kind == newer.c.kind",
        (f"{VOTES}::test_votes_of_several_users_and_kinds_stand_side_by_side[sqlite]",),
    ),
    Mistake(
        "trouble with the store is acknowledged",
        "store/committer.py",
        "results = [error] * len(batch)",
        "results = [None] * len(batch)",
        (f"{COMMITTER}::test_trouble_with_the_store_reaches_each_request_and_passes",),
    ),
    Mistake(
        "a commit does not wait for the disk",
        "store/database.py",
        '            "synchronous=FULL",\n',
        '            "synchronous=OFF",\n',
        ("store/test_database.py::test_a_sqlite_store_is_durable_and_its_owners_alone",),
    ),
    Mistake(
        "others' words on an erased user's answers stay",
        "store/erasure.py",
        "update(votes).where(votes.c.completion_id.in_(own)).values(comment=None, correction=None)",
        "update(votes).where(votes.c.completion_id.in_(own)).values(source_id=None)",
        ("store/test_erasure.py::test_an_erased_user_leaves_counts_and_no_text[sqlite]",),
    ),
    Mistake(
        "a broken-off completion is learned from",
        "records.py",
        'BROKEN_OFF = ("cancelled", "error")',
        "BROKEN_OFF = ()",
        (
            f"{EXPORT}::test_an_export_is_read_by_training_with_the_digest_that_it_was_entered_under"
            "[sqlite-thumbs.jsonl]",
        ),
    ),
    Mistake(
        "the end of a cut completion is learned",
        "store/snapshots.py",
        'finished = vote["finish_reason"] != "length"',
        "finished = True",
        (
            f"{EXPORT}::test_an_export_is_read_by_training_with_the_digest_that_it_was_entered_under"
            "[sqlite-thumbs.jsonl]",
        ),
    ),
    Mistake(
        "a token is good for every completion",
        "gateway/identity.py",
        "if content[0] != completion_id:",
        "if False:",
        (f"{SECURITY}::test_a_token_is_good_for_its_own_completion_only",),
    ),
    Mistake(
        "any key speaks for any user",
        "gateway/identity.py",
        "if not key.speaks_for_users:",
        "if False:",
        (f"{SECURITY}::test_an_end_user_is_heard_from_a_key_that_speaks_for_users_only",),
    ),
    Mistake(
        "every host name is answered",
        "gateway/middleware.py",
        "if name.lower() not in self.hosts:",
        "if False:",
        (f"{SECURITY}::test_named_hosts_are_answered_and_no_others",),
    ),
    Mistake(
        "nobody is limited",
        "gateway/rates.py",
        "if window.add(name, amount) > window.amount:",
        "if window.add(name, amount) < 0:",
        (
            f"{SECURITY}::test_requests_are_limited_per_user_and_not_for_the_next_user",
            f"{SECURITY}::test_votes_are_limited_too_with_a_token_as_with_a_key",
        ),
    ),
    Mistake(
        "a vote does not wait for its completion",
        "gateway/service.py",
        'if status != "unknown_completion" or',
        "if True or",
        (f"{BROKEN_OFF}::test_a_vote_that_races_its_completion_waits_for_it",),
    ),
    Mistake(
        "an answer is handed out before it is on disk",
        "gateway/service.py",
        "        await self._keep(serving)\n        first = serving.choices[0]\n",
        "        first = serving.choices[0]\n",
        (f"{BROKEN_OFF}::test_an_answer_that_cannot_be_stored_is_no_answer",),
    ),
    Mistake(
        "a start without the champion takes another model",
        "gateway/in_service.py",
        "elif not await self._ensure_loaded(self.champion.version):",
        "elif not await self._ensure_loaded(self.champion.version) and False:",
        ("gateway/test_champion.py::test_a_champion_that_is_not_served_is_never_replaced_unnoticed",),
    ),
    Mistake(
        "a row sees the columns before its start",
        "gateway/batch_decoding.py",
        "attention_mask=(columns >= self._starts[:, None]).long()",
        "attention_mask=(columns >= 0 * self._starts[:, None]).long()",
        (f"{LOCAL}::test_each_answer_in_company_is_what_generate_says_alone",),
    ),
    Mistake(
        "positions skip one",
        "gateway/batch_decoding.py",
        "position_ids=(self._length - self._starts)[:, None]",
        "position_ids=(1 + self._length - self._starts)[:, None]",
        (f"{LOCAL}::test_the_logits_of_each_row_are_those_of_a_forward_over_the_whole_row",),
    ),
    Mistake(
        "a part of a stop string is sent",
        "gateway/answer_text.py",
        "limit -= max((measure_overlap(self.said, stop) for stop in self.stops), default=0)",
        "limit -= 0",
        (f"{LOCAL}::test_a_stop_string_is_never_sent_not_even_in_part",),
    ),
    Mistake(
        "gaps are closed without their keys and values",
        "gateway/batch_decoding.py",
        "held[gap, :, : self._length] = held[place, :, : self._length]",
        "pass",
        (f"{LOCAL}::test_rows_that_join_and_leave_at_any_step_change_nobody",),
    ),
    Mistake(
        "idle connections are kept for longer than servers keep them",
        "gateway/upstream.py",
        "keepalive_timeout=IDLE_SECONDS",
        "keepalive_timeout=15.0",
        (
            f"{UPSTREAM}::test_connections_that_idled_lose_no_request_though_the_upstream_closes_them_after_five_seconds",
        ),
    ),
]
