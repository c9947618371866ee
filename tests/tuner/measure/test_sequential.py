from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.errors import DataError, JobError
from tuner.measure.order import draw_order
from tuner.measure.sequential import BettingCapital, SequentialTest
from tuner.measure.statistics import paired_proportions_bound
from tuner.results import Decision

POPULATIONS = {
    "drops": [-1.0, 0.0, 0.0, 0.0, 1.0, 1.0],
    "edge": [-1.0, -1.0, -1.0, 0.0, 1.0],  # orders that end in -1s run into the edge of the range
    "real": [-0.93, -0.4, 0.11, 0.27, 0.5, 0.71],
}


def drops(population: int, lost: int, gained: int) -> NDArray[np.float64]:
    return np.concatenate([np.ones(lost), -np.ones(gained), np.zeros(population - lost - gained)])


def mean_capital(values: list[float], threshold: float) -> NDArray[np.float64]:
    """Exact expectation of the capital after each draw: all orders, each once."""
    orders = list(itertools.permutations(values))
    capital = np.zeros(len(values))
    for order in orders:
        capital += np.exp(BettingCapital(np.ones(len(values)), threshold, -1.0, 1.0).update(np.array(order)))
    return capital / len(orders)


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_capital_is_a_martingale_at_the_true_mean(name: str, sign: float) -> None:
    values = [sign * v for v in POPULATIONS[name]]
    np.testing.assert_allclose(mean_capital(values, sum(values) / len(values)), 1.0, rtol=1e-9)


@pytest.mark.parametrize("name", POPULATIONS)
def test_capital_falls_below_and_grows_above_the_threshold(name: str) -> None:
    values = POPULATIONS[name]
    mean = sum(values) / len(values)
    assert (np.diff(np.concatenate([[1.0], mean_capital(values, mean + 0.1)])) < 0).all()
    assert (np.diff(np.concatenate([[1.0], mean_capital(values, mean - 0.05)]))[:3] > 0).all()


def test_blocks_do_not_change_the_capital() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 200)
    whole = BettingCapital(np.ones(250), 0.05, -1.0, 1.0).update(values)
    parts = BettingCapital(np.ones(250), 0.05, -1.0, 1.0)
    pieces = np.concatenate([parts.update(piece) for piece in np.split(values, [1, 2, 50, 51, 160])])
    np.testing.assert_allclose(pieces, whole, rtol=1e-10, atol=1e-12)


def wrong_rate(values: NDArray[np.float64], threshold: float, wrong: Decision, alpha: float, runs: int) -> float:
    rng = np.random.default_rng(11)
    verdicts = [SequentialTest(values.size, threshold, -1.0, 1.0, alpha).update(rng.permutation(values)) for _ in range(runs)]
    assert "undecided" not in verdicts
    return verdicts.count(wrong) / runs


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        (drops(1000, 31, 20), "met"),
        (drops(1000, 30, 20), "missed"),
        (drops(1000, 11, 0), "met"),
        (drops(1000, 10, 0), "missed"),
        (drops(600, 156, 149), "met"),
        (drops(600, 155, 149), "missed"),
        (np.linspace(-0.4, 0.4, 400) + 0.0101, "met"),
        (np.linspace(-0.4, 0.4, 400) + 0.0099, "missed"),
    ],
    ids=["above", "tie", "lost-above", "lost-tie", "noisy-above", "noisy-tie", "real-above", "real-below"],
)
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_borderline_populations_are_rarely_misjudged(values: NDArray[np.float64], wrong: Decision, alpha: float) -> None:
    """Threshold 0.01 and a mean one row off it: the worst case. Slack is 2.6 standard errors of the simulation."""
    runs = 400
    assert wrong_rate(values, 0.01, wrong, alpha, runs) <= alpha + 2.6 * math.sqrt(alpha * (1 - alpha) / runs)


def stopping_samples(values: NDArray[np.float64], threshold: float, runs: int = 100) -> tuple[float, float]:
    """Mean number of values until the verdict, looked at after each, and the share of "met"."""
    rng = np.random.default_rng(5)
    seen, met = [], 0
    for _ in range(runs):
        test = SequentialTest(values.size, threshold, -1.0, 1.0, 0.05)
        order = rng.permutation(values)
        for block in np.split(order, range(25, values.size, 25)):
            if test.update(block) != "undecided":
                break
        seen.append(test.seen)
        met += test.decision == "met"
    return float(np.mean(seen)), met / runs


def test_a_lossless_candidate_stops_early() -> None:
    """Drop 0 with 2% discordant rows, threshold 0.0086: about 1200 of 3000 rows."""
    seen, met = stopping_samples(drops(3000, 30, 30), 0.0086)
    assert seen < 1300
    assert met >= 0.97


@pytest.mark.parametrize(
    ("lost", "gained", "at_most", "met"),
    [(6, 6, 750, True), (0, 0, 500, True), (45, 0, 2200, False), (300, 120, 800, False), (900, 0, 60, False)],
)
def test_clear_candidates_stop_early(lost: int, gained: int, at_most: int, met: bool) -> None:
    seen, share_met = stopping_samples(drops(3000, lost, gained), 0.0086, runs=40)
    assert seen < at_most
    assert (share_met >= 0.95) if met else (share_met <= 0.05)


def test_without_losses_it_needs_little_more_than_the_exact_test() -> None:
    """Were 26 of 3000 rows lost, drawing none of them in T rows has probability below 0.05 from T = 325 on;
    what averaging over the bets costs is the price of not knowing that there will be no loss."""
    test = SequentialTest(3000, 26 / 3000, -1.0, 1.0, 0.05)
    while test.update(np.zeros(1)) == "undecided":
        pass
    assert test.decision == "met"
    assert 325 <= test.seen <= 480


def test_what_is_left_cannot_change_the_verdict() -> None:
    """alpha so small that no bet can decide: 4 of 10 lost is above 0.3 only when the rest could not make up for it."""
    test = SequentialTest(10, 0.3, 0.0, 1.0, 1e-12)
    assert [test.update(np.array([v])) for v in (1.0, 1.0, 0.0, 1.0)] == ["undecided"] * 4
    assert test.update(np.ones(1)) == "missed"

    test = SequentialTest(10, 0.3, 0.0, 1.0, 1e-12)
    assert test.update(np.zeros(6)) == "undecided"
    assert test.update(np.zeros(1)) == "met"


@pytest.mark.parametrize(("last", "verdict"), [(0.0, "met"), (1.0, "missed")])
def test_the_last_value_decides_exactly_and_a_tie_is_met(last: float, verdict: Decision) -> None:
    """Threshold 0.07, 7 of 99 lost and alpha so small that only the end can decide; 0.07 · 100 is 7.000000000000001 in floats."""
    test = SequentialTest(100, 0.07, 0.0, 1.0, 1e-30)
    assert test.update(np.repeat([0.0, 1.0], [92, 7])) == "undecided"
    assert test.update(np.array([last])) == verdict
    assert (test.seen, test.mean) == (100, (7 + last) / 100)


def test_a_verdict_stays() -> None:
    test = SequentialTest(400, 0.01, -1.0, 1.0, 0.05)
    assert test.update(np.ones(20)) == "missed"
    assert test.update(-np.ones(300)) == "missed"
    assert (test.decision, test.seen, test.mean) == ("missed", 320, -280 / 320)


def test_a_crossing_inside_a_block_counts() -> None:
    """Capital that peaks in the middle of a block and is lost again at its end has still proved the point."""
    values = np.concatenate([np.ones(20), -np.ones(60)])
    log_capital = BettingCapital(np.ones(400), 0.01, -1.0, 1.0).update(values)
    assert log_capital.max() > math.log(20) > log_capital[-1]
    assert SequentialTest(400, 0.01, -1.0, 1.0, 0.05).update(values) == "missed"


@pytest.mark.parametrize(("threshold", "verdict"), [(1.0, "met"), (1.5, "met"), (-1.0, "undecided"), (-1.01, "missed")])
def test_thresholds_at_the_edge_of_the_range(threshold: float, verdict: Decision) -> None:
    assert SequentialTest(50, threshold, -1.0, 1.0, 0.05).decision == verdict


def test_threshold_at_the_lower_edge_falls_with_the_first_better_value() -> None:
    test = SequentialTest(50, -1.0, -1.0, 1.0, 0.05)
    assert test.update(-np.ones(20)) == "undecided"
    assert test.update(np.zeros(1)) == "missed"
    whole = SequentialTest(50, -1.0, -1.0, 1.0, 0.05)
    assert whole.update(-np.ones(50)) == "met"


def test_seen_and_mean_run_along() -> None:
    test = SequentialTest(10, 0.5, -1.0, 1.0, 0.05)
    assert (test.seen, test.decision) == (0, "undecided")
    assert math.isnan(test.mean)
    assert test.update(np.array([])) == "undecided"
    test.update(np.array([1.0, 0.0, 0.0, 0.0]))
    assert (test.seen, test.mean) == (4, 0.25)


def test_it_saves_rows_where_the_fixed_bound_would_have_said_the_same() -> None:
    values = drops(3000, 30, 30)
    assert paired_proportions_bound(30, 30, 3000, 0.95).upper < 0.0086
    assert stopping_samples(values, 0.0086, runs=20)[0] < 0.5 * values.size


def test_impossible_input_is_refused() -> None:
    with pytest.raises(JobError, match=r"needs population >= 1, low < high and alpha .*, got population=0, .*use low=-1 and high=1"):
        SequentialTest(0, 0.01, -1.0, 1.0, 0.05)
    with pytest.raises(JobError, match="low=1, high=1"):
        SequentialTest(10, 0.01, 1, 1, 0.05)
    with pytest.raises(JobError, match="alpha=1"):
        SequentialTest(10, 0.01, -1.0, 1.0, 1)
    test = SequentialTest(10, 0.01, -1.0, 1.0, 0.05)
    with pytest.raises(DataError, match=r"values must lie in \[-1\.0, 1\.0\], got values from 0\.0 to 2\.0"):
        test.update(np.array([0.0, 2.0]))
    with pytest.raises(DataError, match=r"values must lie in"):
        test.update(np.array([np.nan]))
    with pytest.raises(DataError, match=r"a population of 10 values was announced, got 11\. Draw without replacement"):
        test.update(np.zeros(11))


@pytest.mark.parametrize("threshold", [0.25, 0.5])
def test_weighted_capital_is_a_martingale_at_the_true_mean(threshold: float) -> None:
    """The expected capital over every order of drawing, each with its probability, is 1 at the mean and at most 1 above it."""
    values, weights = np.array([1.0, 0.0, -1.0, 1.0, 0.0]), np.array([5.0, 1.0, 2.0, 1.0, 3.0])
    at_mean = above = 0.0
    for order in itertools.permutations(range(5)):
        drawn = weights[list(order)]
        probability = float(np.prod(drawn / np.cumsum(drawn[::-1])[::-1]))
        at_mean += probability * float(np.exp(BettingCapital(drawn, values.mean(), -1.0, 1.0).update(values[list(order)])[2]))
        above += probability * float(np.exp(BettingCapital(drawn, threshold, -1.0, 1.0).update(values[list(order)])[2]))
    assert at_mean == pytest.approx(1.0, abs=1e-9)
    assert above < 1.0


def _weighted_verdicts(values: np.ndarray, weights: np.ndarray, threshold: float, runs: int) -> list[tuple[str, int]]:
    found = []
    for seed in range(runs):
        draw = draw_order(weights, seed)
        test = SequentialTest(len(values), threshold, -1.0, 1.0, 0.05, draw.weights)
        for first in range(0, len(values), 50):
            if test.update(values[draw.rows[first : first + 50]]) != "undecided":
                break
        found.append((test.decision, test.seen))
    return found


def _flips_of_narrow_rows(lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    """3,000 rows of which the first 300 are those that may flip, as their weights say."""
    values, weights = np.zeros(3000), np.ones(3000)
    values[:lost], values[lost : lost + gained] = 1.0, -1.0
    weights[:300] = 8.0
    return values, weights


@pytest.mark.parametrize(("lost", "wrong"), [(57, "met"), (55, "missed")])
def test_weighted_drawing_keeps_the_error_rate(lost: int, wrong: str) -> None:
    """One row on either side of the threshold: wrong verdicts stay within alpha (and 2.6 standard errors of 300 runs)."""
    values, weights = _flips_of_narrow_rows(lost, 30)
    verdicts = [verdict for verdict, _ in _weighted_verdicts(values, weights, 26 / 3000, 300)]
    assert verdicts.count(wrong) / 300 <= 0.05 + 2.6 * (0.05 * 0.95 / 300) ** 0.5


def test_weighted_drawing_needs_fewer_rows_where_the_weights_are_right() -> None:
    values, weights = _flips_of_narrow_rows(45, 35)
    weighted = np.mean([seen for _, seen in _weighted_verdicts(values, weights, 26 / 3000, 40)])
    alike = np.mean([seen for _, seen in _weighted_verdicts(values, np.ones(3000), 26 / 3000, 40)])
    assert weighted < 0.75 * alike
