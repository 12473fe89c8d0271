"""Numbers and strings as people read them, and the scales of charts."""

import math

import pytest

from checkpoints.inspect.readable import amount, number, one_line, percent, plain, size, visible_token
from checkpoints.inspect.scales import Scale, linear_scale, step_scale, value_scale


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (4096, "4,096"), (9999, "9,999"), (10_000, "10.0K"), (999_600, "1.00M"), (4_194_304, "4.19M"), (1_282_017_280, "1.28B"), (5.1e12, "5.10T"), (0.5, "0.5000")],
)  # fmt: skip
def test_counts_get_three_digits_and_a_unit(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    "value, text",
    [(None, "\u2013"), (0, "0"), (1, "1.000"), (0.5, "0.5000"), (123.456, "123.5"), (12_345.678, "12,346"), (-0.00123, "-0.001230"), (1e-5, "1.00e-5"), (2.5e9, "2.50e9")],
)  # fmt: skip
def test_measured_numbers_keep_their_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_and_sizes_have_units() -> None:
    assert (percent(0.1234), percent(1.0), percent(None)) == ("12.3%", "100%", "\u2013")
    assert (size(512), size(34_812_723), size(None)) == ("512 B", "33.2 MiB", "\u2013")


def test_nothing_invisible_survives_in_a_string() -> None:
    hostile = "a\x1b[2J\x00\u202egnp\u200b\ud800\x9b\n\tb"
    assert plain(hostile) == "a\\x1b[2J\\x00\\u202egnp\\u200b\\ud800\\x9b\n\tb"
    assert one_line(hostile).endswith("\\n\\tb")
    one_line(hostile).encode()


def test_blanks_of_a_token_are_shown() -> None:
    assert visible_token(" the\n\t") == "\u00b7the\u21b5\u21e5"
    assert visible_token("") == "\u2013"


def test_log_spaced_steps_get_a_logarithmic_axis_that_has_a_zero() -> None:
    scale = step_scale([0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300])
    assert scale.is_log
    assert scale.has_zero
    places = [scale.place(step) for step in (0, 1, 10, 300)]
    assert places[0] == 0
    assert places[-1] == 1
    assert places == sorted(places)
    assert math.isclose(scale.place(10) - scale.place(1), scale.place(100) - scale.place(10))
    assert scale.labels(scale.ticks()) == ["0", "1", "10", "100"]


def test_evenly_spaced_steps_get_a_linear_axis() -> None:
    scale = step_scale(range(0, 6001, 500))
    assert not scale.is_log
    assert scale.place(3000) == 0.5


@pytest.mark.parametrize(
    "scale", [linear_scale([3.901, 3.922]), linear_scale([0.0, 1.0]), linear_scale([7.0]), value_scale([1e-7, 2e-7]), value_scale([1e-5, 3.0]), linear_scale([]), Scale(3, 3e5, is_log=True), linear_scale([-2.0, 5e6])]
)  # fmt: skip
def test_ticks_lie_on_the_axis_and_differ(scale: Scale) -> None:
    ticks = scale.ticks()
    labels = scale.labels(ticks)
    assert 2 <= len(ticks) <= 8
    assert len(set(labels)) == len(labels)
    assert all(-1e-9 <= scale.place(tick) <= 1 + 1e-9 for tick in ticks)
