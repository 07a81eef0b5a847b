"""Where an arm's name stands beside its point, so that names, points and whiskers keep clear of one another.

A name at its point is read at once; a key is looked up. So names stand at their points wherever there is room
on the narrowest page, and a page that is wider only has more of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thumbtune.evaluation.comparison_record import Interval
from thumbtune.evaluation.wording import write_label


def place_names(
    names: Sequence[str],
    crosses: Sequence[tuple[Interval, Interval]],
    x_range: Sequence[float],
    y_range: Sequence[float],
    size: tuple[float, float] = (270.0, 340.0),
) -> list[dict[str, Any]] | None:
    """An annotation for each name at its cross of whiskers, so that nothing overlaps on the narrowest page.

    Greedy, in pixels of a plot of `size`: what fits there fits on any wider one. None asks for a key instead.
    """

    def across(x: float) -> float:
        return (x - x_range[0]) / (x_range[1] - x_range[0]) * size[0]

    def up(y: float) -> float:
        return (y - y_range[0]) / (y_range[1] - y_range[0]) * size[1]

    taken = []
    for kl, gain in crosses:
        x, y = across(kl.mean), up(gain.mean)
        left, right = (across(end) for end in _ends(kl))
        bottom, top = (up(end) for end in _ends(gain))
        taken += [(x - 7, y - 7, x + 7, y + 7), (left, y - 3, right, y + 3), (x - 3, bottom, x + 3, top)]
    annotations = []
    for name, (kl, gain) in zip(names, crosses, strict=True):
        lines = write_label(name).split("<br>")
        wide, high = 7.0 * max(map(len, lines)), 16.0 * len(lines)
        for x, y, side, rise in _seats(kl, gain):
            left = across(x) + 9 * side - wide * (1 - side) / 2
            bottom = up(y) + 7 * rise - high * (1 - rise) / 2
            box = (left, bottom, left + wide, bottom + high)
            inside = box[0] >= -8 and box[1] >= 0 and box[2] <= size[0] + 12 and box[3] <= size[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                anchors = {-1: ("right", "top"), 0: ("center", "middle"), 1: ("left", "bottom")}
                annotations.append(
                    {
                        "x": x,
                        "y": 100 * y,
                        "text": "<br>".join(lines),
                        "xanchor": anchors[side][0],
                        "yanchor": anchors[rise][1],
                        "xshift": 7 * side,
                        "yshift": 4 * rise,
                        "align": anchors[side][0],
                        "showarrow": False,
                        "borderpad": 0,
                    }
                )
                break
        else:
            return None
    return annotations


def _seats(kl: Interval, gain: Interval) -> list[tuple[float, float, int, int]]:
    """Where a name may stand, best first: in a corner of its cross, else beyond the end of a whisker.

    Each is an anchor (x, y) and the direction from it: -1 is left or down, 1 is right or up.
    """
    (left, right), (bottom, top) = _ends(kl), _ends(gain)
    x, y = kl.mean, gain.mean
    corners = [(x, y, side, rise) for side in (1, -1) for rise in (1, -1)]
    beyond = [(right, y, 1, 0), (x, top, 0, 1), (x, bottom, 0, -1), (left, y, -1, 0)]
    leaning = [(x, end, side, rise) for end, rise in ((top, 1), (bottom, -1)) for side in (1, -1)]
    return corners + beyond + leaning


def _ends(interval: Interval) -> tuple[float, float]:
    low, high = interval.low, interval.high
    return interval.mean if low is None else low, interval.mean if high is None else high


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
