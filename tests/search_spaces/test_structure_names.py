"""The light lists of names say what the registries hold, which need torch."""

from __future__ import annotations

import inspect
import subprocess
import sys

import tuner.compress.decomposition  # noqa: F401 (registers)
from search_spaces.structure_names import CHANNEL_CRITERIA, LOSSES, METHODS, PRUNERS, SCORED, SLIM, SPARSEGPT, WEIGHT_CRITERIA
from tuner.compress import distillation, factors
from tuner.compress.pruning import criteria, pruners


def test_criteria_are_those_of_the_registry_by_what_they_rate() -> None:
    kinds = {name: criteria.CRITERIA[name].kind for name in criteria.CRITERIA}
    assert {name for name, kind in kinds.items() if kind == "channel"} == set(CHANNEL_CRITERIA)
    assert {name for name, kind in kinds.items() if kind == "element"} == set(WEIGHT_CRITERIA) - {SPARSEGPT}


def test_pruners_methods_and_losses_are_those_of_the_registries() -> None:
    assert {*pruners.PRUNERS} == {*PRUNERS, SLIM}
    assert {*factors.METHODS} == {*METHODS}
    assert {*distillation.LOSSES} == {*LOSSES}


def test_the_pruners_that_take_scores_are_known() -> None:
    assert {name for name in PRUNERS if "scores" in inspect.signature(pruners.PRUNERS[name]).parameters} == SCORED


def test_neither_the_lists_nor_the_server_bring_in_torch() -> None:
    code = "import sys, server.app, server.api.passes, tuner.preflight; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
