"""The figures: what they show of a comparison, and that they cope with what is missing."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import pytest

from thumbtune.evaluation import charts, training_charts
from thumbtune.evaluation.comparison_record import Arm, Comparison, Interval, read_comparison
from thumbtune.evaluation.name_placement import place_names
from thumbtune.evaluation.palette import DARK_OF, GREY, INK, PAPER, assign_looks
from thumbtune.evaluation.report_sections import draw_sections
from thumbtune.evaluation.wording import say_interval, say_seconds, say_up_rate, write_label


def contrast(one: str, two: str) -> float:
    """Contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(one), luminance(two)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.fixture
def read(write_run):
    """A comparison as JSON, written and read back as records."""
    return lambda comparison: read_comparison(write_run(comparison))


def test_up_rates_stand_on_an_axis_from_0_to_1_with_the_best_arm_on_top(read, comparison):
    figure = charts.draw_up_rates(read(comparison))
    assert figure.layout.xaxis.range == (0, 1)
    assert [trace.name for trace in figure.data] == [
        "Base",
        "DPO (pairs in the thumbs)",
        "DPO (bought pairs)",
        "KTO",
    ]
    assert [trace.y[0] for trace in figure.data] == [0, 1, 2, 3]
    assert all("n = 64" in text for text in figure.layout.yaxis.ticktext)


def test_a_whisker_ends_where_the_interval_ends(read, comparison):
    base = charts.draw_up_rates(read(comparison)).data[0]
    assert base.x[0] + base.error_x.array[0] == pytest.approx(0.22)
    assert base.x[0] - base.error_x.arrayminus[0] == pytest.approx(0.06)


def test_an_interval_without_ends_draws_a_dot_without_a_whisker(read, comparison):
    comparison["arms"]["kto"]["up_rate"] = 0.9
    kto = charts.draw_up_rates(read(comparison)).data[-1]
    assert (kto.name, kto.x[0], kto.error_x.visible) == ("KTO", 0.9, False)


def test_the_gain_is_the_difference_of_up_rates_with_newcombes_ends():
    # 44% (36% to 52%) against 12% (6% to 22%): 32 points,
    # low = 0.32 - sqrt(0.08^2 + 0.10^2) = 0.32 - 0.12806, high = 0.32 + sqrt(0.08^2 + 0.06^2) = 0.32 + 0.10
    arm = Arm("kto", "KTO", up_rate=Interval(0.44, 0.36, 0.52, 64))
    base = Arm("base", "Base", up_rate=Interval(0.12, 0.06, 0.22, 64))
    gain = charts.measure_gain(arm, base)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.32, 0.19194, 0.42), abs=1e-5)


def test_a_gain_that_the_comparison_measured_is_taken_as_it_is():
    measured = Interval(0.3, 0.25, 0.35, 64)
    arm = Arm("kto", "KTO", up_rate=Interval(0.44), gain=measured)
    assert charts.measure_gain(arm, Arm("base", "Base", up_rate=Interval(0.12))) is measured


def test_the_gain_stands_in_points_over_kl_with_the_base_at_the_origin(read, comparison):
    figure = charts.draw_gain_against_kl(read(comparison))
    base, kto = figure.data[0], figure.data[1]
    assert (base.name, base.x[0], base.y[0]) == ("Base", 0, 0)
    assert (kto.name, kto.y[0]) == ("KTO", pytest.approx(32))
    assert len(figure.layout.annotations) == 4


def test_without_a_base_there_is_no_gain_to_draw(read, comparison):
    del comparison["arms"]["base"]
    assert charts.draw_gain_against_kl(read(comparison)) is None


def test_names_that_would_collide_ask_for_a_key():
    crosses = [(Interval(0.01), Interval(0.1))] * 20
    assert place_names(["a rather long name"] * 20, crosses, [0, 0.1], [0, 1]) is None
    apart = [(Interval(0.02), Interval(0.2)), (Interval(0.06), Interval(0.8))]
    assert len(place_names(["one", "two"], apart, [0, 0.1], [0, 1])) == 2


def test_an_arm_has_one_colour_in_every_figure(read, comparison):
    record = read(comparison)
    colour = assign_looks(comparison["arms"])["kto"].colour
    figures = [
        charts.draw_up_rates(record),
        charts.draw_gain_against_kl(record),
        charts.draw_lengths(record),
        charts.draw_seconds(record),
        charts.draw_peak_memory(record),
        training_charts.draw_metric(record, "loss"),
    ]
    for figure in figures:
        assert {trace.marker.color for trace in figure.data if trace.name == "KTO"} == {colour}
    assert training_charts.draw_rewards(record)["kto"].data[0].marker.color == colour
    assert training_charts.draw_reward_histograms(record)["kto"].data[0].marker.color == colour


def test_the_base_is_grey_and_known_arms_keep_their_colour_in_any_company():
    alone, among = assign_looks(["kto"]), assign_looks(["novel", "base", "dpo", "kto", "ipo"])
    assert alone["kto"] == among["kto"]
    assert among["base"].colour == GREY
    assert len({(look.colour, look.symbol) for look in among.values()}) == 5


def test_fifty_arms_still_differ_in_colour_or_mark():
    looks = assign_looks([f"arm {number}" for number in range(50)])
    assert len({(look.colour, look.symbol) for look in looks.values()}) == 50


def test_every_colour_but_the_hairline_reads_on_its_paper():
    for light, dark in DARK_OF.items():
        if light in (PAPER, "#dedcd4"):
            continue
        assert contrast(light, PAPER) >= 4.5, light
        assert contrast(dark, DARK_OF[PAPER]) >= 4.5, dark


def test_bars_start_at_zero_and_leave_out_the_base(read, comparison):
    figure = charts.draw_seconds(read(comparison))
    assert figure.layout.xaxis.range[0] == 0
    assert [trace.name for trace in figure.data] == ["DPO (bought pairs)", "DPO (pairs in the thumbs)", "KTO"]


def test_a_metric_draws_a_line_for_each_arm_that_has_it(read, comparison):
    for point in comparison["arms"]["dpo"]["curve"]:
        del point["z0"]
    record = read(comparison)
    assert len(training_charts.draw_metric(record, "loss").data) == 3
    assert [trace.name for trace in training_charts.draw_metric(record, "z0").data] == [
        "KTO",
        "DPO (bought pairs)",
    ]
    assert training_charts.draw_metric(record, "auc").layout.yaxis.range == (-0.03, 1.03)


def test_a_value_that_is_not_a_number_is_left_out_of_the_line():
    arm = Arm("kto", "KTO", curve=({"step": 1, "loss": math.nan}, {"step": 2, "loss": None}, {"loss": 0.5}))
    assert training_charts.read_line(arm, "loss") == ([3], [0.5])


def test_a_long_line_is_thinned_evenly_and_keeps_both_ends():
    arm = Arm("kto", "KTO", curve=tuple({"step": step, "loss": 1.0} for step in range(1, 5001)))
    steps, values = training_charts.read_line(arm, "loss")
    assert (len(steps), len(values)) == (400, 400)
    assert (steps[0], steps[-1]) == (1, 5000)
    assert {later - earlier for earlier, later in pairwise(steps)} == {12, 13}


def test_a_histogram_shows_shares_of_each_class():
    edges, up, down = training_charts.read_histogram(
        {"edges": [0, 1, 2], "desirable": [1, 3], "undesirable": [0, 200]}
    )
    assert (edges, up, down) == ([0, 1, 2], [0.25, 0.75], [0.0, 1.0])


@pytest.mark.parametrize(
    "histogram",
    [
        None,
        {},
        {"edges": [0, 1]},
        {"edges": [0, 1, 2], "desirable": [1], "undesirable": [1, 2]},
        {"edges": [], "desirable": [], "undesirable": []},
    ],
)
def test_a_histogram_whose_parts_do_not_fit_is_not_drawn(histogram):
    assert training_charts.read_histogram(histogram) is None


def test_arms_share_one_scale_of_rewards(read, comparison):
    record = read(comparison)
    assert len({figure.layout.yaxis.range for figure in training_charts.draw_rewards(record).values()}) == 1
    histograms = training_charts.draw_reward_histograms(record).values()
    assert len({(figure.layout.xaxis.range, figure.layout.yaxis.range) for figure in histograms}) == 1


def test_a_failed_arm_is_in_no_figure_and_named_in_the_caption(read, nine_arms):
    sections = draw_sections(read(nine_arms))
    for section in sections:
        for panel in section.panels:
            assert "RPO" not in json.dumps(panel.figure.to_plotly_json())
    assert "RPO" in sections[0].caption


def test_nine_arms_draw_every_section(read, nine_arms):
    slugs = [section.slug for section in draw_sections(read(nine_arms))]
    assert slugs == ["up-rates", "gain", "curves", "rewards", "histograms", "lengths", "cost"]


def test_arms_with_nothing_in_them_draw_nothing_and_raise_nothing():
    empty = Comparison("empty", (Arm("base", "Base"), Arm("kto", "KTO"), Arm("dpo", "DPO", error="broke")))
    assert draw_sections(empty) == []


def test_a_single_arm_without_its_base_is_drawn_alone(read, comparison):
    comparison["arms"] = {"kto": comparison["arms"]["kto"]}
    slugs = [section.slug for section in draw_sections(read(comparison))]
    assert slugs == ["up-rates", "curves", "rewards", "histograms", "lengths", "cost"]


def test_rates_of_zero_and_one_and_lengths_of_zero_can_be_drawn(read, comparison):
    for arm, mean in zip(comparison["arms"].values(), (0.0, 1.0, 0.0, 1.0), strict=True):
        arm["up_rate"] = {"mean": mean, "low": mean, "high": mean, "n": 1}
        arm["length"] = {"mean": 0, "low": 0, "high": 0, "n": 1}
        arm["seconds"] = arm["peak_rss_mb"] = 0
        arm["kl_per_token"] = {"mean": 0, "low": 0, "high": 0, "n": 1}
    assert len(draw_sections(read(comparison))) == 7


def test_the_colours_of_a_figure_all_have_a_dark_partner(read, nine_arms):
    for section in draw_sections(read(nine_arms)):
        for panel in section.panels:
            colours = set(re.findall(r"#[0-9a-fA-F]{6}", json.dumps(panel.figure.to_plotly_json())))
            assert INK in colours
            assert colours <= set(DARK_OF)


def test_a_name_is_escaped_and_broken_into_short_lines():
    assert write_label("<b>x</b> & y") == "&lt;b&gt;x&lt;/b&gt; &amp; y"
    assert write_label("DPO (pairs in the thumbs)") == "DPO (pairs in the<br>thumbs)"
    assert len(write_label("word " * 50).split("<br>")) == 3


def test_numbers_are_said_with_what_is_known_of_them():
    assert say_up_rate(Interval(0.344, 0.23, 0.463, 64)) == "34% (23% to 46%), n = 64"
    assert say_up_rate(Interval(0.3444, 0.33, 0.36, 2000)) == "34.4% (33.0% to 36.0%), n = 2,000"
    assert say_up_rate(None) == "–"
    assert say_interval(Interval(0.007, -0.001, 0.015), 3) == "0.007 (−0.001 to 0.015)"
    assert say_interval(Interval(0.5)) == "0.50"
    assert [say_seconds(seconds) for seconds in (0, 8.24, 210.3, 7500, None)] == [
        "0 s",
        "8.2 s",
        "3 min 30 s",
        "2 h 05 min",
        "–",
    ]
