"""Schedules: how much of the final sparsity is reached after how many steps of training.

A schedule is a pure function of τ, the share of its window that has passed, and of the final sparsity. `Timing` lays the window over
the steps of a training and says at which of them masks are renewed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tuner.errors import PlanError
from tuner.registry import Registry

Schedule = Callable[[float, float, int], float]
"""(τ in [0, 1], final sparsity in [0, 1), rounds) -> share of the final sparsity in [0, 1]; never falls with τ, and is 1 at τ = 1."""

SCHEDULES: Registry[Schedule] = Registry("pruning schedule")


def fraction(step: int, steps: int, name: str, *, final: float = 0.5, rounds: int = 4) -> float:
    """The share of the final sparsity that the schedule `name` asks for once `step` of `steps` steps are done.

    final: the final sparsity, which only the geometric schedules depend on. rounds: those of `iterative`. Exactly 1 from the last
    step on, also where there are no steps at all."""
    if step >= steps:
        return 1.0
    return SCHEDULES[name](max(step, 0) / steps, final, rounds)


def sparsity(step: int, steps: int, name: str, final: float, *, initial: float = 0.0, rounds: int = 4) -> float:
    """The share of zeros once `step` of `steps` steps are done, from `initial` to `final`.

    With `cubic` this is s_t = s_f + (s_i − s_f)(1 − t/n)³ (Zhu and Gupta, 2017, arXiv:1710.01878, eq. 1)."""
    return initial + (final - initial) * fraction(step, steps, name, final=final, rounds=rounds)


@SCHEDULES.register("one-shot")
def one_shot(_tau: float, _final: float, _rounds: int) -> float:
    """Everything at once, before the first step."""
    return 1.0


@SCHEDULES.register("linear")
def linear(tau: float, _final: float, _rounds: int) -> float:
    """The same number of weights in every step."""
    return tau


@SCHEDULES.register("cubic")
def cubic(tau: float, _final: float, _rounds: int) -> float:
    """1 − (1 − τ)³: much while there is redundancy, little at the end (Zhu and Gupta, 2017, arXiv:1710.01878, eq. 1)."""
    return 1 - (1 - tau) ** 3


@SCHEDULES.register("exponential")
def exponential(tau: float, final: float, _rounds: int) -> float:
    """Every step takes the same share of the weights that are left: (1 − s_f)^τ of them remain at τ. Linear in the limit of s_f = 0."""
    return (1 - (1 - final) ** tau) / final if final and tau < 1 else tau


@SCHEDULES.register("iterative")
def iterative(tau: float, final: float, rounds: int) -> float:
    """Prune and train in rounds (Han et al., 2015, arXiv:1506.02626, section 3.4), each of which takes the same share of what is left
    (Frankle and Carbin, 2019, arXiv:1803.03635, section 1: p^(1/n) % in every one of n rounds).

    Round i of n prunes at τ = (i − 1)/n, before it trains, so that the last round still trains at the final sparsity."""
    # The guard against rounding keeps τ = i/n, computed from whole steps, in the round that begins there.
    begun = min(math.floor(tau * rounds + 1e-9) + 1, rounds)
    return exponential(begun / rounds, final, rounds)


@dataclass(frozen=True)
class Timing:
    """A schedule laid over the steps of a training.

    start, end: the shares of the steps at which the schedule begins and has reached the final sparsity; learning rates fall towards the
    end of training, and what is pruned late is hardly trained any more. every: steps between two
    renewals of the masks, the Δt of Zhu and Gupta. rounds: those of `iterative`. Steps are counted as done: 0 is before the first."""

    schedule: str = "cubic"
    start: float = 0.0
    end: float = 0.5
    every: int = 1
    rounds: int = 4

    def __post_init__(self) -> None:
        SCHEDULES[self.schedule]
        if not 0 <= self.start < self.end <= 1:
            raise PlanError(
                f"a pruning schedule needs 0 <= start < end <= 1, got start={self.start:g} and end={self.end:g}. "
                "Both are shares of the training steps."
            )
        if self.every < 1 or self.rounds < 1:
            raise PlanError(
                f"a pruning schedule needs every >= 1 and rounds >= 1, got every={self.every} and rounds={self.rounds}. "
                "Leave them out for their defaults."
            )

    def window(self, steps: int) -> tuple[int, int]:
        """The steps done when the schedule begins and when it ends."""
        return math.floor(self.start * steps), math.ceil(self.end * steps)

    def fraction(self, done: int, steps: int, final: float) -> float:
        """The share of the final sparsity that holds once `done` steps are done; 0 before the window, renewed every `every` steps."""
        first, last = self.window(steps)
        if done < first:
            return 0.0
        if done < last:
            done -= (done - first) % self.every
        return fraction(done - first, last - first, self.schedule, final=final, rounds=self.rounds)

    def renews(self, done: int, steps: int) -> bool:
        """Whether the schedule asks for more once `done` steps are done."""
        return self.fraction(done, steps, 0.5) > self.fraction(done - 1, steps, 0.5)

    def settled(self, done: int, steps: int) -> bool:
        """Whether the final sparsity is reached, so that masks are held from here on."""
        return self.fraction(done, steps, 0.5) >= 1
