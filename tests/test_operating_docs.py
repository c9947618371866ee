"""docs/operating.md and docs/architecture.md say of the service what its code does: tables, numbers, commands and addresses."""

from __future__ import annotations

import inspect
import re
import shlex
from typing import Any

import pytest
import typer
from fastapi.routing import APIRoute

from server import cli
from server.api import catalogue, compare, events, figures, files, health, jobs, keys, results, session, system, trials
from server.api.answers import PREFIX
from server.api.guards import PUBLIC
from server.commands import serve
from server.metrics import Metrics, Queue
from server.scheduler import BEATS_PER_LEASE, CANCEL_GRACE_SECONDS, SWEEP_SECONDS
from server.settings import documented
from server.store.engines import EXTRA, KEPT
from server.store.queue import MAX_CRASHES
from tests.test_docs import GUIDE, ROOT, blocks, names, tables
from tuner.executor import SECRETS
from tuner.store import ALLOWED
from tuner.wire import ROLES

OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MORE_VARIABLES = {"ACCUTUNE_CACHE", "ACCUTUNE_KEY"}
"""Variables that are no settings of the server; the guide tells of them."""


def plain(cell: str) -> str:
    return cell.strip("`")


def paragraph(start: str, text: str = OPERATING) -> str:
    """From `start` to the next paragraph or point of a list, on one line."""
    found = re.search(rf"{re.escape(start)}.*?(?=\n\n|\n\* |\Z)", text, re.DOTALL)
    assert found, f"no paragraph begins with '{start}'"
    return " ".join(found[0].split())


def test_every_setting_is_listed_with_its_default_and_meaning() -> None:
    (table,) = tables(OPERATING, "variable")
    assert [[plain(cell) for cell in row[:2]] + row[2:] for row in table] == [[row.variable, row.default, row.help] for row in documented()]


def test_every_metric_is_listed_as_it_is_told() -> None:
    metrics = Metrics()
    metrics.observe_trial(1, "complete")
    metrics.observe_store("read", 0.1)
    metrics.observe_request("GET", "/", 200, 0.1)
    page = metrics.page(Queue(), 0).decode()
    types, helps = (dict(re.findall(rf"^# {what} (\S+) (.*)$", page, re.MULTILINE)) for what in ("TYPE", "HELP"))

    def labels(name: str) -> list[str]:
        samples = re.findall(rf"^{name}(?:_bucket|_count|_sum)?\{{(.*)\}} ", page, re.MULTILINE)
        return sorted({label for sample in samples for label in re.findall(r'(\w+)="', sample)} - {"le"})

    (table,) = tables(OPERATING, "metric")
    listed = [[plain(row[0]), row[1], names(row[2]), row[3]] for row in table]
    assert listed == [[name, types[name], labels(name), helps[name]] for name in helps]


@pytest.mark.parametrize("text", [OPERATING, (ROOT / "docker" / "README.md").read_text(encoding="utf-8")], ids=["operating", "docker"])
def test_every_variable_that_is_named_exists(text: str) -> None:
    known = {row.variable for row in documented()} | MORE_VARIABLES
    assert set(re.findall(r"ACCUTUNE_[A-Z_]+", text)) - known == set()
    assert [name for name in MORE_VARIABLES if name not in GUIDE] == []


def test_numbers_are_the_real_ones() -> None:
    assert f"has died {NUMBERS[MAX_CRASHES]} times in a row" in paragraph("* **A job's process**")
    assert SWEEP_SECONDS == 600, "within ten minutes"
    assert f"opens at most {KEPT + EXTRA} connections" in OPERATING
    hours = inspect.signature(serve.gc).parameters["hours"].default
    assert f"`--hours` ({hours:g})" in paragraph("`DELETE` on")
    assert f"renews it {NUMBERS[BEATS_PER_LEASE]} times in its span" in paragraph("**Leases and fencing.**", ARCHITECTURE)
    assert f"stopped {CANCEL_GRACE_SECONDS:g} s after" in paragraph("A cancel is a flag", ARCHITECTURE)
    assert f"died {NUMBERS[MAX_CRASHES]} times without" in paragraph("**Crash-only.**", ARCHITECTURE)


def test_roles_and_what_is_open_are_the_real_ones() -> None:
    keys_told = paragraph("These commands work on the database itself")
    assert re.findall(r"\*(\w+)\*", keys_told) == list(ROLES)
    assert "Both are open to everybody" in paragraph("`/healthz` answers")
    assert {"/healthz", "/readyz"} < PUBLIC
    assert "/metrics" not in PUBLIC
    assert "`ACCUTUNE_DATABASE_URL`" in OPERATING and "do not inherit this variable" in OPERATING and "ACCUTUNE_DATABASE_URL" in SECRETS


def test_job_states_are_those_of_the_code() -> None:
    (table,) = tables(ARCHITECTURE, "state")
    listed = {names(row[0])[0]: names(row[1]) for row in table}
    assert listed == {state.value: [after.value for after in following] for state, following in ALLOWED.items()}
    assert list(listed) == [state.value for state in ALLOWED]


def command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words call, and the words left for it."""
    found: Any = typer.main.get_command(cli.app)
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]
    return found, words


def test_commands_in_blocks_exist_with_their_options() -> None:
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in ("docs/operating.md", "docker/README.md")]
    lines = [line for text in texts for block in blocks(text, "sh") for line in block.splitlines()]
    calls = [shlex.split(line, comments=True) for line in lines]
    ours = [words[words.index("tuner") + 1 :] for words in calls if "tuner" in words[:1]]
    ours += [words[words.index("server") + 1 :] for words in calls if words[:3] == ["docker", "compose", "run"]]
    assert len(ours) >= 6
    for words in ours:
        found, left = command(words)
        known = {option for parameter in found.params for option in parameter.opts}
        assert not hasattr(found, "commands"), f"{words} names no command"
        assert [word for word in left if word.startswith("--") and word not in known] == [], words


def test_addresses_in_the_documents_exist() -> None:
    routers = (files, jobs, trials, results, compare, figures, system, session, events, catalogue, keys)
    known = [PREFIX + route.path for module in routers for route in module.router.routes if isinstance(route, APIRoute)]
    known += [*PUBLIC, *(route.path for route in health.router.routes if isinstance(route, APIRoute))]
    patterns = [re.compile(re.sub(r"\{[^}]+\}", r"([A-Za-z*]+|\\{[^}]+\\})", path)) for path in known]
    address = re.compile(r"(?:^|\s)(/(?:api|healthz|readyz|metrics)\S*)")
    told = {name for text in (OPERATING, GUIDE) for found in names(text) for name in address.findall(found)}
    assert len(told) >= 8
    assert [name for name in sorted(told) if not any(pattern.fullmatch(name) for pattern in patterns)] == []
