from __future__ import annotations

import numpy as np
import pytest
from tiny_jobs import SMALL_SPACE, conv, dense_data, tiny_job

from search_spaces.schemes import FLOAT
from tuner.evaluator import Evaluator
from tuner.files import layers_file
from tuner.layer_profiles import PROFILES, profiles, write_profiles
from tuner.results import Findings, LayerProfile
from tuner.survey import survey

Surveyed = tuple[Evaluator, Findings]


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Surveyed:
    """A network with two convolutions, an operator without a weight between them, and a product."""
    folder = tmp_path_factory.mktemp("profiles")
    space = SMALL_SPACE.model_copy(update={"operators": True})
    evaluator = Evaluator(tiny_job(folder, conv(), dense_data(conv(), 600), space=space), folder / "cache")
    return evaluator, survey(evaluator)


def by_name(surveyed: Surveyed) -> dict[str, LayerProfile]:
    return {profile.layer: profile for profile in profiles(*surveyed)}


def test_every_layer_of_the_space_has_what_the_survey_found(surveyed: Surveyed) -> None:
    evaluator, findings = surveyed
    found = by_name(surveyed)
    assert list(found) == [layer.name for layer in evaluator.space.layers]
    for layer in evaluator.space.layers:
        profile = found[layer.name]
        assert (profile.op, profile.tensor) == (layer.op, layer.input)
        assert profile.divergence == findings.damage[layer.name]
        assert profile.latency_ms == findings.latency_ms[layer.name]
        assert profile.size_bytes == findings.size_bytes[layer.name]
        assert list(profile.divergence) == list(layer.options)
        assert FLOAT in profile.latency_ms
    assert (found["conv1"].params, found["conv1"].macs, found["fc"].params, found["fc"].macs) == (54, 864, 30, 30)


def test_histograms_are_those_of_the_input_and_of_the_weight(surveyed: Surveyed) -> None:
    evaluator, _ = surveyed
    profile = by_name(surveyed)["conv1"]
    assert profile.tensor == "image"
    weight = evaluator.prepared.array("w1")
    assert profile.weight is not None
    assert (profile.weight.low, profile.weight.high, sum(profile.weight.counts)) == (weight.min(), weight.max(), 54)
    rows = evaluator.roles.calibration
    image = rows.batch(np.arange(len(rows)))["x"]
    assert profile.activation is not None
    assert (profile.activation.low, profile.activation.high) == (image.min(), image.max())
    assert (sum(profile.activation.counts), len(profile.activation.counts)) == (image.size, 64)


def test_an_operator_has_no_histograms(surveyed: Surveyed) -> None:
    found = by_name(surveyed)
    operators = [profile for name, profile in found.items() if name.startswith("op:")]
    assert "op:Add" in found
    assert {(profile.tensor, profile.activation, profile.weight, profile.params, profile.macs) for profile in operators} == {
        ("", None, None, 0, None)
    }


def test_they_are_written_once(surveyed: Surveyed, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, findings = surveyed
    write_profiles(evaluator, findings)
    path = layers_file(evaluator.cache)
    assert PROFILES.validate_json(path.read_text()) == profiles(evaluator, findings)
    monkeypatch.setattr("tuner.layer_profiles.profiles", lambda *_: pytest.fail("they were there"))
    write_profiles(evaluator, findings)
