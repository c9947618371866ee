from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_jobs import PER_TENSOR, SMALL_SPACE, conv, dense, dense_data, tiny_job

from search_spaces.schemes import FLOAT
from search_spaces.space import SpaceSpec
from tuner import survey as survey_module
from tuner.evaluator import Evaluator
from tuner.measure.divergence import divergence
from tuner.measure.runtime import Session
from tuner.plan import CompressionPlan, Step
from tuner.results import Findings
from tuner.search.allocate import front
from tuner.search.base import float_assignment
from tuner.search.cost import build_problem
from tuner.survey import MOST_HARM, MOST_ROWS, reference_schemes, survey


def surveyed(folder: Path, model: bytes | None = None, space: SpaceSpec = SMALL_SPACE, cache: str = "cache") -> tuple[Evaluator, Findings]:
    model = dense() if model is None else model
    evaluator = Evaluator(tiny_job(folder, model, dense_data(model, 600), space=space), folder / cache)
    return evaluator, survey(evaluator)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluator, Findings]:
    return surveyed(tmp_path_factory.mktemp("survey"))


def test_only_float_does_no_harm(found: tuple[Evaluator, Findings]) -> None:
    evaluator, findings = found
    assert list(findings.damage) == ["fc1", "fc2", "fc3"]
    for layer in evaluator.space.layers:
        harms = findings.damage[layer.name]
        assert list(harms) == list(layer.options)
        assert harms[FLOAT] == 0.0
        assert all(0 < harms[option] < 0.1 for option in layer.options if option != FLOAT)


def test_every_layer_is_measured_alone_at_its_reference(found: tuple[Evaluator, Findings]) -> None:
    evaluator, findings = found
    assert reference_schemes(evaluator) == dict.fromkeys(("fc1", "fc2", "fc3"), "u8-asym-minmax/s8-sym-channel")
    for row in findings.sensitivity:
        assert row.divergence == findings.damage[row.layer][row.scheme]
    assert [(row.params, row.macs) for row in findings.sensitivity] == [(544, 512), (1056, 1024), (165, 160)]
    assert findings.macs == 1696
    assert all(row.float_ms is not None and row.float_ms > 0 for row in findings.sensitivity)


def test_sizes_are_those_of_the_file(found: tuple[Evaluator, Findings]) -> None:
    evaluator, findings = found
    assert findings.size_bytes["fc2"][FLOAT] == 4 * 32 * 32
    assert findings.fixed_bytes + sum(sizes[FLOAT] for sizes in findings.size_bytes.values()) == evaluator.prepared.size_bytes
    assert findings.size_bytes["fc2"]["u8-asym-minmax/s8-sym-channel"] == 32 * 32 + 5 * 32
    assert findings.size_bytes["fc2"]["u8-asym-minmax/s8-sym-tensor"] == 32 * 32 + 5


def test_harm_is_the_same_on_every_run(tmp_path: Path) -> None:
    first, second = (surveyed(tmp_path, cache=name)[1] for name in ("one", "two"))
    assert first == second


def test_findings_are_read_back(found: tuple[Evaluator, Findings], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(survey_module, "latency_table", never)
    assert survey(Evaluator(found[0].job, found[0].cache)) == found[1]


def test_the_layer_that_was_spoilt_is_the_most_sensitive(tmp_path: Path) -> None:
    """A column 1000 times as large leaves the others nothing of a scale for the whole tensor, and all of a scale per channel."""
    _, spoilt = surveyed(tmp_path / "tensor", dense(spoil=True), PER_TENSOR)
    harm = {row.layer: row.divergence for row in spoilt.sensitivity}
    assert max(harm, key=lambda layer: harm[layer]) == "fc2"
    assert harm["fc2"] > 0.1 > 20 * max(harm["fc1"], harm["fc3"])
    _, whole = surveyed(tmp_path / "both", dense(spoil=True))
    options = whole.damage["fc2"]
    per_tensor = [options[option] for option in options if option.endswith("-tensor")]
    per_channel = [options[option] for option in options if option.endswith("-channel")]
    assert min(per_tensor) > 100 * max(per_channel)


@pytest.mark.parametrize("spoil", [False, True])
def test_what_was_not_measured_is_predicted_to_within_a_factor_of_two(tmp_path: Path, spoil: bool) -> None:
    """Each layer alone under every scheme; only its reference was measured."""
    evaluator, findings = surveyed(tmp_path, dense(spoil=spoil))
    data = evaluator.roles.calibration
    x = data.batch(np.arange(min(len(data), MOST_ROWS)))
    (original,) = evaluator.baseline.run(x)
    for layer in evaluator.space.layers:
        for option in layer.options[1:]:
            plan = CompressionPlan(steps=(Step(name="quantize", layers={layer.name: option}),))
            (outputs,) = Session(evaluator.build(plan, {})[1], 1).run(x)
            assert findings.damage[layer.name][option] == pytest.approx(divergence(outputs, original), rel=1.0, abs=0)
            assert findings.damage[layer.name][option] > divergence(outputs, original) / 2


def test_operators_are_measured_together(tmp_path: Path) -> None:
    evaluator, findings = surveyed(tmp_path, conv(), SpaceSpec(calibrations=("minmax",)))
    names = [layer.name for layer in evaluator.space.layers]
    assert {"conv1", "conv2", "fc", "op:Add", "op:GlobalAveragePool"} <= set(names)
    assert all(findings.damage[name][FLOAT] == 0 < max(findings.damage[name].values()) for name in names)
    assert set(findings.latency_ms) == set(names)


def test_a_layer_whose_outputs_are_not_finite_counts_as_very_harmful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of harms stay finite, so that the programme over them still works."""
    found: list[float] = []

    def infinite(outputs: np.ndarray, reference: np.ndarray) -> float:
        found.append(1.0)
        return float("inf") if len(found) == 1 else 0.01 * float(np.abs(outputs - reference).max() > 0)

    monkeypatch.setattr(survey_module, "divergence", infinite)
    evaluator, findings = surveyed(tmp_path)
    harms = findings.damage["fc1"]
    assert max(harms.values()) == MOST_HARM
    assert harms[FLOAT] == 0.0
    problem = build_problem(evaluator.space, findings, ("size",), 0)
    assert np.isfinite(problem.total_damage({"fc1": "u8-asym-minmax/s8-sym-channel"}))
    plans = front(problem, 24)
    assert plans
    assert plans[-1]["fc1"] == FLOAT
    assert problem.total_damage(float_assignment(evaluator.space)) == 0.0
