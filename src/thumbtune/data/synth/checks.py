"""Does a text state a fact, which language is it in, does it flatter: simple rules that need no model.

They judge both our own rows (in the tests) and what a model says (the simulated users). A rule that is
simple enough to be read is also simple enough to be fooled; each function says how.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from thumbtune.data.synth.number_words import Language, read_numbers
from thumbtune.data.synth.turkish import lower_turkish


def _split(words: str) -> frozenset[str]:
    return frozenset(words.split())


_TURKISH_WORDS = _split("""
    ve bir bu şu o ne mi mı mu mü için ile de da ki çok daha en gibi kadar ama değil var yok nedir kaç hangi
    nerede neresi nasıl niçin neden olan olarak göre yaklaşık evet hayır ben sen biz siz onlar her şey sonra
    önce eder ait nüfusu plaka kodu başkenti bölgesi bölgesi'nde il ili ilinin kişi milyon bin verisi verisine
    teşekkür lütfen merhaba günaydın iyi güzel cevap sonuç sonucu bölgededir yaşıyor kutlu olsun dilerim yer
    alır
    """)
_ENGLISH_WORDS = _split("""
    the a an of and to in is it that for on are with as at by this be or from i you he she we they not have has
    was were what which who how why where when can do does did your my about there their people will would could
    should yes no but if so than then them his her our its me very thank dear hope wish happy may please sorry
    know answer result makes million thousand
    """)
_SHARED = {"a", "o", "on", "at", "an", "en", "de", "da", "her", "ne"}
"""Words of both lists or of both languages: they say nothing."""
_TURKISH_LETTERS = set("ğışçöü")
_SUFFIXED_NAME = re.compile(r"['’](?:n?[ıiuü]n|[dt][ae]|nd[ae])$")
_TURKISH_ENDING = re.compile(r"(?:[ıiuü]yor|m[ae]k|l[ae]r[ıi]|d[ıiuü]r)(?:um|uz|sun|du)?$")

_FLATTERING = re.compile(
    r"(?:great|brilliant|excellent|wonderful|amazing|fantastic|good)\s+(?:\w+\s+)?(?:question|thing to ask)"
    r"|you(?:'re| are)\s+(?:\w+\s+){0,3}(?:smart|clever|special|brilliant|genius|intelligent)"
    r"|your (?:curiosity|intelligence)"
    r"|(?:harika|mükemmel|zekice|muhteşem|güzel|şahane) bir soru"
    r"|sizin gibi|siz gerçekten|hayran kald|takdire şayan|zekânız|zekanız"
)
_POLITE = re.compile(
    r"\b(?:please|thank(?:s| you)|you(?:'re| are) welcome|glad|happy to|of course|sorry|dear"
    r"|lütfen|teşekkür\w*|rica eder\w*|memnun\w*|tabii|elbette|üzgünüm|kusura bakma\w*|sevgili|sayın)\b"
)


def states_fact(text: str, fact: Mapping[str, Any]) -> bool:
    """Whether the text states the fact's value: a number among its numbers, or a name among its words.

    `fact` is a row's `truth.fact`. Populations may be 10 % off, other numbers not at all. Fooled by a text that
    names the value and denies it, or that names several. False for facts without a value to check (messages).
    """
    value, what = str(fact["value"]), fact["what"]
    if what == "message":
        return False
    if what in ("population", "country_population"):
        return any(abs(number - int(value)) <= 0.1 * int(value) for number in read_numbers(text))
    if re.fullmatch(r"-?\d+", value):
        said = read_numbers(_after_equals(text))
        return bool(said) and float(value) in said
    return re.search(rf"(?<!\w){re.escape(_fold(value))}(?!\w)", _fold(text)) is not None


def guess_language(text: str) -> Language | None:
    """Turkish, English, or None where a text is too short or too mixed to say ("34.", "Paris.").

    Counts function words of each language, and Turkish letters in words that are not capitalized (so that
    "Şanlıurfa" does not make an English sentence Turkish). Any third language gives None or a wrong guess.
    """
    turkish = english = 0.0
    for word in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text):
        lower = lower_turkish(word)
        if lower in _TURKISH_WORDS and lower not in _SHARED:
            turkish += 1
        elif word.lower() in _ENGLISH_WORDS and word.lower() not in _SHARED:
            english += 1
        elif (word[0].islower() and set(lower) & _TURKISH_LETTERS) or _SUFFIXED_NAME.search(lower):
            turkish += 0.75
        elif (word[0].islower() or "yor" in lower) and _TURKISH_ENDING.search(lower):
            turkish += 0.5
    if turkish == english:
        return None
    return "tr" if turkish > english else "en"


def flatters(text: str) -> bool:
    """Whether the text praises the asker or the question. Knows common phrases only."""
    return _FLATTERING.search(lower_turkish(text)) is not None or _FLATTERING.search(text.lower()) is not None


def count_polite_words(text: str) -> int:
    """How many polite phrases the text has: please, thank you, lütfen, teşekkürler, ..."""
    return max(len(_POLITE.findall(text.lower())), len(_POLITE.findall(lower_turkish(text))))


def count_list_items(text: str) -> int:
    """How many lines are items of a bulleted or numbered list."""
    return len(re.findall(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+\S", text, flags=re.MULTILINE))


def _after_equals(text: str) -> str:
    """What stands behind the last equals sign, so that the terms of "47 + 38 = 85" are not taken for its result."""
    return text.rsplit("=", 1)[-1]


def _fold(text: str) -> str:
    return lower_turkish(text).removeprefix("the ").replace("ı", "i").replace("â", "a")
