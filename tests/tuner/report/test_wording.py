from __future__ import annotations

import pytest

from tuner.data.metrics import METRICS
from tuner.job import COST_METRICS, Constraint
from tuner.report.wording import DropWords, duration, is_share, number, percent, quantity, ratio_words, speedup_words
from tuner.results import Interval


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.61249, "0.612"),
        (1234.6, "1,235"),
        (0.9996, "1.00"),
        (0, "0"),
        (-2.5, "−2.50"),
        (3.21e-7, "3.21e−7"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers(value: float | None, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("top1", 0.91834, "91.83 %"),
        ("mse", 0.01234, "0.0123"),
        ("latency_ms", 12.344, "12.3 ms"),
        ("size_bytes", 512, "512 B"),
        ("size_bytes", 1023.9 * 1024, "1.00 MiB"),
        ("size_bytes", 1010 * 1024, "1,010 KiB"),
        ("macs", 40_551_424, "40.6 M"),
        ("params", 950, "950"),
        ("params", None, "–"),
    ],
)
def test_quantities(metric: str, value: float | None, words: str) -> None:
    assert quantity(metric, value).replace("\u00a0", " ") == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "40 ms"), (2.04, "2.0 s"), (59.97, "1 min 0 s"), (331, "5 min 31 s"), (7265, "2 h 1 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == words


def test_ratios() -> None:
    assert ratio_words(100, 25).replace("\u00a0", " ") == "25.0 % of the original, 4.00× smaller"
    assert ratio_words(100, 150).replace("\u00a0", " ") == "150.0 % of the original, 1.50× larger"
    assert (ratio_words(100, 100), ratio_words(None, 3), ratio_words(0, 3)) == ("unchanged", "–", "–")
    assert speedup_words(Interval(value=0.5, lower=0.48, upper=0.52)).startswith("2.00× slower")
    assert percent(None) == "–"


def test_drops_are_said_in_the_unit_of_the_constraint() -> None:
    said = [
        DropWords(Constraint(metric="top1", max_drop=0.01, relative=True)).say(0.0042),
        DropWords(Constraint(metric="top1", max_drop=0.01)).say(-0.0042),
        DropWords(Constraint(metric="mse", max_drop=0.01)).say(0.0042),
        DropWords(Constraint(metric="size_bytes", at_most=1)).say(2048),
        DropWords(Constraint(metric="mse", max_drop=0.01)).say(0.0),
    ]
    assert [words.replace("\u00a0", " ") for words in said] == [
        "0.42 % worse",
        "0.42 points better",
        "0.00420 worse",
        "2.00 KiB over the limit",
        "no change",
    ]


def test_the_metrics_read_as_per_cent_are_those_between_0_and_1() -> None:
    assert {name for name in METRICS if is_share(name)} == {name for name in METRICS if METRICS[name].bounds == (0.0, 1.0)}
    assert is_share("top5")
    assert not any(is_share(name) for name in COST_METRICS)
