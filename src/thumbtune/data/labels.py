"""What people write for 👍 and 👎, read as True and False; anything else is refused, never guessed.

Both 0 and -1 mean 👎: files write ±1 or 1/0, and a file with both of them is still one question, up or not
up. A `label_map` is asked first, so that a 1-to-5 rating can say `1=false` although 1 alone would mean 👍.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thumbtune.data.refusals import WRONG_LABEL, RowRefused
from thumbtune.errors import ConfigError

_MEANINGS: dict[str, bool] = {
    **dict.fromkeys(("true", "1", "+1", "1.0", "+1.0", "up", "👍"), True),
    **dict.fromkeys(("false", "0", "-0", "0.0", "-0.0", "-1", "-1.0", "down", "👎"), False),
}
_INVISIBLE_IN_EMOJI = dict.fromkeys([0xFE0F, *range(0x1F3FB, 0x1F400)])
"""The emoji variation selector and the five skin tones."""


def parse_label(value: Any, where: str = "", label_map: Mapping[str, bool] | None = None) -> bool:
    """True for 👍, False for 👎. Raises `RowRefused` (`wrong_label`) for anything else, null and NaN too.

    Understands booleans, 1, 0, -1 and floats equal to them, these as strings, "up"/"down" and the two
    thumbs in any skin tone; case and surrounding space do not matter. `label_map` adds words, and
    outranks these.
    """
    if isinstance(value, bool) and not label_map:
        return value
    if hasattr(value, "item"):  # a NumPy or tensor scalar, as a formatted dataset gives it
        value = value.item()
    word = _write_as_word(value)
    if word is not None:
        if label_map:
            for spelling in (word, str(value)):
                if spelling in label_map:
                    return label_map[spelling]
        if word in _MEANINGS:
            return _MEANINGS[word]
    shown = "null" if value is None else f"{value!r:.40}"
    what = f"label is {shown}, expected true or false."
    if word and len(word) <= 40 and not {"=", ",", '"'} & set(word):
        what += f" Map it with --label-map {_quote_if_spaced(word)}=false"
    else:
        what += " Write true for thumbs-up and false for thumbs-down, or drop the row"
    raise RowRefused(WRONG_LABEL, where, what)


def parse_label_map(text: str) -> dict[str, bool]:
    """`"meh=false,ok=true"` as a mapping; words in lower case. Raises `ConfigError` on anything else."""
    label_map: dict[str, bool] = {}
    for item in text.split(","):
        raw, equals, meaning = item.rpartition("=")
        word = _write_as_word(raw)
        value = _MEANINGS.get(meaning.strip().lower())
        if not equals or not word or value is None:
            raise ConfigError(
                f"--label-map: {item!r} is not of the form WORD=true or WORD=false; "
                "write several with commas, as in meh=false,ok=true"
            )
        if label_map.get(word, value) is not value:
            raise ConfigError(f"--label-map: {word!r} is mapped to both true and false; keep one of the two")
        label_map[word] = value
    return label_map


def _write_as_word(value: Any) -> str | None:
    """One spelling per label: lower case, no skin tone, whole floats as integers; None for NaN else."""
    if isinstance(value, str):
        return value.translate(_INVISIBLE_IN_EMOJI).strip().lower()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else None
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    return None


def _quote_if_spaced(word: str) -> str:
    return f'"{word}"' if " " in word else word
