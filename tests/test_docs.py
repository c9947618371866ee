"""The documentation says what the code does: names, defaults, numbers, commands and links are compared with their sources."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import tuner
from search_spaces.capability import known_targets
from search_spaces.presets import preset_names
from search_spaces.recovery import RecoverySpec
from search_spaces.schemes import QuantScheme
from search_spaces.space import SpaceSpec
from search_spaces.structure import ChannelSpec, RankSpec, SparsitySpec
from server import cli
from tuner.api import Tuned
from tuner.compress.quantization.ranges import RANGES
from tuner.data.metrics import METRICS
from tuner.job import COST_METRICS, COSTS, Budget, Constraint, DataRef, DataSpec, JobSpec, Target, parse_job
from tuner.measure.statistics import paired_proportions_bound, samples_needed
from tuner.results import FINISHED, Interval, JobResult, Outcome
from tuner.search.base import STRATEGIES
from tuner.search.catalogue import load_strategies

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("search_spaces", "tuner", "server")
DOCS = sorted(path for folder in (".", "docs", "docker", "benchmarks") for path in (ROOT / folder).glob("*.md"))
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")

Table = list[list[str]]


def section(title: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |^\1 |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, f"the guide has no heading '{title}'"
    return found[2]


def tables(text: str, first: str) -> list[Table]:
    """The cells of every table whose first column is headed `first`, without heading."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    cells = [[[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in block.splitlines()] for block in blocks]
    return [rows[2:] for rows in cells if rows[0][0] == first]


def names(cell: str) -> list[str]:
    """What stands between backticks, code blocks apart."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", cell, flags=re.MULTILINE | re.DOTALL))


def column(table: Table, index: int = 0) -> list[str]:
    return [name for row in table for name in names(row[index])]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shown_default(field: FieldInfo) -> Any:
    """How the guide writes a field's default: `required`, `none`, `empty`, `see` (another table) or the value."""
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "see"
    if field.default_factory is not None:
        return field.get_default(call_default_factory=True)
    if isinstance(field.default, tuple):
        return list(field.default)
    return "none" if field.default is None else field.default or "empty" if isinstance(field.default, str) else field.default


def read_default(cell: str) -> Any:
    code = names(cell)
    return yaml.safe_load(code[0]) if code else cell.split()[0]


@pytest.mark.parametrize(
    ("title", "index", "model"),
    [
        ("The job", 0, JobSpec),
        ("Data", 0, DataSpec),
        ("Data", 1, DataRef),
        ("Constraints", 0, Constraint),
        ("Spaces", 0, SpaceSpec),
        ("Taking away", 0, ChannelSpec),
        ("Taking away", 1, SparsitySpec),
        ("Taking away", 2, RankSpec),
        ("Recovery", 0, RecoverySpec),
        ("Budget", 0, Budget),
        ("Target", 0, Target),
    ],
)
def test_every_key_of_a_job_is_listed_with_its_default(title: str, index: int, model: type[BaseModel]) -> None:
    table = tables(section(title), "key")[index]
    listed = {names(row[0])[0]: read_default(row[1]) for row in table}
    assert listed == {name: shown_default(field) for name, field in model.model_fields.items()}


def test_metrics_are_listed_as_they_are() -> None:
    listed = {name: (row[1], row[2], row[3]) for row in tables(section("Metrics"), "name")[0] for name in names(row[0])}
    direct = {
        name: (
            METRICS[name].direction,
            "needed" if METRICS[name].needs_labels else "not needed",
            "per row" if METRICS[name].score else "whole split",
        )
        for name in METRICS
    }
    assert listed == direct


def test_metrics_that_cannot_stop_a_trial_early_are_named() -> None:
    unbounded = {name for name in METRICS if METRICS[name].score and METRICS[name].bounds is None}
    assert f"which {' and '.join(f'`{name}`' for name in sorted(unbounded, reverse=True))} lack" in section("Metrics")


def test_registered_names_are_listed() -> None:
    load_strategies()
    assert sorted(column(tables(section("Strategies"), "strategy")[0])) == [*STRATEGIES]
    assert sorted(column(tables(section("Spaces"), "space")[0])) == [*preset_names()]
    assert {*RANGES} <= set(names(section("Spaces")))
    assert names(section("Objectives"))[: len(COSTS)] == [*COSTS]
    assert names(tables(section("Constraints"), "key")[0][0][2])[1:] == [*COST_METRICS]
    assert known_targets() == (Target().runtime,), "the guide calls it the only one today"


def test_schemes_in_the_guide_are_schemes() -> None:
    spelled = [name for name in names(GUIDE) if re.fullmatch(r"(float/.*|[us]\d+-.*)", name)]
    assert len(spelled) >= 3
    assert [QuantScheme.parse(name).name for name in spelled] == spelled


def test_worked_numbers_are_right() -> None:
    text = section("Constraints")
    baseline, allowed = 0.92, 0.01 * 0.92
    assert f"{baseline - allowed:.4f}: it may lose 1 % of {baseline:g}, which is {allowed:.4f}" in text
    # The first finalist is tested at half of the allowed error.
    for rows, lost, gained in ((5000, 40, 28), (500, 4, 3)):
        bound = paired_proportions_bound(lost, gained, rows, confidence=1 - 0.05 / 2)
        assert (bound.upper <= allowed) == (rows == 5000)
        assert re.search(rf"On {rows} .* {lost} .* {gained}.*: a drop of {bound.value:.4f}, .*{bound.upper:.4f}", text)
    assert f"needs {samples_needed(allowed, 0.0, 0.975)} holdout rows" in text


def test_every_result_field_is_named() -> None:
    named = set(names(section("What a job leaves")))
    for model in (JobResult, Outcome, Interval):
        assert set(model.model_fields) - named == set(), model.__name__
    assert {state.value for state in FINISHED} <= named


SHARED = ("--url", "--key")
"""Options of all commands against a server, which are described once."""


def commands() -> dict[str, list[str]]:
    """{command: its options, spelled in full where there are two spellings}."""
    group = typer.main.get_command(cli.app)
    found: dict[str, Any] = getattr(group, "commands", {})
    return {name: [max(p.opts, key=len) for p in command.params if p.opts[0].startswith("-")] for name, command in found.items()}


def test_every_command_and_option_is_listed() -> None:
    listed: dict[str, str] = {}
    for row in chain(*tables(section("Command line"), "command")):
        name = names(row[0])[0].split()[1]
        listed[name] = listed.get(name, "") + " ".join(row)
    assert list(listed) == list(commands())
    for option in SHARED:
        listed = {name: f"{text} {option}" for name, text in listed.items()}
        assert f"`{option}`" in section("Against a server")
    missing = [f"{name} {option}" for name, options in commands().items() for option in options if f"{option}" not in listed[name]]
    assert missing == []


def test_commands_in_the_documents_exist() -> None:
    for path in DOCS:
        for name in re.findall(r"(?:^    |`)(?:\.venv/bin/)?tuner ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert name in commands(), f"{path.name}: tuner {name}"


def test_exit_statuses_are_the_real_ones() -> None:
    table = {int(row[0]): row[1] for row in tables(section("Command line"), "exit status")[0]}
    assert list(table) == sorted([cli.MET, cli.FAILED, cli.BAD_INPUT, cli.MISSED])
    assert table[cli.MET] == "target met"
    assert table[cli.BAD_INPUT].startswith("bad input")
    assert "target was missed" in table[cli.MISSED]


def sources() -> Iterator[str]:
    return (path.read_text(encoding="utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_every_environment_variable_is_named() -> None:
    read = {name for text in sources() for name in re.findall(r"env(?:iron|var)[^\n]*\"(ACCUTUNE_[A-Z]+)\"", text)}
    assert read == set(re.findall(r"ACCUTUNE_[A-Z]+", GUIDE))


QUOTES = (
    "Target missed",
    "Undecided",
    "Nothing was gained",
    "holdout rows cannot certify",
    "the runtime runs it in float",
    "the baseline says nothing",
    "another process is working on the job",
)


def test_what_the_guide_quotes_is_what_the_program_says() -> None:
    said, answers = "\n".join(sources()), section("It says … what now?").lower()
    assert [quote for quote in QUOTES if quote not in said or quote.lower() not in answers] == []


def test_python_calls_fit_the_interface() -> None:
    parameters = inspect.signature(tuner.tune).parameters
    assert [name for name in parameters if not re.search(rf"\b{name}\b", section("Python"))] == []
    attributes = {name for name in dir(Tuned) if not name.startswith("_")} | set(inspect.signature(Tuned).parameters)
    for text in (README, GUIDE):
        (block,) = blocks(text, "python")
        tree = ast.parse(block)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "tuner.tune"]
        assert [keyword.arg for call in calls for keyword in call.keywords if keyword.arg not in parameters] == []
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tuned"}
        assert used <= attributes
    methods = re.findall(r"`client\.(\w+)\(", section("Python"))
    assert len(methods) >= 10
    assert [name for name in methods if not hasattr(tuner.Client, name)] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_code_blocks_are_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block in blocks(text, "python"):
        compile(block, str(path), "exec")
    for block in blocks(text, "yaml"):
        raw = yaml.safe_load(block)
        filled = {"model": "m.onnx", "data": {"validation": {"file": "f.npz"}}, "constraints": [{"metric": "top1", "max_drop": 0}]} | raw
        assert parse_job(filled)
        if path.name == "README.md" and path.parent == ROOT:
            assert parse_job(raw).constraints[0].confidence == 0.95


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_point_to_something(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    for name in re.findall(r"`((?:search_spaces|tuner|server|tests|docs|examples|benchmarks|docker)/[\w./-]*)`", text):
        if not (ROOT / name).exists():
            broken.append(name)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_make_targets_exist() -> None:
    there = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCS:
        lines = re.findall(r"(?:^    |`)make ((?:[a-z]+ ?)+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for line in lines for word in line.split()} <= there, path.name


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras) <= set(names(section("Install")))


def test_tables_are_read_as_meant() -> None:
    text = textwrap.dedent(
        """\
        | key | default | meaning |
        | --- | --- | --- |
        | `a` | `[1, x]` | with `code` |
        | `b` | none | – |
        """
    )
    (table,) = tables(text, "key")
    assert column(table) == ["a", "b"]
    assert [read_default(row[1]) for row in table] == [[1, "x"], "none"]
