"""The pages about one trial, about several side by side, about layers and about the server: their figures are the API's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import Site, Watched, sign_in
from dashboard_jobs import long_job, submitted
from playwright.sync_api import Browser, Route, expect
from running_server import RunningServer

from tuner.demo import prepare_demo
from tuner.job import Budget, load_job
from tuner.wire import SETTLED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CODES = {"u8": (0, 255), "s8": (-128, 127), "u16": (0, 65535), "s16": (-32768, 32767)}
CHART = """(id) => {
  const chart = document.getElementById(id);
  const lines = (chart.layout.shapes ?? []).filter(({type}) => type === "line");
  return {counts: chart.data[0].y.map((count) => count ?? 0), lines: lines.map(({x0}) => x0)};
}"""


@dataclass(frozen=True)
class Digits(Site):
    """A server without keys, with a finished job on handwritten digits. plain: another trial than the best one."""

    server: RunningServer
    job: str
    best: int
    plain: int

    def get(self, path: str, **parameters: Any) -> Any:
        return self.server.get(f"/jobs/{self.job}{path}", **parameters)

    def at(self, path: str) -> str:
        return f"/jobs/{self.job}{path}"


@pytest.fixture(scope="module")
def digits(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Digits]:
    folder: Path = tmp_path_factory.mktemp("digits")
    job = load_job(prepare_demo(folder / "demo", lambda _: None))
    job = job.model_copy(update={"budget": Budget(trials=6, seconds=120, threads=1)})
    with RunningServer(folder) as server:
        job_id = submitted(server, job)
        server.wait(job_id, "succeeded", seconds=300)
        best = server.get(f"/jobs/{job_id}")["outcome"]["trial"]
        trials = server.get(f"/jobs/{job_id}/trials", state="complete")["items"]
        plain = next(trial["number"] for trial in trials if trial["number"] != best)
        yield Digits(browser, server.url, server, job_id, best, plain)


def text(at: Watched, id: str) -> str:
    return at.page.locator(f"#{id}").inner_text().replace("\u00a0", " ").replace("−", "-")


def kibibytes(size: float) -> str:
    return f"{size / 1024:.0f} KiB"


def test_a_trials_figures_are_the_apis(digits: Digits) -> None:
    trial = digits.get(f"/trials/{digits.best}")
    (verdict,) = trial["verdicts"]
    with digits.open() as at:
        at.go(digits.at(f"/trials/{digits.best}"))
        assert text(at, "drop") == f"{100 * verdict['drop']:.2f} %"
        assert text(at, "drop-more") == f"{100 * verdict['lower']:.2f} to {100 * verdict['upper']:.2f} %; allowed 1.00 %"
        assert text(at, "speed") == f"{trial['speedup']['value']:.2f}×"
        assert text(at, "size") == kibibytes(trial["measurements"]["size_bytes"]["value"])
        assert text(at, "rows") == str(verdict["samples"])
        assert text(at, "digest") == trial["plan_digest"]
        assert at.page.locator("#times tr").count() == sum(seconds > 0 for seconds in trial["timings"].values())
        assert text(at, "badge") == "within target"
        assert f"trial-{digits.best}.plan.json digits.onnx -o trial-{digits.best}.onnx" in text(at, "command")
        link = at.page.get_by_role("link", name="Download the model").get_attribute("href")
    model = httpx.get(f"{digits.url}{link}", timeout=120)
    assert len(model.content) == trial["measurements"]["size_bytes"]["value"]


def test_a_trials_plan_is_told_layer_by_layer(digits: Digits) -> None:
    trial = digits.get(f"/trials/{digits.best}")
    model = digits.get("")["model"]
    order = [layer["name"] for layer in digits.server.get(f"/models/{model}/layers") if layer["name"] in trial["assignment"]]
    with digits.open() as at:
        at.go(digits.at(f"/trials/{digits.best}"))
        cells = at.page.locator("#strip button")
        assert cells.count() == len(trial["assignment"])
        told = [cells.nth(place).get_attribute("aria-label") or "" for place in range(len(order))]
        assert [label.split(" (")[0] for label in told] == [f"{place}. {name}" for place, name in enumerate(order, 1)]
        compressed = [name for name in order if trial["assignment"][name] != "float"]
        assert [name for name, label in zip(order, told, strict=True) if "left in float" not in label] == compressed
        cells.first.focus()
        expect(at.page.locator("#told")).to_have_text(told[0])
        at.page.get_by_text("The plan as a table").click()
        assert at.page.locator("#plan-rows tr").count() == len(trial["assignment"])


def test_a_trial_tells_the_rows_it_lost_and_leads_to_its_neighbours(digits: Digits) -> None:
    (flips,) = digits.get("/compare", trial=digits.plain)["flips"]
    with digits.open() as at:
        at.go(digits.at(f"/trials/{digits.plain}"))
        expect(at.page.locator("#flips dd").first).to_contain_text(str(flips["lost"]) if flips["lost"] else "none")
        at.page.get_by_role("link", name="Compare with the best").click()
        at.page.wait_for_url(re.compile(rf"compare\?trial={digits.plain}&trial={digits.best}$"))
        at.ready()
        at.go(digits.at("/trials/0"))
        at.page.locator("a[rel=next]").click()
        at.page.wait_for_url(re.compile("/trials/1$"))
        at.ready()
        assert at.page.locator("a[rel=prev]").inner_text() == "← Trial 0"


def test_a_running_trial_looks_again_and_a_failed_one_says_why(digits: Digits) -> None:
    trial = digits.get("/trials/0")
    empty = trial | {"measurements": {}, "verdicts": [], "speedup": None, "timings": {}}
    error = {"type": "ModelError", "message": "the runtime <b>refuses</b> it", "step": "session"}
    states = [empty | {"state": "running"}, empty | {"state": "running"}, empty | {"state": "failed", "error": error}]

    def answer(route: Route) -> None:
        route.fulfill(body=json.dumps(states.pop(0) if len(states) > 1 else states[0]), content_type="application/json")

    with digits.open() as at:
        at.page.route("**/api/v1/jobs/*/trials/0", answer)
        at.go(digits.at("/trials/0"))
        assert text(at, "badge") == "running"
        expect(at.page.locator("#badge")).to_have_text("failed", timeout=20_000)
        expect(at.page.locator("#failure")).to_have_text(f"Failed at the step “session”: {error['message']} (ModelError)")


def test_compared_figures_are_the_apis(digits: Digits) -> None:
    pair = (digits.best, digits.plain)
    compared = digits.get("/compare", trial=list(pair))
    trials = [digits.get(f"/trials/{number}") for number in pair]
    with digits.open() as at:
        at.go(digits.at(f"/compare?trial={pair[0]}&trial={pair[1]}"))
        rows = {row.locator("th").inner_text(): row.locator("td") for row in at.page.locator("#figure-rows tr").all()}
        sizes = [cell.inner_text() for cell in rows["Size"].all()[1:]]
        expected = [kibibytes(trial["measurements"]["size_bytes"]["value"]) for trial in trials]
        assert [size.replace("\u00a0", " ").removesuffix(" best") for size in sizes] == expected
        least = min(trial["measurements"]["size_bytes"]["value"] for trial in trials)
        marked = [size == kibibytes(least) and len(set(expected)) > 1 for size in expected]
        assert [size.endswith("best") for size in sizes] == marked
        seen = sum(one["rows"] for one in compared["classes"])
        right = [sum(one["rows"] * one["trials"][place] for one in compared["classes"]) / seen for place in range(2)]
        shared = rows[f"top1 on {seen} rows that all have scored"]
        assert [shared.nth(place + 1).inner_text().split("\u00a0")[0] for place in range(2)] == [f"{100 * share:.2f}" for share in right]
        assert str(compared["rows"]) in text(at, "basis")
        counts = [[cell.inner_text() for cell in row.locator("td.n").all()] for row in at.page.locator("#flip-rows tr").all()]
        assert counts == [[str(flips["lost"]), str(flips["gained"])] for flips in compared["flips"]]
        differing = [layer for layer in trials[0]["assignment"] if trials[0]["assignment"][layer] != trials[1]["assignment"][layer]]
        assert sorted(th.inner_text() for th in at.page.locator("#plan-rows th").all()) == sorted(differing)


def test_what_is_compared_stands_in_the_address(digits: Digits) -> None:
    with digits.open() as at:
        at.go(digits.at("/compare"))
        expect(at.page.get_by_text("Choose at least two trials")).to_be_visible()
        offer = at.page.locator("#offers a").first
        expect(offer).to_have_text(re.compile(rf"\+ Trial {digits.best} .*, the best$"))
        offer.click()
        at.page.wait_for_url(re.compile(rf"compare\?trial={digits.best}$"))
        at.ready()
        at.page.get_by_label("Another trial").fill(str(digits.plain))
        at.page.get_by_role("button", name="Add").click()
        at.page.wait_for_url(re.compile(rf"compare\?trial={digits.best}&trial={digits.plain}$"))
        at.ready()
        at.page.get_by_role("link", name=f"Take trial {digits.best} out").click()
        at.page.wait_for_url(re.compile(rf"compare\?trial={digits.plain}$"))
        at.ready()


def test_a_layers_values_are_drawn_with_their_range(digits: Digits) -> None:
    plan = digits.get("/best/plan")
    profiles = {profile["layer"]: profile for profile in digits.get("/layers")}
    layer = next(name for name in plan["layers"] if profiles[name]["tensor"] in plan["tensors"])
    profile = profiles[layer]
    quantized = plan["tensors"][profile["tensor"]]
    ends = [(code - quantized["zero_point"]) * quantized["scale"] for code in CODES[quantized["dtype"]]]
    with digits.open() as at:
        at.go(digits.at(f"/layers?layer={layer}"))
        drawn = {name: at.page.evaluate(CHART, name) for name in ("activation", "weight")}
        assert drawn["activation"]["counts"] == profile["activation"]["counts"]
        assert drawn["weight"]["counts"] == profile["weight"]["counts"]
        assert drawn["activation"]["lines"] == pytest.approx(ends)
        most = max(abs(profile["weight"]["low"]), abs(profile["weight"]["high"]))
        assert drawn["weight"]["lines"] == pytest.approx([-most, most])
        assert "clips" in text(at, "activation-words")
        cells = at.page.evaluate("document.getElementById('map').data[0].z")
        options = {option for one in profiles.values() for option in one["divergence"]} - {"float"}
        assert (len(cells), {len(row) for row in cells}) == (len(profiles), {len(options)})


def test_a_layer_is_chosen_from_the_table_and_the_table_sorts(digits: Digits) -> None:
    profiles = digits.get("/layers")
    largest = max(profiles, key=lambda profile: int(profile["params"]))["layer"]
    with digits.open() as at:
        at.go(digits.at("/layers"))
        at.page.get_by_role("button", name="Parameters").click()
        first = at.page.locator("#layer-rows th").first
        expect(first).to_have_text(largest)
        first.get_by_role("button").click()
        at.page.wait_for_url(re.compile(rf"layer={re.escape(largest)}$"))
        expect(at.page.get_by_label("Layer", exact=True)).to_have_value(largest)


def test_without_profiles_a_models_layers_are_told_as_far_as_known(digits: Digits, tmp_path: Path) -> None:
    job_id = submitted(digits.server, long_job(tmp_path))
    digits.server.post(f"/jobs/{job_id}/cancel")
    digits.server.wait(job_id, *SETTLED)
    job = digits.server.get(f"/jobs/{job_id}")
    assert not job["progress"]["profiled"]
    with digits.open() as at:
        at.go(f"/jobs/{job_id}/layers")
        names = [layer["name"] for layer in digits.server.get(f"/models/{job['model']}/layers")]
        assert [cell.inner_text() for cell in at.page.locator("#layer-rows th").all()] == names
        expect(at.page.get_by_text("ended before its layers were measured")).to_be_visible()


def test_the_servers_figures_are_the_apis(digits: Digits) -> None:
    with digits.open() as at:
        at.go("/system")
        system = digits.server.get("/system")
        (target,) = digits.server.get("/capabilities")
        facts = dict(zip(*(at.page.locator(f"#machine {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
        assert (facts["onnxruntime"], facts["Processor"]) == (system["versions"]["onnxruntime"], system["machine"]["processor"])
        assert (text(at, "running"), text(at, "queued")) == ("0", "0")
        files = system["storage"]["artifacts"]["files"]
        assert f"in {files} files" in text(at, "storage")
        assert at.page.locator("#able-layers tr").count() == len(target["layers"])
        assert at.page.locator("#able-processors tr[aria-current]").count() == 1


@dataclass(frozen=True)
class Guarded(Site):
    """A server that asks for keys. keys: by role."""

    keys: dict[str, str]


@pytest.fixture(scope="module")
def guarded(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("keys")
    tuner = str(Path(sys.executable).with_name("tuner"))
    made = {}
    for role in ("viewer", "admin"):
        command = [tuner, "keys", "create", f"the {role}", "--role", role, "--data-dir", str(folder / "data")]
        made[role] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    with RunningServer(folder) as server:
        yield Guarded(browser, server.url, made)


def status_with(site: Site, key: str) -> int:
    return httpx.get(f"{site.url}/api/v1/jobs", headers={"Authorization": f"Bearer {key}"}, timeout=30).status_code


def test_an_admin_makes_and_revokes_keys(guarded: Guarded) -> None:
    with guarded.open() as at:
        sign_in(at.page.context, guarded.url, guarded.keys["admin"])
        at.go("/system")
        at.page.get_by_label("Name").fill("nightly builds")
        at.page.get_by_label("Role").select_option("viewer")
        at.page.get_by_role("button", name="Make a key").click()
        expect(at.page.locator("#made-key")).to_have_text(re.compile("^acc_"))
        key = text(at, "made-key")
        assert status_with(guarded, key) == 200
        at.page.get_by_role("button", name="Done").click()
        assert key not in at.page.content()
        row = at.page.locator("#keys tr").filter(has_text="nightly builds")
        row.get_by_role("button", name="Revoke").click()
        at.page.get_by_role("button", name="Keep it").click()
        assert status_with(guarded, key) == 200
        row.get_by_role("button", name="Revoke").click()
        at.page.get_by_role("button", name="Revoke it").click()
        expect(row).to_contain_text("revoked")
        assert status_with(guarded, key) == 401


def test_a_viewer_sees_the_server_but_no_keys(guarded: Guarded) -> None:
    with guarded.open() as at:
        sign_in(at.page.context, guarded.url, guarded.keys["viewer"])
        at.go("/system")
        assert text(at, "disk") != "–"
        assert at.page.get_by_text("API keys").count() == 0
