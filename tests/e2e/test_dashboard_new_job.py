"""A new job from its page: files are chosen or on the server already, a job file and a request stand beside the form, errors are told."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chromium import Watched, axe, watched
from playwright.sync_api import Browser, Route, expect
from running_server import RunningServer
from tiny_jobs import dense, dense_data, save_data

from tuner.job import JobSpec, parse_job

READY_MS = 30_000
NASTY = [
    *("yes", "1e3", "~", "null", "0x1f", "1:30", "- x", "a: b", "x #y", "[x]", "{y}"),
    *("'q'", '"d"', "back\\slash", "é 😀.npz", "\x7f\u2028"),
]


class Site:
    """A server, and files for it: a model, three data files of which `holdout.npz` holds nothing that the others hold."""

    def __init__(self, server: RunningServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        model = dense()
        (folder / "net.onnx").write_bytes(model)
        for seed, (name, rows) in enumerate({"train": 600, "validation": 400, "holdout": 400}.items(), start=1):
            save_data(folder / f"{name}.npz", dense_data(model, rows, seed=seed))

    def paths(self, *names: str) -> list[Path]:
        return [self.folder / name for name in names]

    def upload(self, name: str) -> str:
        return self.server.upload("models" if name.endswith(".onnx") else "datasets", self.folder / name)

    def ids(self) -> dict[str, str]:
        """The id of each file by the name that it was sent with."""
        found = [*self.server.get("/models")["items"], *self.server.get("/datasets")["items"]]
        return {item["name"]: item["id"] for item in found}

    def newest(self) -> dict[str, Any]:
        """The job that was submitted last; it is stopped, since only its submission matters."""
        job = self.server.get(f"/jobs/{self.server.get('/jobs')['items'][0]['id']}")
        if job["state"] in ("queued", "running"):
            self.server.post(f"/jobs/{job['id']}/cancel")
        return dict(job)

    def jobs(self) -> int:
        return len(self.server.get("/jobs")["items"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("new-job")
    with RunningServer(folder) as server:
        yield Site(server, folder)


def choose_files(at: Watched, site: Site, *data: str) -> None:
    at.page.set_input_files("#model-file", site.folder / "net.onnx")
    at.page.set_input_files("#data-files", site.paths(*data))


def previewed(at: Watched, state: str = "ready") -> None:
    expect(at.page.locator("#preview")).to_have_attribute("data-state", state, timeout=READY_MS)


def start(at: Watched) -> None:
    """Press the button, and wait for the job's page without caring what is on it."""
    at.page.route(re.compile(r"/jobs/[^/]+$"), lambda route: route.fulfill(body="<title>Job</title>", content_type="text/html"))
    at.page.click("#submit")
    at.page.wait_for_url(re.compile("/jobs/[0-9]"))


def as_yaml(at: Watched, ids: dict[str, str]) -> JobSpec:
    """The job file beside the form, with the ids of the files that it names."""
    raw = yaml.safe_load(at.page.text_content("#yaml") or "")
    data = {role: ref | {"file": ids[ref["file"]]} for role, ref in raw["data"].items()}
    return parse_job(raw | {"model": ids[raw["model"]], "data": data})


def as_request(at: Watched) -> JobSpec:
    """What the command beside the form sends."""
    words = shlex.split((at.page.text_content("#curl") or "").replace("\\\n", " "))
    assert words[:3] == ["curl", "-fsS", f"{at.home}/api/v1/jobs"]
    return parse_job(json.loads(words[words.index("-d") + 1]))


def test_a_job_by_choosing_files_and_nothing_else(site: Site, browser: Browser) -> None:
    with watched(browser, site.server.url) as at:
        at.go("/new")
        expect(at.page.locator("#preview")).to_have_attribute("data-state", "empty")
        choose_files(at, site, "train.npz", "validation.npz", "holdout.npz")
        previewed(at)
        expect(at.page.locator("#model-facts")).to_contain_text("3, of which 3 can be compressed")
        expect(at.page.locator("#validation-words")).to_contain_text("400 rows")
        expect(at.page.locator("#preview")).to_contain_text("top1 may get worse by at most 1\u00a0% of its value")
        assert at.page.locator("#preview .rows td").all_text_contents() == ["512 rows", "600 rows", "400 rows", "400 rows"]
        assert "\n".join(axe(at.page)) == ""
        file, request = as_yaml(at, site.ids()), as_request(at)
        start(at)
    ids, job = site.ids(), site.newest()
    refs = {role: (ref["file"], ref["rows"]) for role, ref in job["spec"]["data"].items()}
    assert refs == {
        "calibration": (ids["train.npz"], [0, 512]),
        "training": (ids["train.npz"], None),
        "validation": (ids["validation.npz"], None),
        "holdout": (ids["holdout.npz"], None),
    }
    assert job["name"] == "net"
    assert file == request == parse_job(job["spec"])


def test_what_is_said_beside_the_form_is_what_is_sent_and_can_be_taken_over(site: Site, browser: Browser) -> None:
    with watched(browser, site.server.url) as at:
        at.go("/new")
        choose_files(at, site, "validation.npz")
        page = at.page
        page.fill("#name", "on")
        page.select_option("#metric", "agreement")
        page.select_option("#demand", "least")
        page.fill("#max-drop", "97.7")
        page.select_option("#confidence", "0.9")
        page.check("[value=int8-fast]")
        page.fill("#trials", "2")
        page.fill("#minutes", "0.7")
        page.fill("#first-validation", "100")
        page.click("#more summary")
        page.select_option("#strategy", "random")
        page.select_option("#second", "size")
        page.fill("#seed", "7")
        page.uncheck("#early")
        previewed(at)
        file, request = as_yaml(at, site.ids()), as_request(at)
        start(at)
    job = site.newest()
    spec = parse_job(job["spec"])
    assert file == request == spec
    assert (spec.name, spec.constraints[0].at_least, spec.constraints[0].confidence) == ("on", 0.977, 0.9)
    assert (spec.budget.trials, spec.budget.seconds, spec.data.validation.rows) == (2, 42.0, (100, 400))
    assert (spec.objectives, spec.space, spec.strategy, spec.seed) == (("latency", "size"), "int8-fast", "random", 7)
    assert not spec.early_stopping
    with watched(browser, site.server.url) as at:
        at.go(f"/new?from={job['id']}")
        expect(at.page.locator("h1")).to_have_text("New job, from on")
        assert as_request(at) == spec
        at.page.fill("#trials", "3")
        previewed(at)
        start(at)
    again = parse_job(site.newest()["spec"])
    assert again == spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": 3})})


def test_what_has_no_place_in_the_form_is_taken_over_until_it_is_left_out(site: Site, browser: Browser) -> None:
    model, data = site.upload("net.onnx"), site.upload("holdout.npz")
    space = {"name": "mine", "summary": "it's [ mine ]", "calibrations": ["minmax"]}
    job = {
        "name": "rich",
        "model": model,
        "data": {"validation": {"file": data}},
        "constraints": [{"metric": "top1", "max_drop": 0.011}, {"metric": "size_bytes", "at_most": 60_000}],
        "space": space,
        "budget": {"trials": 2, "memory_gb": 4},
    }
    site.server.post("/jobs", json=job)
    created = site.newest()
    with watched(browser, site.server.url) as at:
        at.go(f"/new?from={created['id']}")
        assert as_request(at) == as_yaml(at, site.ids()) == parse_job(created["spec"])
        at.page.get_by_role("button", name="Leave this out").click()
        left = as_request(at)
    assert (len(left.constraints), left.space, left.budget.memory_gb, left.constraints[0].max_drop) == (1, "int8", None, 0.011)


def test_a_wrong_file_is_refused_in_words(site: Site, browser: Browser) -> None:
    with watched(browser, site.server.url) as at:
        at.go("/new")
        at.page.set_input_files("#model-file", {"name": "net.pt", "mimeType": "", "buffer": b"PK"})
        expect(at.page.locator("#sending")).to_contain_text("'net.pt' is not taken here. Export the network with torch.onnx.export")
        at.page.set_input_files("#data-files", {"name": "rows.pkl", "mimeType": "", "buffer": b"x"})
        expect(at.page.locator("#sending")).to_contain_text("'rows.pkl' is not taken here. Save plain arrays with np.savez")
        with at.expecting("status of 422"):
            at.page.set_input_files("#model-file", {"name": "bad.onnx", "mimeType": "", "buffer": b"no model"})
            expect(at.page.locator("#sending")).to_contain_text("bad.onnx (8 bytes) is not an ONNX file")
        assert "\n".join(axe(at.page)) == ""
        for _ in range(3):
            at.page.get_by_role("button", name="Dismiss").first.click()
        expect(at.page.locator("#sending li")).to_have_count(0)
        assert at.page.input_value("#model") == ""


def test_files_that_are_dropped_are_sorted_by_their_endings(site: Site, browser: Browser) -> None:
    drop = """files => {
      const held = new DataTransfer();
      for (const [name, bytes] of Object.entries(files)) held.items.add(new File([new Uint8Array(bytes)], name));
      document.querySelector("#files").dispatchEvent(new DragEvent("drop", {dataTransfer: held, bubbles: true, cancelable: true}));
    }"""
    names = ("validation.npz", "net.onnx", "train.npz")
    with watched(browser, site.server.url) as at:
        at.go("/new")
        at.page.evaluate(drop, {name: list((site.folder / name).read_bytes()) for name in names} | {"rows.csv": [49]})
        expect(at.page.locator("#sending")).to_contain_text("rows.csv is neither a model (.onnx) nor data (.npz, .parquet).")
        previewed(at)
        chosen = {name: at.page.input_value(f"#{name}") for name in ("model", "role-validation", "role-training", "role-holdout")}
    ids = site.ids()
    assert chosen == {
        "model": ids["net.onnx"],
        "role-validation": ids["validation.npz"],
        "role-training": ids["train.npz"],
        "role-holdout": "",
    }


def test_what_is_wrong_is_told_beside_its_field_before_anything_is_sent(site: Site, browser: Browser) -> None:
    before = site.jobs()
    with watched(browser, site.server.url) as at:
        at.go("/new")
        at.page.click("#submit")
        expect(at.page.locator("#model")).to_be_focused()
        expect(at.page.locator("#summary")).to_contain_text("Choose or send a model.")
        choose_files(at, site, "validation.npz")
        at.page.fill("#trials", "0")
        at.page.fill("#max-drop", "100")
        at.page.click("#submit")
        expect(at.page.locator("#max-drop")).to_be_focused()
        expect(at.page.locator("#trials-wrong")).to_have_text("Give a whole number from 1 to 100,000.")
        expect(at.page.locator("#target-wrong")).to_have_text("Give less than 100 % of the value.")
        assert at.page.get_attribute("#trials", "aria-invalid") == "true"
        at.page.fill("#trials", "5")
        at.page.fill("#max-drop", "1")
        expect(at.page.locator("#summary")).to_be_hidden()
        previewed(at)
        at.page.select_option("#role-holdout", at.page.input_value("#role-validation"))
        expect(at.page.locator("#role-holdout-wrong")).to_contain_text("Rows of validation.npz are in validation too.")
    assert site.jobs() == before


def test_what_only_the_server_finds_is_told_beside_its_field(site: Site, browser: Browser) -> None:
    rows = dict(np.load(site.folder / "validation.npz"))
    save_data(site.folder / "same_holdout.npz", rows | {"number": np.arange(400)})
    with watched(browser, site.server.url) as at:
        at.go("/new")
        with at.expecting("status of 422"):
            choose_files(at, site, "validation.npz", "same_holdout.npz")
            previewed(at, "refused")
            expect(at.page.locator("#role-holdout-wrong")).to_contain_text("holdout must hold rows that the other roles do not")
            at.page.click("#submit")
            expect(at.page.locator("#summary")).to_contain_text("holdout must hold rows")
            expect(at.page.locator("#role-holdout")).to_be_focused()
        at.page.select_option("#role-holdout", "")
        expect(at.page.locator("#role-holdout-wrong")).to_be_hidden()
        previewed(at)


def test_a_lost_answer_and_a_double_click_make_one_job(site: Site, browser: Browser) -> None:
    before = site.jobs()
    with watched(browser, site.server.url) as at:
        at.go("/new")
        choose_files(at, site, "validation.npz")
        previewed(at)

        def lose(route: Route) -> None:
            route.fetch()
            route.abort()

        at.page.route("**/api/v1/jobs", lose, times=1)
        with at.expecting("ERR_FAILED"):
            at.page.click("#submit")
            expect(at.page.locator("#summary")).to_contain_text("Press the button again")
        assert site.jobs() == before + 1
        at.page.evaluate("const button = document.getElementById('submit'); button.click(); button.click(); button.form.requestSubmit()")
        at.page.wait_for_url(re.compile("/jobs/[0-9]"))
    assert site.jobs() == before + 1
    site.newest()


def test_the_keyboard_alone_is_enough(site: Site, browser: Browser) -> None:
    model, _ = site.upload("net.onnx"), site.upload("validation.npz")
    before = site.jobs()
    with watched(browser, site.server.url) as at:
        at.go(f"/new?model={model}")
        assert at.page.input_value("#model") == model

        def reach(target: str) -> None:
            for _ in range(60):
                if at.page.evaluate("document.activeElement.id") == target:
                    return
                at.page.keyboard.press("Tab")
            raise AssertionError(f"the keyboard does not reach {target}")

        reach("role-validation")
        at.page.keyboard.type("validation")
        reach("trials")
        at.page.keyboard.press("Control+a")
        at.page.keyboard.type("2")
        previewed(at)
        at.page.route(re.compile(r"/jobs/[^/]+$"), lambda route: route.fulfill(body="<title>Job</title>", content_type="text/html"))
        reach("submit")
        at.page.keyboard.press("Enter")
        at.page.wait_for_url(re.compile("/jobs/[0-9]"))
    assert site.jobs() == before + 1
    assert site.newest()["spec"]["budget"]["trials"] == 2


def test_any_text_is_quoted_so_that_yaml_reads_it_back(site: Site, browser: Browser) -> None:
    document = {"name": "job", "list": NASTY, "numbers": [1e-7, 0.011, 1e21, 5, True, None], "maps": [{"text": text} for text in NASTY]}
    with watched(browser, site.server.url) as at:
        at.go("/new")
        script = at.page.evaluate("document.querySelector('script[type=module]').src").replace("/new.js", "/yaml.js")
        written = at.page.evaluate("async ([script, value]) => (await import(script)).yaml(value)", [script, document])
    assert yaml.safe_load(written) == document
