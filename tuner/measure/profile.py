"""Where a model's time goes: kernel times from the runtime's own profiler, attributed to the layers of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tuner.measure.latency import alone
from tuner.measure.runtime import Feed, Session, scratch

FUSED = "fused "
LEAST_RUNS, MOST_RUNS = 8, 40
SECONDS = 0.5
LEAST_SHARE = 0.1
"""A kernel keeps at least this share of its profiled time, however large the profiler's overhead is."""


def kernel_times(model: bytes, feed: Feed, threads: int, whole: float) -> dict[str, float]:
    """{node name as the runtime has it: milliseconds}, adding up to `whole`, what the model takes without the profiler.

    The profiler adds about a microsecond to every kernel, which would make graphs of many small kernels look slow."""
    runs = int(np.clip(SECONDS * 1000 / max(whole, 1e-3), LEAST_RUNS, MOST_RUNS))
    with scratch() as folder:
        session = Session(model, threads, profile=Path(folder, "profile"))
        with alone():
            for _ in range(runs):
                session.run(feed)
        return without_overhead(session.kernel_ms(), whole)


def paired_kernel_times(baseline: bytes, model: bytes, feed: Feed, threads: int, whole: float) -> tuple[dict[str, float], dict[str, float]]:
    """The kernel times of two models that run in turn, on the scale on which the baseline's add up to `whole`.

    Of each kernel counts the lower quartile over runs, which other programs disturb least: two models can be told apart on a machine
    that is busy."""
    runs = int(np.clip(SECONDS * 1000 / max(whole, 1e-3), LEAST_RUNS, MOST_RUNS))
    with scratch() as folder:
        sessions = [Session(data, threads, profile=Path(folder, f"profile-{index}")) for index, data in enumerate((baseline, model))]
        with alone():
            for _ in range(runs):
                for session in sessions:
                    session.run(feed)
        first, second = (session.kernel_ms() for session in sessions)
    scaled = without_overhead(first, whole)
    surplus = max(sum(first.values()) - whole, 0.0) / max(len(first), 1)
    scale = whole / max(sum(max(ms - surplus, LEAST_SHARE * ms) for ms in first.values()), 1e-9)
    return scaled, {name: max(ms - surplus, LEAST_SHARE * ms) * scale for name, ms in second.items()}


def without_overhead(profiled: Mapping[str, float], whole: float) -> dict[str, float]:
    """The times with an equal part of what they sum to above `whole` taken off each, then scaled to sum to it exactly."""
    surplus = max(sum(profiled.values()) - whole, 0.0) / max(len(profiled), 1)
    left = {name: max(milliseconds - surplus, LEAST_SHARE * milliseconds) for name, milliseconds in profiled.items()}
    scale = whole / max(sum(left.values()), 1e-9)
    return {name: milliseconds * scale for name, milliseconds in left.items()}


def attribute_times(times: Mapping[str, float], owners: Mapping[str, Sequence[str]]) -> tuple[dict[str, float], float]:
    """Share kernel times among their owners, e.g. the layers whose node or tensor a kernel is named after.

    owners: {name: the owners of whatever is named so}. The runtime keeps a node's or tensor's name as the beginning of the
    name of what it fuses or inserts; the longest fitting name counts. Returns ({owner: ms}, ms that nobody owns)."""
    shares: dict[str, float] = {}
    rest = 0.0
    for kernel, milliseconds in times.items():
        found = owners.get(_longest(kernel, owners), ())
        for owner in found:
            shares[owner] = shares.get(owner, 0.0) + milliseconds / len(found)
        rest += 0.0 if found else milliseconds
    return shares, rest


def _longest(kernel: str, owners: Mapping[str, Sequence[str]]) -> str:
    """The longest known name that the kernel's name is, or begins with before a separator. A layer that took in what follows it
    may be called `fused <name>`."""
    kernel = kernel.removeprefix(FUSED)
    end = len(kernel)
    while end > 0:
        if kernel[:end] in owners:
            return kernel[:end]
        end = max(kernel.rfind(separator, 0, end) for separator in "_/.:")
    return ""
