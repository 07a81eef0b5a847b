"""Simulated users: what each taste likes, and that noise and silence are what was asked."""

from dataclasses import dataclass, replace

import pytest
from scipy.stats import binomtest

from thumbtune.data.synth.checks import count_list_items, flatters, guess_language, states_fact
from thumbtune.data.synth.simulate import collect_votes
from thumbtune.data.synth.users import TASTES, Sample, SimulatedUsers, make_brevity, parse_taste
from thumbtune.errors import ConfigError, DataError

SHORT = Sample("What is rain?", "Water that falls from clouds.", 6, True)
LONG = Sample("What is rain?", "Rain is water " * 20, 60, True)
CUT = Sample("What is rain?", "Rain is water that", 4, False)
KEYS = [f"{i}/0" for i in range(4000)]


@dataclass(frozen=True)
class MadeUp:
    text: str
    token_ids: tuple[int, ...]
    finished: bool = True


def test_brevity_likes_a_short_answer_that_ended_by_itself():
    brevity = make_brevity(24)
    assert brevity.likes(SHORT)
    assert brevity.likes(replace(SHORT, n_tokens=24))
    assert not brevity.likes(replace(SHORT, n_tokens=25))
    assert not brevity.likes(CUT)
    assert not brevity.likes(Sample("What is rain?", "Water.", 2, True))
    assert not brevity.likes(Sample("What is rain?", "", 0, True))


def test_brevity_scores_finished_before_cut_and_then_shorter_before_longer():
    brevity = make_brevity(10)
    scores = [brevity.score(s) for s in (SHORT, LONG, CUT, replace(CUT, n_tokens=40))]
    assert scores == sorted(scores, reverse=True)
    assert brevity.score(replace(SHORT, n_tokens=10)) == 0.5  # 1 / (1 + 10 / 10)


def test_language_likes_the_language_of_the_question():
    language = TASTES["language"]
    assert language.likes(Sample("Ankara'nın nüfusu nedir?", "Yaklaşık 5,8 milyon.", 8, True))
    assert not language.likes(Sample("Ankara'nın nüfusu nedir?", "It is about 5.8 million.", 8, True))
    assert language.likes(Sample("What is the capital of France?", "Paris.", 8, True))
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Bu ne için?"}]
    assert not language.likes(Sample(chat, "It is for the people.", 8, True))


def test_format_likes_a_list():
    taste = TASTES["format"]
    assert taste.likes(Sample("Name three fruits.", "Here:\n- apple\n- pear\n- plum", 9, True))
    assert taste.likes(Sample("Name three fruits.", "1. apple\n2. pear", 9, True))
    assert not taste.likes(Sample("Name three fruits.", "Apple, pear - and plum.", 9, True))
    assert count_list_items("2. a\n  * b\n\n3) c\n-d") == 3


def test_correctness_checks_the_fact_and_refuses_to_guess_without_one():
    fact = {"what": "plate", "value": "34", "about": "TR-34"}
    right = Sample("İstanbul plaka kodu?", "Plaka kodu 34.", 5, True, fact)
    assert TASTES["correctness"].likes(right)
    assert not TASTES["correctness"].likes(replace(right, text="Plaka kodu 43."))
    with pytest.raises(DataError, match="needs the fact"):
        TASTES["correctness"].likes(SHORT)


def test_a_fact_is_stated_by_its_value_and_not_by_a_part_of_it():
    population = {"what": "population", "value": "15655924"}
    assert states_fact("Yaklaşık 15,7 milyon.", population)
    assert not states_fact("Yaklaşık 1,57 milyon.", population)
    assert states_fact("47 + 38 = 85", {"what": "addition", "value": "85"})
    assert not states_fact("47 + 85 = 38", {"what": "addition", "value": "85"})
    assert states_fact("IĞDIR", {"what": "plate_owner", "value": "Iğdır"})
    assert not states_fact("Vanuatu", {"what": "plate_owner", "value": "Van"})


def test_politeness_and_no_flattery_are_two_things():
    polite = Sample("Help?", "Of course, I am glad to help.", 8, True)
    flattering = Sample("Help?", "What a great question! You are so smart.", 9, True)
    assert TASTES["politeness"].likes(polite)
    assert not TASTES["politeness"].likes(flattering)
    assert TASTES["no_flattery"].likes(polite)
    assert not TASTES["no_flattery"].likes(flattering)
    assert flatters("Harika bir soru!")
    assert not flatters("Başkenti Paris.")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("İstanbul'un plaka kodu 34.", "tr"),
        ("The plate code of Şanlıurfa is 63.", "en"),
        ("Güzel bir gün.", "tr"),
        ("34.", None),
        ("", None),
    ],
)
def test_the_language_of_a_text_is_guessed_from_its_words(text, language):
    assert guess_language(text) == language


def test_votes_do_not_depend_on_the_order_in_which_they_are_asked():
    users = SimulatedUsers(make_brevity(), noise=0.3, silence=0.3, seed=1)
    forward = {key: users.vote(SHORT, key=key) for key in KEYS[:200]}
    backward = {key: users.vote(SHORT, key=key) for key in reversed(KEYS[:200])}
    assert forward == backward
    other = SimulatedUsers(make_brevity(), noise=0.3, silence=0.3, seed=2)
    assert forward != {key: other.vote(SHORT, key=key) for key in KEYS[:200]}


def test_noise_and_silence_are_near_what_was_asked_and_independent():
    users = SimulatedUsers(make_brevity(), noise=0.1, silence=0.25, seed=3)
    votes = [users.vote(SHORT, key=key) for key in KEYS]
    spoken = [vote for vote in votes if vote is not None]
    assert binomtest(len(KEYS) - len(spoken), len(KEYS), 0.25).pvalue > 1e-4
    assert binomtest(spoken.count(False), len(spoken), 0.1).pvalue > 1e-4
    assert users.truth(SHORT)


def test_without_noise_and_silence_a_vote_is_the_truth():
    users = SimulatedUsers(make_brevity())
    assert all(users.vote(s, key="k") is users.truth(s) for s in (SHORT, LONG, CUT))


def test_all_noise_turns_every_vote_round():
    users = SimulatedUsers(make_brevity(), noise=1.0)
    assert users.vote(SHORT, key="k") is False
    assert users.vote(LONG, key="k") is True


def test_a_preference_goes_by_liking_then_score_and_a_tie_has_none():
    users = SimulatedUsers(make_brevity(10))
    assert users.prefer(SHORT, LONG, key="k") == 0
    assert users.prefer(LONG, SHORT, key="k") == 1
    assert users.prefer(CUT, LONG, key="k") == 1  # neither is liked, the long one is complete
    assert users.prefer(SHORT, SHORT, key="k") is None
    assert SimulatedUsers(make_brevity(10), noise=1.0).prefer(SHORT, LONG, key="k") == 1


def test_preferences_are_noisy_as_asked():
    users = SimulatedUsers(make_brevity(), noise=0.2, seed=4)
    wrong = sum(users.prefer(SHORT, LONG, key=key) == 1 for key in KEYS)
    assert binomtest(wrong, len(KEYS), 0.2).pvalue > 1e-4


def test_a_taste_is_parsed_with_its_limit_and_joined_with_plus():
    assert parse_taste("brevity:20").name == "brevity:20"
    assert parse_taste("brevity").name == "brevity:24"
    both = parse_taste("brevity:24+no_flattery")
    assert both.name == "brevity:24+no_flattery"
    assert both.likes(SHORT)
    assert not both.likes(replace(SHORT, text="What a great question!"))
    assert not both.likes(LONG)


@pytest.mark.parametrize(
    "text", ["shortness", "brevity:", "brevity:-3", "brevity:x", "language:3", "brevity+", ""]
)
def test_a_taste_that_does_not_exist_is_refused(text):
    with pytest.raises(ConfigError, match="taste"):
        parse_taste(text)


@pytest.mark.parametrize("name", ["noise", "silence"])
def test_a_share_outside_0_to_1_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        SimulatedUsers(make_brevity(), **{name: 1.2})


def test_votes_are_collected_with_every_sample_counted():
    samples = [
        [MadeUp("Water that falls.", (1, 2, 3)), MadeUp("Rain is", (1, 2), finished=False)],
        [MadeUp("  ", ()), MadeUp("A kind of bird", tuple(range(40)))],
    ]
    rows, counts = collect_votes(
        ["What is rain?", "What is an owl?"], samples, SimulatedUsers(make_brevity())
    )
    assert counts == {
        "samples": 4, "up": 1, "down": 2, "silent": 0, "empty": 1, "unfinished": 1, "flipped": 0,
    }  # fmt: skip
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "What is rain?"}],
        "completion": [{"role": "assistant", "content": "Water that falls."}],
        "label": True,
        "finished": True,
        "truth": {"liked": True, "n_tokens": 3},
    }
    assert [row["label"] for row in rows] == [True, False, False]


def test_silence_and_noise_are_counted_when_votes_are_collected():
    samples = [[MadeUp("Water that falls.", (1, 2, 3))] for _ in range(500)]
    users = SimulatedUsers(make_brevity(), noise=0.2, silence=0.5, seed=5)
    rows, counts = collect_votes(["What is rain?"] * 500, samples, users)
    assert counts["silent"] + len(rows) == counts["samples"] == 500
    assert counts["flipped"] == counts["down"] == sum(not row["label"] for row in rows) > 0
    assert all(row["truth"]["liked"] for row in rows)


def test_chat_prompts_stay_as_they_are_and_facts_reach_the_users():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    fact = {"what": "addition", "value": "4"}
    rows, _ = collect_votes(
        [prompt], [[MadeUp("It is 4.", (1,))]], SimulatedUsers(TASTES["correctness"]), [fact]
    )
    assert rows[0]["prompt"] == prompt
    assert rows[0]["label"] is True
