"""Synthetic thumbs about facts: the facts are right, and each row is what its truth says."""

import json
import random
from collections import Counter
from importlib import resources

import pytest
from scipy.stats import binomtest

from thumbtune.data.synth.checks import flatters, guess_language, states_fact
from thumbtune.data.synth.exercises import draw_message
from thumbtune.data.synth.facts import count_rows, make_fact_thumbs
from thumbtune.data.synth.files import dump_rows, write_rows
from thumbtune.data.synth.number_words import read_numbers, word_number, write_exact
from thumbtune.data.synth.places import country_facts, province_facts
from thumbtune.data.synth.turkish import (
    add_genitive,
    add_genitive_to_number,
    add_locative,
    capitalize_turkish,
    lower_turkish,
    upper_turkish,
)
from thumbtune.errors import ConfigError


def _rows_with(flaw, language="tr"):
    return [r for r in make_fact_thumbs(rows=2000, language=language, seed=3) if r["truth"]["flaw"] == flaw]


def _value_of(about, what, language="tr"):
    facts = [*province_facts(), *country_facts()]
    return next(f.words[language]["value"] for f in facts if f.about == about and f.what == what)


@pytest.mark.parametrize(
    ("name", "genitive"),
    [
        ("Ankara", "Ankara'nın"),
        ("İzmir", "İzmir'in"),
        ("İstanbul", "İstanbul'un"),
        ("Ordu", "Ordu'nun"),
        ("Muş", "Muş'un"),
        ("Iğdır", "Iğdır'ın"),
        ("Düzce", "Düzce'nin"),
        ("Gümüşhane", "Gümüşhane'nin"),
        ("Bingöl", "Bingöl'ün"),
        ("Hakkâri", "Hakkâri'nin"),
        ("Nepal", "Nepal'in"),
        ("Portekiz", "Portekiz'in"),
        ("Ürdün", "Ürdün'ün"),
        ("Amerika Birleşik Devletleri", "Amerika Birleşik Devletleri'nin"),
    ],
)
def test_the_genitive_follows_vowel_harmony(name, genitive):
    assert add_genitive(name) == genitive


@pytest.mark.parametrize(
    ("name", "locative"),
    [
        ("Ankara", "Ankara'da"),
        ("İzmir", "İzmir'de"),
        ("Uşak", "Uşak'ta"),
        ("Tokat", "Tokat'ta"),
        ("Kilis", "Kilis'te"),
        ("Birleşik Krallık", "Birleşik Krallık'ta"),
        ("Dominik Cumhuriyeti", "Dominik Cumhuriyeti'nde"),
        ("Marshall Adaları", "Marshall Adaları'nda"),
        ("Ekvator Ginesi", "Ekvator Ginesi'nde"),
        ("Papua Yeni Gine", "Papua Yeni Gine'de"),
    ],
)
def test_the_locative_follows_vowel_harmony_and_voicing(name, locative):
    assert add_locative(name) == locative


@pytest.mark.parametrize(
    ("number", "genitive"),
    [(38, "38'in"), (6, "6'nın"), (9, "9'un"), (40, "40'ın"), (10, "10'un"), (50, "50'nin"), (100, "100'ün"),
     (1000, "1000'in"), (3, "3'ün"), (0, "0'ın")],
)  # fmt: skip
def test_a_number_takes_the_suffix_of_its_last_spoken_word(number, genitive):
    assert add_genitive_to_number(number) == genitive


def test_casing_keeps_the_dot_of_the_turkish_i():
    assert lower_turkish("IĞDIR İZMİR") == "ığdır izmir"
    assert upper_turkish("ığdır izmir") == "IĞDIR İZMİR"
    assert capitalize_turkish("iş arkadaşıma") == "İş arkadaşıma"


@pytest.mark.parametrize(
    ("number", "turkish", "english"),
    [(15_655_924, "15,7 milyon", "15.7 million"), (604_978, "605 bin", "605 thousand"),
     (999_700, "1 milyon", "1 million"), (5_000_000, "5 milyon", "5 million"), (640, "640", "640")],
)  # fmt: skip
def test_numbers_are_worded_as_people_write_them(number, turkish, english):
    assert word_number(number, "tr") == turkish
    assert word_number(number, "en") == english


def test_numbers_are_read_back_from_either_language():
    assert read_numbers("Yaklaşık 5,6 milyon (2024 verisi).") == [5_600_000, 2024]
    assert read_numbers("About 605 thousand people.") == [605_000]
    assert read_numbers("15.655.924 kişi, 15,655,924 people") == [15_655_924, 15_655_924]
    assert read_numbers("Plaka kodu 06.") == [6]
    assert write_exact(15_655_924, "tr") == "15.655.924"


def test_there_are_81_provinces_with_the_plates_that_everybody_knows():
    plates = {f.number: f.words["tr"]["name"] for f in province_facts() if f.what == "plate"}
    assert sorted(plates) == list(range(1, 82))
    assert (plates[34], plates[6], plates[35], plates[81]) == ("İstanbul", "Ankara", "İzmir", "Düzce")


def test_province_populations_add_up_to_the_total_that_tuik_published():
    people = {f.about: f.number for f in province_facts() if f.what == "population"}
    assert len(people) == 81
    assert sum(people.values()) == 85_372_377
    assert people["TR-34"] == 15_655_924


def test_regions_and_capitals_are_right_where_anyone_can_check_them():
    assert _value_of("TR-34", "region") == "Marmara"
    assert _value_of("TR-61", "region", "en") == "Black Sea"
    assert _value_of("FR", "capital") == "Paris"
    assert _value_of("GB", "capital") == "Londra"
    assert _value_of("GB", "capital", "en") == "London"
    assert _value_of("TR", "capital") == "Ankara"


def test_every_shipped_table_names_its_source_and_its_licence():
    for name in ("tr_provinces.json", "countries.json"):
        table = json.loads(resources.files("thumbtune.data.synth").joinpath(name).read_text(encoding="utf-8"))
        assert table["licence"]
        assert any(key.endswith("source") for key in table)


def test_what_the_sources_disagree_on_is_not_asked():
    asked = {(f.about, f.what) for f in [*province_facts(), *country_facts()]}
    assert not {("TR-18", "region"), ("TR-58", "region"), ("KZ", "capital"), ("IL", "capital")} & asked


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (dump_rows(make_fact_thumbs(rows=300, seed=seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_few_rows_are_exact_duplicates():
    rows = make_fact_thumbs(rows=5000, seed=0)
    assert len(rows) == 5000
    assert len({(r["prompt"], r["completion"]) for r in rows}) > 0.98 * 5000


def test_most_prompts_of_provinces_meet_both_a_good_and_a_bad_answer_often_enough_for_pairs():
    good, bad = Counter(), Counter()
    for row in make_fact_thumbs(rows=5000, seed=0):
        (good if row["truth"]["desirable"] else bad)[row["prompt"]] += 1
    assert len(good.keys() & bad.keys()) > 500


@pytest.mark.parametrize("up_share", [0.0, 0.3, 1.0])
def test_the_share_of_desirable_completions_is_kept_to_the_row(up_share):
    rows = make_fact_thumbs(rows=400, up_share=up_share, seed=1)
    assert sum(r["truth"]["desirable"] for r in rows) == round(400 * up_share)


def test_half_the_completions_are_desirable_unless_asked_otherwise():
    assert count_rows(make_fact_thumbs(rows=400))["up"] == 200


def test_label_noise_is_near_what_was_asked_and_recorded_in_the_truth():
    rows = make_fact_thumbs(rows=3000, label_noise=0.1, seed=2)
    flipped = sum(r["label"] != r["truth"]["desirable"] for r in rows)
    assert binomtest(flipped, 3000, 0.1).pvalue > 1e-4
    assert all(r["label"] == (r["truth"]["desirable"] != r["truth"]["flipped"]) for r in rows)


def test_noise_changes_labels_and_nothing_else():
    clean, noisy = make_fact_thumbs(rows=300, seed=4), make_fact_thumbs(rows=300, seed=4, label_noise=0.5)
    assert [(r["prompt"], r["completion"]) for r in clean] == [(r["prompt"], r["completion"]) for r in noisy]
    assert [r["label"] for r in clean] != [r["label"] for r in noisy]


def test_a_vote_rate_drops_rows_and_changes_none_of_the_others():
    everything = make_fact_thumbs(rows=3000, seed=4)
    voted = make_fact_thumbs(rows=3000, seed=4, vote_rate=0.2)
    assert binomtest(len(voted), 3000, 0.2).pvalue > 1e-4
    kept = {json.dumps(r, sort_keys=True) for r in everything}
    assert all(json.dumps(r, sort_keys=True) in kept for r in voted)


def test_only_an_undesirable_completion_has_a_flaw():
    assert all(
        (r["truth"]["flaw"] is None) == r["truth"]["desirable"]
        for r in make_fact_thumbs(rows=500, language="both")
    )


@pytest.mark.parametrize("language", ["tr", "en"])
def test_a_good_answer_states_its_fact_in_the_language_of_the_question(language):
    for row in _rows_with(None, language):
        if row["truth"]["topic"] != "style":
            assert states_fact(row["completion"], row["truth"]["fact"]), row
        assert guess_language(row["completion"]) in (language, None), row
        assert not flatters(row["completion"]), row


@pytest.mark.parametrize("language", ["tr", "en"])
def test_a_refusal_says_no_number_and_no_fact(language):
    rows = _rows_with("refusal", language)
    assert rows
    for row in rows:
        assert not any(letter.isdigit() for letter in row["completion"])
        assert not states_fact(row["completion"], row["truth"]["fact"])


@pytest.mark.parametrize("language", ["tr", "en"])
@pytest.mark.parametrize("flaw", ["wrong_number", "wrong_answer"])
def test_a_wrong_answer_is_wrong(language, flaw):
    rows = _rows_with(flaw, language)
    assert rows
    assert not any(states_fact(r["completion"], r["truth"]["fact"]) for r in rows)


def test_a_wrong_population_is_far_from_the_right_one():
    for row in _rows_with("wrong_number"):
        fact = row["truth"]["fact"]
        if "population" in fact["what"]:
            said = [number for number in read_numbers(row["completion"]) if number != 2023]
            assert all(abs(number / int(fact["value"]) - 1) > 0.3 for number in said), row


@pytest.mark.parametrize(("language", "other"), [("tr", "en"), ("en", "tr")])
def test_a_wrong_language_is_the_other_language(language, other):
    rows = _rows_with("wrong_language", language)
    assert rows
    assert [r["completion"] for r in rows if guess_language(r["completion"]) != other] == []


@pytest.mark.parametrize("language", ["tr", "en"])
def test_rambling_is_long_and_never_gets_to_the_fact(language):
    rows = _rows_with("rambling", language)
    assert rows
    for row in rows:
        assert len(row["completion"].split()) > 35
        assert not states_fact(row["completion"], row["truth"]["fact"])


@pytest.mark.parametrize("language", ["tr", "en"])
def test_flattery_flatters_and_says_nothing_else(language):
    rows = _rows_with("flattery", language)
    assert rows
    for row in rows:
        assert flatters(row["completion"])
        assert not states_fact(row["completion"], row["truth"]["fact"])


def test_chat_rows_hold_the_same_texts_as_messages():
    plain, chat = make_fact_thumbs(rows=20), make_fact_thumbs(rows=20, chat=True)
    assert chat[0]["prompt"] == [{"role": "user", "content": plain[0]["prompt"]}]
    assert chat[0]["completion"] == [{"role": "assistant", "content": plain[0]["completion"]}]


def test_truth_holds_strings_so_that_every_table_format_can_hold_it():
    for row in make_fact_thumbs(rows=300, language="both"):
        assert all(value is None or isinstance(value, str) for value in row["truth"]["fact"].values())
        assert row["truth"]["fact"]["source"]


def test_a_message_to_an_elder_is_polite_in_turkish():
    rng = random.Random(0)
    messages = [draw_message(rng) for _ in range(3000)]
    to_teacher = [m.words["tr"]["value"] for m in messages if m.about == "birthday, my teacher"]
    assert to_teacher
    assert not any("günün kutlu" in text for text in to_teacher)


@pytest.mark.parametrize(
    "settings",
    [{"label_noise": 1.5}, {"up_share": -0.1}, {"vote_rate": 2.0}, {"rows": -1}, {"language": "de"}],
)
def test_a_setting_that_cannot_hold_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        make_fact_thumbs(**{"rows": 3, **settings})


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "thumbs.jsonl"
    write_rows(target, [{"a": 1}])
    with pytest.raises(TypeError):
        write_rows(target, [{"a": object()}], overwrite=True)
    assert target.read_text(encoding="utf-8") == '{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [target]
