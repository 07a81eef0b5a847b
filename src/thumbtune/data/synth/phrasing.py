"""How people ask, and how a good answer reads: several phrasings for each kind of fact, in each language."""

from __future__ import annotations

import random

from thumbtune.data.synth.number_words import Language, word_number, write_exact
from thumbtune.data.synth.places import Fact
from thumbtune.data.synth.turkish import add_genitive

POPULATIONS = ("population", "country_population")
SUMS = ("addition", "subtraction", "multiplication", "division")

_QUESTIONS: dict[Language, dict[str, list[str]]] = {
    "tr": {
        "population": [
            "{of_name} nüfusu nedir?",
            "{name} nüfusu?",
            "{name} ilinin nüfusu kaç?",
            "{in_name} kaç kişi yaşıyor?",
            "{of_name} nüfusu ne kadar?",
        ],
        "country_population": [
            "{of_name} nüfusu nedir?",
            "{name} nüfusu?",
            "{of_name} nüfusu ne kadar?",
            "{in_name} kaç kişi yaşıyor?",
        ],
        "plate": [
            "{of_name} plaka kodu kaç?",
            "{name} plaka kodu?",
            "{of_name} plakası kaç?",
            "{name} ilinin plaka kodu nedir?",
        ],
        "plate_owner": [
            "{plate} plaka kodu hangi ile ait?",
            "{plate} hangi ilin plaka kodu?",
            "Plaka kodu {plate} olan il hangisi?",
            "{plate} plaka nerenin?",
        ],
        "region": [
            "{name} hangi bölgede?",
            "{name} hangi coğrafi bölgede yer alır?",
            "{name} ili hangi bölgededir?",
            "{name} Türkiye'nin hangi bölgesinde?",
        ],
        "capital": [
            "{of_name} başkenti neresi?",
            "{of_name} başkenti hangi şehir?",
            "{name} başkenti?",
            "{of_name} başkentinin adı nedir?",
        ],
        "capital_owner": ["{city} hangi ülkenin başkenti?", "Başkenti {city} olan ülke hangisi?"],
        "addition": ["{expression} kaç eder?", "{a} artı {b} kaç?", "{a} ile {of_b} toplamı kaç?"],
        "subtraction": ["{expression} kaç eder?", "{a} eksi {b} kaç?", "{a} ile {of_b} farkı kaç?"],
        "multiplication": ["{expression} kaç eder?", "{a} çarpı {b} kaç?", "{a} ile {of_b} çarpımı kaç?"],
        "division": ["{expression} kaç eder?", "{a} bölü {b} kaç?"],
        "message": [
            "{To} kısa bir {kind} yaz.",
            "{To} kısa bir {kind} yazar mısın?",
            "{Kind} lazım, {to} göndereceğim. Kısa olsun.",
            "{To} göndermek için kısa bir {kind} öner.",
        ],
    },
    "en": {
        "population": [
            "What is the population of {name} province?",
            "How many people live in {name} province?",
            "Population of {name} province, Türkiye?",
            "How big is the population of {name} province?",
        ],
        "country_population": [
            "What is the population of {name}?",
            "How many people live in {name}?",
            "Roughly how many people live in {name}?",
        ],
        "plate": [
            "What is the licence plate code of {name}?",
            "Which plate code does {name} have?",
            "Plate code of {name}, Türkiye?",
            "What number do licence plates from {name} start with?",
        ],
        "plate_owner": [
            "Which Turkish province has the plate code {plate}?",
            "Plate code {plate}: which province in Türkiye?",
            "Where in Türkiye do plates start with {plate}?",
        ],
        "region": [
            "Which region of Türkiye is {name} in?",
            "In which geographical region of Türkiye is {name}?",
            "What region does {name} province belong to?",
        ],
        "capital": [
            "What is the capital of {name}?",
            "Which city is the capital of {name}?",
            "Capital of {name}?",
            "Name the capital of {name}.",
        ],
        "capital_owner": [
            "{city} is the capital of which country?",
            "Which country has {city} as its capital?",
        ],
        "addition": ["What is {expression}?", "What is {a} plus {b}?", "Add {a} and {b}."],
        "subtraction": ["What is {expression}?", "What is {a} minus {b}?", "Take {b} away from {a}."],
        "multiplication": ["What is {expression}?", "What is {a} times {b}?", "Multiply {a} by {b}."],
        "division": ["What is {expression}?", "What is {a} divided by {b}?", "Divide {a} by {b}."],
        "message": [
            "Write a short {kind} to {to}.",
            "Could you write a short {kind} to {to}?",
            "I need a short {kind} to send to {to}.",
            "Suggest a short {kind} to {to}.",
        ],
    },
}

# The first phrasing of each list may be the bare value; the others are sentences of that language.
_ANSWERS: dict[Language, dict[str, list[str]]] = {
    "tr": {
        "population": [
            "Yaklaşık {value}.",
            "{of_name} nüfusu yaklaşık {value}.",
            "Yaklaşık {value} ({year} verisi).",
            "{in_name} yaklaşık {value} kişi yaşıyor.",
            "{name} ilinin nüfusu {year} verisine göre yaklaşık {value}.",
            "TÜİK'in {year} verisine göre {exact} kişi.",
        ],
        "country_population": [
            "GeoNames verisine göre yaklaşık {value}.",
            "Yaklaşık {value} (GeoNames verisi).",
            "{of_name} nüfusu GeoNames'e göre yaklaşık {value}.",
            "GeoNames'e göre {in_name} yaklaşık {value} kişi yaşıyor.",
        ],
        "plate": [
            "{value}.",
            "{of_name} plaka kodu {value}.",
            "Plaka kodu {value}.",
            "{name} ilinin plaka kodu {value}.",
            "{name} plakaları {value} ile başlar.",
        ],
        "plate_owner": [
            "{value}.",
            "{plate}, {of_value} plaka kodudur.",
            "{plate} plaka kodu {value} iline ait.",
            "Bu plaka kodu {value} ilinindir.",
        ],
        "region": [
            "{value} Bölgesi.",
            "{value} Bölgesi'nde.",
            "{name}, {value} Bölgesi'nde yer alır.",
            "{name} ili {value} Bölgesi'ndedir.",
        ],
        "capital": [
            "{value}.",
            "{of_name} başkenti {value}.",
            "Başkenti {value}.",
            "{of_name} başkenti {value} şehridir.",
        ],
        "capital_owner": ["{value}.", "{of_value} başkenti.", "{city}, {of_value} başkentidir."],
        "sum": [
            "{value}.",
            "{value} eder.",
            "Sonuç {value}.",
            "Cevap: {value}.",
            "Bu işlemin sonucu {value}.",
        ],
        "message": ["{value}"],
    },
    "en": {
        "population": [
            "About {value}.",
            "The population of {name} province is about {value}.",
            "About {value} ({year} data).",
            "About {value} people live there.",
            "According to TÜİK it was {exact} in {year}.",
        ],
        "country_population": [
            "About {value}, according to GeoNames.",
            "According to GeoNames, {name} has about {value} people.",
            "GeoNames says that about {value} people live there.",
        ],
        "plate": [
            "{value}.",
            "The plate code of {name} is {value}.",
            "Its plate code is {value}.",
            "Plates from {name} start with {value}.",
        ],
        "plate_owner": [
            "{value}.",
            "The plate code {plate} belongs to {value}.",
            "That is the code of {value}.",
            "Plates with {plate} are from {value}.",
        ],
        "region": [
            "The {value} Region.",
            "{name} is in the {value} Region.",
            "It is in the {value} Region.",
            "{name} province belongs to the {value} Region.",
        ],
        "capital": [
            "{value}.",
            "The capital of {name} is {value}.",
            "It is {value}.",
            "{value} is the capital of {name}.",
        ],
        "capital_owner": ["{Value}.", "It is the capital of {value}.", "{city} is the capital of {value}."],
        "sum": [
            "{value}.",
            "It is {value}.",
            "The answer is {value}.",
            "The result is {value}.",
            "That makes {value}.",
        ],
        "message": ["{value}"],
    },
}


def ask(rng: random.Random, fact: Fact, language: Language) -> str:
    """A question that this fact answers."""
    return rng.choice(_QUESTIONS[language][fact.what]).format(**fact.words[language])


def answer(
    rng: random.Random,
    fact: Fact,
    language: Language,
    *,
    value: str | None = None,
    sentence: bool = False,
) -> str:
    """A good short answer; with another `value`, a wrong one in the same words.

    `sentence` leaves out the bare values ("34."), which read the same in every language.
    """
    kind = "sum" if fact.what in SUMS else fact.what
    phrasings = _ANSWERS[language][kind]
    template = rng.choice(phrasings[1:] if sentence and len(phrasings) > 1 else phrasings)
    return template.format(**_inserts(rng, fact, language, value or fact.words[language]["value"]))


def _inserts(rng: random.Random, fact: Fact, language: Language, value: str) -> dict[str, str]:
    inserts = {**fact.words[language], "value": value, "Value": value[:1].upper() + value[1:]}
    if "of_value" in inserts:
        inserts["of_value"] = add_genitive(value)
    if fact.what in POPULATIONS:
        people = int(value)
        decimals = rng.choice([0, 1]) if people >= 10_000_000 else 1
        inserts["value"] = word_number(people, language, decimals=decimals)
        inserts["exact"] = write_exact(people, language)
        inserts["year"] = (fact.date or "")[:4]
    return inserts
