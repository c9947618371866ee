"""What taking things away from a network costs and brings, everything else alike: channels by every criterion beside Torch-Pruning's
L1, zeros by every method, splits of low rank; and how exact a cut is.

Appends Markdown tables to `--out`. Every finished row is kept in a file of JSON lines beside it, so that a run that was stopped goes on
with the rows that are missing."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plain_loop import Case, find_case

# torch is imported in main, after the environment that it reads is set.

VERSION = 1
CASE = "cifar10_resnet20"
QUICK = {"rows": 256, "test_rows": 400, "calibration_rows": 128, "channels": (30,), "zeros": (50,), "ranks": (50,), "exact_seeds": 1}
GOAL_REMOVED, GOAL_DROP, GOAL_SPEEDUP, GOAL_EXACT = 0.5, 0.01, 1.2, 1e-4
FAST = "channels/30/measured/taylor"
OURS, THEIRS = (FAST, "channels/30/for-macs/taylor"), ("channels/30/torch-pruning/each-layer", "channels/30/torch-pruning/all-layers")
"""What a job for latency and one for MACs would do, and the two ways of the other side: of each side the better counts."""

Numbers = dict[str, Any]
Right = NDArray[np.bool_]
Column = tuple[str, Callable[[Numbers], str]]


class Store:
    """Numbers by key in a file of JSON lines, with what decided them: lines of other settings are left alone."""

    def __init__(self, file: Path, settings: Numbers) -> None:
        self.file, self.settings, self.rows = file, settings, dict[str, Numbers]()
        for line in file.read_text().splitlines() if file.is_file() else ():
            try:
                record = json.loads(line)
            except ValueError:  # The line that was being written when the run was killed.
                continue
            if record["settings"] == settings:
                self.rows[record["key"]] = record["numbers"]

    def keep(self, key: str, measure: Callable[[], Numbers]) -> Numbers:
        """What was kept under the key, else what is measured now."""
        if key not in self.rows:
            numbers = measure()
            with self.file.open("a") as file:
                file.write("\n" + json.dumps({"key": key, "settings": self.settings, "numbers": numbers}))
            self.rows[key] = numbers
        return self.rows[key]


class Figures:
    """What the kept numbers say, against the original."""

    def __init__(self, rows: Mapping[str, Numbers], test_rows: int) -> None:
        self.rows, self.test_rows = rows, test_rows
        self.original = rows["original"]
        self.base = self.right(self.original["right"])

    def right(self, bits: str) -> Right:
        return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=self.test_rows).astype(bool)

    def top1(self, bits: str | None) -> str:
        return "–" if bits is None else f"{self.right(bits).mean():.2%}"

    def drop(self, row: Numbers, half: slice = slice(None), base: Numbers | None = None) -> tuple[float, float]:
        """(how much of the rows fewer are right, its standard error), paired; base: in place of the original."""
        before = self.base if base is None else self.right(base["right"])
        lost = (before.astype(float) - self.right(row["right"]))[half]
        return float(lost.mean()), float(lost.std(ddof=1) / len(lost) ** 0.5)

    def part(self, row: Numbers, what: str) -> str:
        return f"{row[what] / self.original[what]:.1%}"

    def removed(self, row: Numbers) -> float:
        return 1 - float(row["weights"]) / float(self.original["weights"])

    @property
    def first_half(self) -> slice:
        return slice(0, self.test_rows // 2)

    @property
    def second_half(self) -> slice:
        return slice(self.test_rows // 2, None)

    def under(self, prefix: str) -> dict[str, Numbers]:
        return {key: row for key, row in self.rows.items() if key.startswith(prefix)}


def tables(figures: Figures) -> str:
    """All kept rows in Markdown."""
    top1: list[Column] = [
        ("top1 at once", lambda row: figures.top1(row["right_before"])),
        ("top1 trained", lambda row: figures.top1(row["right"])),
        ("drop, points", lambda row: _points(*figures.drop(row))),
    ]
    macs: Column = ("MACs", lambda row: figures.part(row, "macs"))
    params: Column = ("parameters", lambda row: figures.part(row, "params"))
    latency: Column = ("latency ratio (95 %)", lambda row: "{:.2f} ({:.2f} to {:.2f})".format(*row["latency"]))
    zero: list[Column] = [
        ("weights left", lambda row: f"{1 - figures.removed(row):.1%}"),
        ("packed file", lambda row: figures.part(row, "packed")),
    ]
    split: list[Column] = [("layers split", lambda row: f"{row['layers']}"), macs, params]
    exact: list[Column] = [
        ("groups", lambda row: f"{row['groups']}"),
        ("parameters left", lambda row: f"{row['parameters']:.1%}"),
        ("largest difference", lambda row: f"{row['difference']:.1e}"),
        ("largest output", lambda row: f"{row['scale']:.3g}"),
    ]
    kinds: list[tuple[str, str, tuple[str, ...], list[Column]]] = [
        ("channels/", "Channels", ("MACs asked to go, %", "widths", "criterion"), [macs, params, *top1, latency]),
        ("zeros/", "Zeros", ("zeros, %", "method"), [*zero, *top1]),
        ("ranks/", "Low rank", ("MACs asked to go, %", "method"), [*split, *top1, latency]),
        ("exactness/", "Cut against masked", ("case",), exact),
    ]
    found = [_table(title, names, columns, figures.under(prefix)) for prefix, title, names, columns in kinds if figures.under(prefix)]
    return "\n".join(found)


def _table(title: str, names: tuple[str, ...], columns: list[Column], rows: Mapping[str, Numbers]) -> str:
    """One line for each row; the parts of its key come first."""
    heads = [*names, *(name for name, _ in columns)]
    lines = [f"### {title}", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(names) + " ---: |" * len(columns)]
    for key, row in rows.items():
        lines.append("| " + " | ".join([*key.split("/")[1:], *(cell(row) for _, cell in columns)]) + " |")
    return "\n".join([*lines, ""])


def _points(drop: float, error: float) -> str:
    return f"{100 * drop:.2f} ± {100 * error:.2f}"


def goals(figures: Figures) -> list[str]:
    """What was asked for, and whether it was reached, as far as its rows were measured."""
    lines = [_half_of_weights(figures), *_against_torch_pruning(figures)]
    exact = figures.under("exactness/")
    if exact:
        worst = max(row["difference"] for row in exact.values())
        lines.append(f"{_word(worst <= GOAL_EXACT)}: cut and masked outputs differ by at most {GOAL_EXACT:g} (measured {worst:.1e})")
    return [line for line in lines if line]


def _half_of_weights(figures: Figures) -> str:
    """The smallest network that the first half of the test rows allows, told by the second half."""
    rows = {key: row for key, row in figures.rows.items() if "right_before" in row and figures.removed(row) >= GOAL_REMOVED}
    if not rows:
        return ""
    allowed = {key: row for key, row in rows.items() if figures.drop(row, figures.first_half)[0] <= GOAL_DROP}
    goal = f"at least {GOAL_REMOVED:.0%} of the weights removed within {100 * GOAL_DROP:g} point"
    if not allowed:
        return f"not reached: {goal} (no row of {len(rows)} loses so little on the first half of the test rows)"
    key = max(allowed, key=lambda key: (round(figures.removed(rows[key]), 2), -figures.drop(rows[key], figures.first_half)[0]))
    drop = figures.drop(rows[key], figures.second_half)
    found = f"{key}: {figures.removed(rows[key]):.1%} removed, drop {_points(*drop)} points on the second half of the test rows"
    return f"{_word(drop[0] <= GOAL_DROP)}: {goal} (measured {found})"


def _against_torch_pruning(figures: Figures) -> list[str]:
    lines = []
    if FAST in figures.rows:
        ratio = figures.rows[FAST]["latency"][0]
        lines.append(
            f"{_word(ratio >= GOAL_SPEEDUP)}: latency ratio ≥ {GOAL_SPEEDUP:g} with 30 % of the MACs removed (measured {ratio:.2f})"
        )
    ours, theirs = _better(figures, OURS), _better(figures, THEIRS)
    if ours and theirs:
        worse = figures.drop(figures.rows[ours], figures.second_half, base=figures.rows[theirs])
        found = f"{theirs} is right on {_points(*worse)} points more rows of the second half than {ours}"
        lines.append(f"{_word(worse[0] <= 0)}: with 30 % of the MACs removed no worse than Torch-Pruning (measured: {found})")
    return lines


def _better(figures: Figures, keys: tuple[str, ...]) -> str:
    """The row that loses less on the first half of the test rows; empty where none was measured."""
    known = [key for key in keys if key in figures.rows]
    return min(known, key=lambda key: figures.drop(figures.rows[key], figures.first_half)[0], default="")


def _word(reached: bool) -> str:
    return "reached" if reached else "not reached"


class Progress:
    """What is said on the way, with the time that is left."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, time.perf_counter()

    def told(self, text: str) -> None:
        self.done += 1
        each = (time.perf_counter() - self.started) / self.done
        left = each * (self.total - self.done) / 60
        print(f"[{self.done}/{self.total}] {text}; about {left:.0f} min left", file=sys.stderr, flush=True)


def measure(store: Store, missing: Mapping[str, Callable[[], Numbers]]) -> list[str]:
    """Measure the rows and keep each as soon as it is known. Returns what broke; the rest goes on."""
    broken, progress = [], Progress(len(missing))
    for key, row in missing.items():
        started = time.perf_counter()
        try:
            numbers = store.keep(key, row)
            what = f"difference {numbers['difference']:.1e}" if "scale" in numbers else f"MACs {numbers['macs']:,}"
            progress.told(f"{key}: {what}, {time.perf_counter() - started:.0f} s")
        except Exception as error:
            traceback.print_exc()
            broken.append(f"{key}: {type(error).__name__}: {error}")
            progress.told(f"{key}: failed")
    return broken


def report(arguments: argparse.Namespace, figures: Figures, rows: int, machine: Mapping[str, str], broken: list[str]) -> str:
    base = figures.original
    lines = [
        f"## {arguments.case}: structure, {rows:,} training rows for every model",
        "",
        f"`{' '.join(['python', 'benchmarks/pruning.py', *sys.argv[1:]])}`",
        "",
        "; ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        f"The original: top1 {figures.top1(base['right'])} on {figures.test_rows:,} test rows, {base['macs']:,} MACs, "
        f"{base['params']:,} parameters, {base['packed']:,} bytes packed.",
        "",
        tables(figures),
        *(f"* {line}" for line in goals(figures)),
        *(f"* widths {' % '.join(key.split('/')[:0:-1])}: {_choices(row)}" for key, row in figures.under("widths/").items()),
        *(f"* error: {error}" for error in broken),
        "",
    ]
    return "\n".join(lines)


def _choices(row: Numbers) -> str:
    return ", ".join(f"`{name}` {option}" for name, option in row.items())


def _cases(folder: str | None, case: Case) -> list[Case]:
    """Every case of the folder, for exactness; without a folder the one."""
    found = sorted(path.parent for path in Path(folder).glob("*/model.onnx")) if folder else []
    return [Case(path.resolve()) for path in found] or [case]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", default=CASE, metavar="CASE", help="a folder, or its name in --cases [%(default)s]")
    folder = os.environ.get("ACCUTUNE_CASES")
    parser.add_argument("--cases", dest="folder", default=folder, metavar="DIR", help="where cases lie [ACCUTUNE_CASES]")
    parser.add_argument("--out", type=Path, default=Path("pruning.md"), metavar="FILE", help="where tables are appended [%(default)s]")
    parser.add_argument("--rows", type=int, default=6000, help="training rows that each model sees in all [%(default)s]")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="measure the rows whose keys fit, like 'zeros/50/*'")
    parser.add_argument("--threads", type=int, help="for training and scoring; latency is always that of one [all cores]")
    parser.add_argument("--quick", action="store_true", help="few rows of data and of the tables, to see that everything runs")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    case = find_case(arguments.case, arguments.folder)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # Waiting threads would take time from whoever is measured.
    cache = arguments.out.with_suffix(".cache")
    os.environ["ACCUTUNE_CACHE"] = str(cache / "tables")
    from pruning_rows import Bench, Settings, exactness

    from tuner.measure.runtime import environment

    plain = {"rows": arguments.rows, "test_rows": case.length("test"), "calibration_rows": 512}
    settings = Settings(**(QUICK if arguments.quick else plain))
    known = {"version": VERSION, "case": case.name, **{name: asdict(settings)[name] for name in plain}}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    store = Store(arguments.out.with_suffix(".jsonl"), known)
    bench = Bench(case, settings, cache / digest, arguments.threads, store.keep)
    exact = {f"exactness/{each.name}": partial(exactness, each, settings.exact_seeds) for each in _cases(arguments.folder, case)}
    rows = exact | bench.rows()
    missing = {key: row for key, row in rows.items() if key not in store.rows and any(fnmatchcase(key, p) for p in arguments.only)}
    machine = environment() | {name: _version(name) for name in ("torch", "torch-pruning")}
    try:
        store.keep("original", bench.original)
        broken = measure(store, missing)
    except KeyboardInterrupt:
        print("stopped; finished rows are kept, start again to go on", file=sys.stderr)
        return 130
    kept = {key: store.rows[key] for key in dict.fromkeys((*rows, *store.rows)) if key in store.rows}  # In the order of the tables.
    text = report(arguments, Figures(kept, settings.test_rows), settings.rows, machine, broken)
    with arguments.out.open("a") as file:
        file.write(text + "\n")
    print(text)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
