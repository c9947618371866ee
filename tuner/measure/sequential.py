"""A test that may be looked at after every sample: is the mean of a finite population above a threshold or not?

Rows are scored in random order without replacement, so the question is what ALL rows would say, and the doubt vanishes as
they are used up (Waudby-Smith and Ramdas, arXiv:2006.04347 and arXiv:2010.09686, on betting when sampling without replacement).
Rows may be drawn with unequal probabilities (Shekhar et al., 2023, arXiv:2305.06884, on weighted sampling without replacement).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tuner.errors import DataError, JobError
from tuner.results import Decision

BETS = np.geomspace(0.03, 0.9, 10)
"""Shares of the largest bet that cannot go bankrupt. Few discordant rows call for bets near 1, noisy ones for small bets."""
PRIOR = np.sqrt(BETS) / np.sqrt(BETS).sum()
LARGEST_BET = 0.99
CERTAIN = 1e-12
"""Room, as a share of the range, below which the conditional mean counts as lying on the edge of the range."""


class BettingCapital:
    """Capital of a gambler who starts with 1 and bets that the mean of the population is above `threshold`.

    While the mean is `threshold` the capital is a martingale, below it a supermartingale: by Ville's inequality it ever reaches
    1/alpha with probability at most alpha. It is the average over the bets g in BETS of Π (1 + g_t (f_t x_t - m_t) / (m_t - F_t low)).
    Here f_t = 1 / (N q_t) for a row drawn with probability q_t from the rest, F_t is the largest that f_t could have been, and
    m_t = m - Σ_{i<t} x_i / N is the mean of f_t x_t if the mean of all is m. With equal weights f_t = (N - t + 1) / N, which gives the
    test of arXiv:2010.09686. The bets grow by N / (N - t + 1), as the distance of m_t from the truth does. All of it is known
    before x_t is drawn."""

    def __init__(self, weights: NDArray[np.float64], threshold: float, low: float, high: float) -> None:
        """weights: of all rows in the order they are drawn, shape [population]."""
        self._population = N = len(weights)
        self._threshold = threshold
        self._low = low
        self._tolerance = CERTAIN * (high - low)
        left = np.cumsum(weights[::-1])[::-1]
        self._f = left / (N * weights)
        self._largest_f = left / (N * np.minimum.accumulate(weights[::-1])[::-1])
        self._growth_of_bets = N / (N - np.arange(N))
        self._seen = 0
        self._sum = 0.0
        self._log_wealth = np.log(PRIOR)

    def update(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """values: shape [block], at least one. Returns the logarithm of the capital after each of them, shape [block]."""
        block = slice(self._seen, self._seen + values.size)
        sums = self._sum + np.cumsum(values)
        m = self._threshold - np.concatenate(([self._sum], sums[:-1])) / self._population
        room = m - self._largest_f[block] * self._low
        # Without room everything left must equal `low` under the hypothesis: nothing can be won or lost by betting.
        possible = room > self._tolerance * self._largest_f[block]
        growth = np.where(possible, (self._f[block] * values - m) / np.where(possible, room, 1.0), 0.0)
        g = np.minimum(BETS[:, None] * self._growth_of_bets[block], LARGEST_BET)
        log_wealth = self._log_wealth[:, None] + np.cumsum(np.log1p(g * growth), axis=1)
        self._seen += values.size
        self._sum = float(sums[-1])
        self._log_wealth = log_wealth[:, -1]
        top = log_wealth.max(axis=0)
        return np.asarray(top + np.log(np.exp(log_wealth - top).sum(axis=0)))


class SequentialTest:
    """Anytime-valid test of whether the mean of `population` drops in [low, high], drawn in random order without replacement,
    is at most `threshold` ("met"; a tie is met) or above it ("missed").

    Either wrong verdict has probability at most `alpha`, however often and whenever it is looked at. Verdicts that what is left
    cannot change, and those after the last value, are exact. The first verdict stays. JobError where an argument is impossible.

    weights: shape [population], in the order of drawing, where each row was drawn with probability proportional to its weight;
    left out: all alike."""

    def __init__(
        self, population: int, threshold: float, low: float, high: float, alpha: float, weights: NDArray[np.float64] | None = None
    ) -> None:
        if population < 1 or not low < high or not 0 < alpha < 1:
            raise JobError(
                "a sequential test needs population >= 1, low < high and alpha between 0 and 1, got "
                f"population={population}, low={low}, high={high} and alpha={alpha}. For drops in accuracy use low=-1 and high=1."
            )
        self._population, self._threshold, self._low, self._high = population, threshold, low, high
        self._log_bar = math.log(1 / alpha)
        weights = np.ones(population) if weights is None else weights
        self._above = BettingCapital(weights, threshold, low, high)
        self._below = BettingCapital(weights, -threshold, -high, -low)
        self._sum = 0.0
        self.seen = 0
        self.decision: Decision = "undecided"
        if threshold >= high:
            self.decision = "met"
        elif threshold < low:
            self.decision = "missed"

    @property
    def mean(self) -> float:
        """Mean of the values seen; nan before the first."""
        return self._sum / self.seen if self.seen else math.nan

    def update(self, values: NDArray[np.float64]) -> Decision:
        """Take the next values of the random order, shape [block], and return the verdict so far.

        DataError where a value lies outside [low, high] or there are more values than the population holds."""
        block = np.asarray(values, dtype=np.float64)
        self._check(block)
        if block.size == 0:
            return self.decision
        sums = self._sum + np.cumsum(block)
        if self.decision == "undecided":
            self.decision = self._decide(block, sums)
        self._sum = float(sums[-1])
        self.seen += block.size
        return self.decision

    def _decide(self, block: NDArray[np.float64], sums: NDArray[np.float64]) -> Decision:
        left = self._population - self.seen - 1 - np.arange(block.size)
        surely_met = (sums + left * self._high) / self._population <= self._threshold
        surely_missed = (sums + left * self._low) / self._population > self._threshold
        # No value can do both: "met" is first reached by a value below the conditional mean, "missed" by one above it.
        met = surely_met | (self._below.update(-block) >= self._log_bar)
        missed = surely_missed | (self._above.update(block) >= self._log_bar)
        decided = met | missed
        if not decided.any():
            return "undecided"
        return "met" if met[int(decided.argmax())] else "missed"

    def _check(self, block: NDArray[np.float64]) -> None:
        if self.seen + block.size > self._population:
            raise DataError(
                f"a population of {self._population} values was announced, got {self.seen + block.size}. "
                "Draw without replacement, or announce the number of rows that there are."
            )
        if not np.all((block >= self._low) & (block <= self._high)):
            raise DataError(
                f"values must lie in [{self._low}, {self._high}], got values from {block.min()} to {block.max()}. "
                "Give the test the range of the metric's differences."
            )
