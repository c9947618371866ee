"""What the best plan took away, and whether that is speed or only zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tuner.plan import Structure
from tuner.report.wording import percent

FASTER = "fewer multiplications: a smaller file, and less to compute"
ZEROS = "zeros only: smaller once it is packed, as large and as fast as before until then"


@dataclass(frozen=True)
class Removal:
    """One row of the table: what was changed, what is left of it, and what that is good for."""

    what: str
    kept: str
    effect: str


def removals(structure: Structure | None) -> list[Removal]:
    """Channels first, then ranks, then zeros; each in the order of the record."""
    return [] if structure is None else [*_removals(structure)]


def _removals(structure: Structure) -> Iterator[Removal]:
    for group, kept in structure.kept.items():
        size = kept + len(structure.removed.get(group, ()))
        if kept < size:
            yield Removal(f"channels of {group}", f"{kept:,} of {size:,} ({percent(kept / size, 0)})", FASTER)
    for layer, split in structure.splits.items():
        ranks = " and ".join(f"{rank:,}" for rank in split.rank)
        yield Removal(f"layer {layer}", f"split by {split.method}, rank {ranks}", FASTER)
    for layer, share in structure.zeros.items():
        yield Removal(f"weights of {layer}", f"{percent(1 - share, 0)}; {percent(share, 0)} are zero", ZEROS)
