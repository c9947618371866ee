"""Domains: the sets of values that one choice may take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Choice:
    """One of a fixed list of scalars."""

    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a Choice needs at least one value, got none")
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"a Choice must not repeat a value, got {self.values}")

    @property
    def size(self) -> int:
        return len(self.values)

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __iter__(self) -> Iterator[Scalar]:
        return iter(self.values)


@dataclass(frozen=True)
class IntRange:
    """Whole numbers low, low + step, … up to and including high."""

    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        if self.high < self.low or self.step < 1:
            raise ValueError(f"an IntRange needs low <= high and step >= 1, got {self.low}..{self.high} step {self.step}")

    @property
    def size(self) -> int:
        return (self.high - self.low) // self.step + 1

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def __iter__(self) -> Iterator[Scalar]:
        return iter(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True)
class FloatRange:
    """Every real number in [low, high]; it cannot be counted, so a grid over it is refused."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"a FloatRange needs low <= high, got {self.low}..{self.high}")

    @property
    def size(self) -> float:
        return 1 if self.low == self.high else float("inf")

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


Domain = Choice | IntRange | FloatRange
