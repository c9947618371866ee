"""Where a model's time goes: kernel times from the runtime's own profiler, attributed to the layers of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner.measure.latency import alone
from tuner.measure.runtime import Feed, Session, scratch

RUNS = 24


def kernel_times(model: bytes, feed: Feed, threads: int, runs: int = RUNS) -> dict[str, tuple[str, float]]:
    """{node name as the runtime has it: (operator, milliseconds)} over `runs` runs, with nothing else of ours running."""
    with scratch() as folder:
        session = Session(model, threads, profile=Path(folder, "profile"))
        with alone():
            for _ in range(runs):
                session.run(feed)
        return session.kernel_ms()


def attribute_times(times: Mapping[str, tuple[str, float]], owners: Mapping[str, Sequence[str]]) -> tuple[dict[str, float], float]:
    """Share kernel times among their owners, e.g. the layers whose node or tensor a kernel is named after.

    owners: {name: the owners of whatever is named so}. The runtime keeps a node's or tensor's name as the beginning of the
    name of what it fuses or inserts; the longest fitting name counts. Returns ({owner: ms}, ms that nobody owns)."""
    shares: dict[str, float] = {}
    rest = 0.0
    for kernel, (_, milliseconds) in times.items():
        found = owners.get(_longest(kernel, owners), ())
        for owner in found:
            shares[owner] = shares.get(owner, 0.0) + milliseconds / len(found)
        rest += 0.0 if found else milliseconds
    return shares, rest


def _longest(kernel: str, owners: Mapping[str, Sequence[str]]) -> str:
    """The longest known name that the kernel's name is, or begins with before a separator."""
    end = len(kernel)
    while end > 0:
        if kernel[:end] in owners:
            return kernel[:end]
        end = max(kernel.rfind(separator, 0, end) for separator in "_/.:")
    return ""
