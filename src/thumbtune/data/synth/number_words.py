"""Numbers as people write them, in Turkish and in English: "15,7 milyon", "about 605 thousand", "15.655.924"."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["tr", "en"]

_SCALES = {
    "milyar": 1e9,
    "billion": 1e9,
    "milyon": 1e6,
    "million": 1e6,
    "bin": 1e3,
    "thousand": 1e3,
}
_NUMBER = re.compile(
    r"(?<![\w.,])(-?\d+(?:[.,]\d+)*)(?:\s+(" + "|".join(_SCALES) + r")\b)?", flags=re.IGNORECASE
)


def word_number(number: float, language: Language, *, decimals: int = 1) -> str:
    """A rounded number with its scale: 15655924 → "15,7 milyon" or "15.7 million", 604978 → "605 bin".

    `decimals` counts those of a million; thousands are whole, and numbers under 1,000 are written out.
    """
    million, thousand = ("milyon", "bin") if language == "tr" else ("million", "thousand")
    if number >= 999_500:
        digits = f"{number / 1e6:.{decimals}f}"
        digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return f"{digits.replace('.', ',') if language == 'tr' else digits} {million}"
    if number >= 1_000:
        return f"{number / 1e3:.0f} {thousand}"
    return f"{number:.0f}"


def write_exact(number: int, language: Language) -> str:
    """A whole number with the language's thousands mark: 15.655.924 or 15,655,924."""
    grouped = f"{number:,}"
    return grouped.replace(",", ".") if language == "tr" else grouped


def read_numbers(text: str) -> list[float]:
    """All numbers of a text, scale words included: "Yaklaşık 5,6 milyon" → [5600000.0].

    A mark followed by exactly three digits parts thousands ("15.655.924", "1,500"); any other is a decimal
    mark. So "1,500" is read as fifteen hundred in either language.
    """
    found = []
    for digits, scale in _NUMBER.findall(text):
        if re.fullmatch(r"-?\d{1,3}(?:[.,]\d{3})+", digits):
            value = float(re.sub(r"[.,]", "", digits))
        elif digits.count(".") + digits.count(",") > 1:
            continue
        else:
            value = float(digits.replace(",", "."))
        found.append(value * _SCALES.get(scale.lower(), 1.0))
    return found
