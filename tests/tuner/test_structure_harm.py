"""What is measured of the harm that taking away does, and what lies between."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from spare_networks import spare_dense, spare_job

from search_spaces.space import LayerChoices, SpaceSpec
from search_spaces.structure import ChannelSpec, RankSpec, SparsitySpec
from tuner.evaluator import Evaluator
from tuner.measure.divergence import divergence
from tuner.measure.footprint import compressed_size
from tuner.measure.runtime import Session
from tuner.plan import CompressionPlan, make_plan
from tuner.results import Findings
from tuner.structure_harm import (
    LEAST_HARM,
    MOST_HARM,
    PACKED_BYTES,
    RECOVERED,
    expected,
    harm_row,
    harms,
    measured_options,
    packed_bytes,
)
from tuner.survey import survey, surveyed_models

ALL = SpaceSpec(
    name="all",
    channels=ChannelSpec(shares=(0.125, 0.25, 0.5, 0.75)),
    sparsity=SparsitySpec(shares=(0.5, 0.9)),
    rank=RankSpec(shares=(0.25, 0.5)),
    calibrations=("minmax",),
    operators=False,
)


def layer_of(step: str, *options: str) -> LayerChoices:
    return LayerChoices(name=f"{step}:a", op="Gemm", input="", options=("whole", *options), step=step, layer="a")


@pytest.mark.parametrize(
    ("layer", "measured"),
    [
        (layer_of("channels", "keep-9"), ["keep-9"]),
        (layer_of("channels", "keep-9", "keep-8", "keep-7"), ["keep-9", "keep-8", "keep-7"]),
        (layer_of("channels", *(f"keep-{n}" for n in range(9, 2, -1))), ["keep-9", "keep-6", "keep-3"]),
        (
            layer_of("sparsify", "0.3-any", "0.4-any", "0.5-any", "0.5-2:4", "0.6-any", "0.7-any"),
            ["0.3-any", "0.5-any", "0.7-any", "0.5-2:4"],
        ),
        (layer_of("factorize", "svd-0.25", "svd-0.5", "tucker2-0.25"), ["svd-0.25", "svd-0.5", "tucker2-0.25"]),
    ],
)
def test_of_each_kind_three_options_are_measured(layer: LayerChoices, measured: list[str]) -> None:
    assert measured_options(layer) == measured


def harms_by(evaluator: Evaluator, outputs: list[float]) -> dict[str, dict[str, float]]:
    """The harms of all parameters if the n-th model that is run has the n-th of these outputs and the original 1."""
    left, whole = iter(outputs), np.ones((4, 1), np.float32)

    def run(_plan: CompressionPlan) -> NDArray[np.float32]:
        return np.full((4, 1), next(left), np.float32)

    return {layer.name: found for layer, found in harms(evaluator, whole, run, lambda: None)}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    folder = tmp_path_factory.mktemp("harm")
    space = SpaceSpec(quantize=False, channels=ChannelSpec(shares=(0.125, 0.25, 0.375, 0.5, 0.625), per_layer={"fc1": ()}))
    return Evaluator(spare_job(folder, space), folder / "cache")


def test_what_is_not_measured_lies_on_a_line_between_in_logarithms(evaluator: Evaluator) -> None:
    def unrelated(output: float) -> float:
        return divergence(np.full((4, 1), output, np.float32), np.ones((4, 1), np.float32))

    found = harms_by(evaluator, [1.1, 1.2, 1.6])["channels:fc2"]
    first, middle, last = (unrelated(output) for output in (1.1, 1.2, 1.6))
    assert list(found) == ["whole", "keep-14", "keep-12", "keep-10", "keep-8", "keep-6"]
    assert found["whole"] == 0
    assert [found[f"keep-{n}"] for n in (14, 10, 6)] == pytest.approx([first, middle, last])
    assert found["keep-12"] == pytest.approx(math.sqrt(first * middle))
    assert found["keep-8"] == pytest.approx(math.sqrt(middle * last))


@pytest.mark.parametrize("outputs", [[1.5, 1.1, 1.3], [1.0, 1.0, 1.0], [float("inf"), 1.1, float("nan")]])
def test_taking_more_away_never_harms_less_and_harm_stays_finite(evaluator: Evaluator, outputs: list[float]) -> None:
    values = list(harms_by(evaluator, outputs)["channels:fc2"].values())[1:]
    assert values == sorted(values)
    assert LEAST_HARM <= values[0] and values[-1] <= MOST_HARM


def test_a_row_of_the_table_shows_the_middle_option() -> None:
    harm = {"whole": 0.0, "keep-9": 0.1, "keep-6": 0.2, "keep-3": 0.3}
    row = harm_row(layer_of("channels", "keep-9", "keep-6", "keep-3"), harm, params=7)
    assert (row.layer, row.op, row.scheme, row.divergence, row.params, row.macs) == ("channels:a", "Gemm", "keep-6", 0.2, 7, None)
    assert harm_row(layer_of("channels", "keep-9"), harm).scheme == "keep-9"


def test_training_is_expected_to_leave_a_tenth_of_the_harm(evaluator: Evaluator, tmp_path: Path) -> None:
    assert expected(evaluator, {"whole": 0.0, "keep-8": 0.5}) == {"whole": 0.0, "keep-8": pytest.approx(0.5 * RECOVERED)}
    untrained = Evaluator(spare_job(tmp_path, evaluator.spec.model_copy(update={"recovery": None})), tmp_path / "cache")
    assert expected(untrained, {"whole": 0.0, "keep-8": 0.5}) == {"whole": 0.0, "keep-8": 0.5}


def test_zeros_save_their_bytes_less_what_it_takes_to_tell_where_they_stand() -> None:
    found = packed_bytes(layer_of("sparsify", "0.5-any", "0.75-1:4"), 8000)
    assert found["whole"] == 0
    # Half of the positions: one bit for each weight.
    assert found["0.5-any"] == pytest.approx(-8000 * (0.5 * PACKED_BYTES - 1 / 8))
    entropy = 0.75 * math.log2(4 / 3) + 0.25 * 2
    assert found["0.75-1:4"] == pytest.approx(-8000 * (0.75 * PACKED_BYTES - entropy / 8))
    # So few zeros are not worth the note.
    assert packed_bytes(layer_of("sparsify", "0.0001-any"), 8000)["0.0001-any"] <= 0


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_formula_for_packed_zeros_tells_what_a_packer_makes_of_them(share: float) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal(40_000).astype(np.float32)
    pruned = np.where(random.random(40_000) < share, np.float32(0), weights)
    saved = compressed_size(weights.tobytes()) - compressed_size(pruned.tobytes())
    assert -packed_bytes(layer_of("sparsify", f"{share}-any"), 40_000)[f"{share}-any"] == pytest.approx(saved, rel=0.2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluator, Findings]:
    folder = tmp_path_factory.mktemp("survey")
    evaluator = Evaluator(spare_job(folder, ALL, objectives=("params",)), folder / "cache")
    return evaluator, survey(evaluator)


def test_a_survey_tells_of_every_option_of_every_part(found: tuple[Evaluator, Findings]) -> None:
    evaluator, findings = found
    assert set(findings.damage) == {layer.name for layer in evaluator.space.layers}
    for layer in evaluator.space.layers:
        assert tuple(findings.damage[layer.name]) == layer.options
        assert findings.damage[layer.name][layer.rest] == 0
    rows = {row.layer for row in findings.sensitivity}
    assert rows == set(findings.damage)
    assert {"channels:fc1", "sparsify:fc2", "factorize:fc2", "fc3"} <= rows
    assert Findings.model_validate_json(findings.model_dump_json()) == findings
    # Alignment and the clock have no say where size is asked for.
    assert findings.dominated == {}


def test_progress_counts_every_model_once(found: tuple[Evaluator, Findings], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    evaluator = Evaluator(found[0].job, tmp_path / "cache")
    survey(evaluator, lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1] == (surveyed_models(evaluator.space) - 1, surveyed_models(evaluator.space))


def test_measured_harm_is_that_of_the_part_alone_before_training(found: tuple[Evaluator, Findings]) -> None:
    evaluator, findings = found
    options = {"channels": evaluator.space.steps["channels"] | {"recalibrate": False}}
    _, data = evaluator.build(make_plan({"fc2": {"channels": "keep-4"}}, evaluator.job.seed, options), {})
    rows = evaluator.roles.calibration.batch(np.arange(len(evaluator.roles.calibration)))
    harm = divergence(Session(data, 1).run(rows)[0], evaluator.baseline.run(rows)[0])
    assert findings.damage["channels:fc2"]["keep-4"] == pytest.approx(RECOVERED * harm, rel=1e-3)


def test_what_is_taken_away_counts_below_zero(found: tuple[Evaluator, Findings]) -> None:
    _, findings = found
    whole = spare_dense()
    assert findings.size_bytes["channels:fc2"] == {"whole": 0.0} | {
        f"keep-{keep}": -4.0 * (16 - keep) * (16 + 1 + 5) for keep in (14, 12, 8, 4)
    }
    assert findings.params_saved["channels:fc1"]["keep-8"] == -8 * (16 + 1 + 16)
    assert findings.macs_saved["channels:fc1"]["keep-8"] == -8 * (16 + 16)
    assert findings.packed_bytes["sparsify:fc2"]["0.5-any"] == pytest.approx(-256 * (0.5 * PACKED_BYTES - 1 / 8))
    assert findings.params == whole.parameters and findings.macs == 592
