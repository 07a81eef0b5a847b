"""Turkish by rule: casing with dotted and dotless i, and the suffixes that proper names and numbers take.

Suffixes follow vowel harmony with the last vowel, and stand behind an apostrophe: Ankara'nın, İzmir'de, 38'in.
What the rule cannot see is pronunciation: a few names that end in a palatal l take front vowels (Nepal'in).
"""

from __future__ import annotations

_VOWELS = "aeıioöuüâîûáéíóúã"
_FRONT = set("eiöüîéí")
_ROUND = set("oöuüûóú")
_VOICELESS = set("fstkçşhp")
_PALATAL_L = {"nepal", "senegal", "portugal", "montreal"}
_COMPOUND_ENDINGS = ("leri", "ları", "yeti", "inesi")
"""Endings of names that already carry a possessive, so that a case suffix takes an n: Dominik Cumhuriyeti'nde."""

_ONES = ["sıfır", "bir", "iki", "üç", "dört", "beş", "altı", "yedi", "sekiz", "dokuz"]
_TENS = ["", "on", "yirmi", "otuz", "kırk", "elli", "altmış", "yetmiş", "seksen", "doksan"]


def lower_turkish(text: str) -> str:
    """Lower case with I → ı and İ → i, which `str.lower` gets wrong."""
    return text.replace("İ", "i").replace("I", "ı").lower()


def upper_turkish(text: str) -> str:
    """Upper case with i → İ and ı → I, which `str.upper` gets wrong."""
    return text.replace("i", "İ").replace("ı", "I").upper()


def capitalize_turkish(text: str) -> str:
    """The text with its first letter in upper case and the rest untouched."""
    return upper_turkish(text[:1]) + text[1:]


def add_genitive(name: str) -> str:
    """The name with its genitive: Ankara'nın, İzmir'in, İstanbul'un, Ordu'nun."""
    return f"{name}'{_genitive_of(name)}"


def add_locative(name: str) -> str:
    """The name with its locative: Ankara'da, İzmir'de, Uşak'ta, Dominik Cumhuriyeti'nde."""
    spoken = lower_turkish(name)
    compound = " " in spoken and spoken.endswith(_COMPOUND_ENDINGS)
    consonant = "nd" if compound else ("t" if spoken[-1] in _VOICELESS else "d")
    return f"{name}'{consonant}{'e' if _ends_in_front(spoken) else 'a'}"


def add_genitive_to_number(number: int) -> str:
    """The number with the genitive of its last spoken word: 38'in, 6'nın, 40'ın, 100'ün."""
    return f"{number}'{_genitive_of(last_spoken_word(number))}"


def last_spoken_word(number: int) -> str:
    """The last word of a whole number read aloud: 38 → sekiz, 40 → kırk, 1200 → yüz, 5000 → bin."""
    magnitude = abs(number)
    if magnitude % 10 or magnitude == 0:
        return _ONES[magnitude % 10]
    if magnitude % 100:
        return _TENS[magnitude % 100 // 10]
    if magnitude % 1000:
        return "yüz"
    return "bin" if magnitude % 1_000_000 else "milyon"


def _genitive_of(word: str) -> str:
    spoken = lower_turkish(word)
    vowel = _last_vowel(spoken)
    front, rounded = _ends_in_front(spoken), vowel in _ROUND
    harmony = ("ü" if rounded else "i") if front else ("u" if rounded else "ı")
    return f"n{harmony}n" if spoken[-1] in _VOWELS else f"{harmony}n"


def _ends_in_front(spoken: str) -> bool:
    return spoken in _PALATAL_L or _last_vowel(spoken) in _FRONT


def _last_vowel(spoken: str) -> str:
    for letter in reversed(spoken):
        if letter in _VOWELS:
            return letter
    return "e"
