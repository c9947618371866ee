"""What a running job tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from search_spaces.schemes import Frozen
from tuner.results import Preflight, TrialResult

Phase = Literal["prepare", "baseline", "calibrate", "sensitivity", "search", "certify", "export"]
PHASES: tuple[Phase, ...] = ("prepare", "baseline", "calibrate", "sensitivity", "search", "certify", "export")


class Event(Frozen):
    """One step forward. `done` of `total` counts within the phase; `seconds_left` is an estimate for the whole job."""

    phase: Phase
    message: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    trial: TrialResult | None = None
    best: TrialResult | None = None
    preflight: Preflight | None = None
    """What the checks found; sent once, when they have passed."""


Observer = Callable[[Event], None]
