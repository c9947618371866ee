from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service import Caller, opened

from search_spaces.capability import RuntimeTarget, load_target
from search_spaces.presets import load_preset, preset_names
from search_spaces.recovery import RecoverySpec
from search_spaces.schemes import FLOAT, WHOLE, ChannelScheme, QuantScheme, RankScheme, SparsityScheme
from search_spaces.space import SpaceSpec
from search_spaces.structure import ChannelSpec
from tuner.compress.pipeline import KNOWN_STEPS
from tuner.data.metrics import METRICS
from tuner.search.base import STRATEGIES


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


def test_spaces_are_the_presets(api: Caller) -> None:
    found = [SpaceSpec.model_validate(space) for space in api.get("/spaces").json()]
    assert found == [load_preset(name) for name in preset_names()]
    assert all(space.summary for space in found)


def test_strategies_and_metrics_are_those_of_the_registries_and_say_what_they_are(api: Caller) -> None:
    strategies, metrics = api.get("/strategies").json(), api.get("/metrics").json()
    assert [strategy["name"] for strategy in strategies] == [*STRATEGIES]
    assert [metric["name"] for metric in metrics] == [*METRICS]
    assert all(len(entry["summary"]) > 20 for entry in (*strategies, *metrics))
    by_name = {metric["name"]: metric for metric in metrics}
    assert by_name["top1"] == {
        "name": "top1",
        "summary": "The share of rows whose label is among the k highest outputs.",
        "direction": "higher",
        "needs_labels": True,
        "per_row": True,
        "lowest": 0.0,
        "highest": 1.0,
    }
    assert (by_name["mse"]["direction"], by_name["mse"]["highest"], by_name["auroc"]["per_row"]) == ("lower", None, False)


def test_every_pass_is_described_with_choices_that_can_be_read(api: Caller) -> None:
    passes = api.get("/passes").json()
    assert [entry["name"] for entry in passes] == [*KNOWN_STEPS]
    assert all(entry["summary"] for entry in passes)
    by_name = {entry["name"]: entry for entry in passes}
    for name, scheme in {"channels": ChannelScheme, "factorize": RankScheme, "sparsify": SparsityScheme, "quantize": QuantScheme}.items():
        first, *others = by_name[name]["choice"]["examples"]
        assert first == (FLOAT if name == "quantize" else WHOLE)
        assert [scheme.parse(other).name for other in others] == others
    assert by_name["recover"]["choice"]["type"] == "null"


def test_every_pass_names_its_options_and_what_they_may_be(api: Caller) -> None:
    passes = {entry["name"]: entry for entry in api.get("/passes").json()}
    for entry in passes.values():
        assert entry["space"] == "" or entry["space"] in SpaceSpec.model_fields
        assert set(entry["names"]) <= set(entry["options"]["properties"])
        assert all(len(what) > 10 for names in entry["names"].values() for what in names.values())
    assert set(passes["channels"]["options"]["properties"]) == set(ChannelSpec.model_fields)
    assert set(passes["recover"]["options"]["properties"]) == set(RecoverySpec.model_fields)
    assert set(passes["quantize"]["options"]["properties"]) < set(SpaceSpec.model_fields)
    assert {"taylor", "l1"} <= set(passes["channels"]["names"]["criterion"])
    assert {"agp", "lottery"} <= set(passes["sparsify"]["names"]["pruner"])
    assert {"tucker2", "svd"} <= set(passes["factorize"]["names"]["methods"])
    assert {"logits", "labels"} <= set(passes["recover"]["names"]["losses"])


def test_capabilities_are_those_of_the_runtimes(api: Caller) -> None:
    assert [RuntimeTarget.model_validate(target) for target in api.get("/capabilities").json()] == [load_target("onnxruntime-cpu")]


@pytest.mark.parametrize("path", ["spaces", "strategies", "metrics", "passes", "capabilities"])
def test_who_has_a_list_gets_none(api: Caller, path: str) -> None:
    answer = api.get(f"/{path}")
    assert answer.headers["cache-control"] == "private, max-age=60"
    again = api.get(f"/{path}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert api.get(f"/{path}", headers={"If-None-Match": '"old"'}).json() == answer.json()


def test_a_viewer_may_look_and_nobody_without_a_key_where_there_are_keys(api: Caller, tmp_path: Path) -> None:
    assert api.with_key("viewer").get("/spaces").status_code == 200
    (tmp_path / "keyed").mkdir()
    with opened(tmp_path / "keyed", anonymous=False) as services:
        answer = Caller(services).get("/spaces")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
