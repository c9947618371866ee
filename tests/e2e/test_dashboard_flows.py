"""What people do on the dashboard, from a file on their disk to a model that they take home; and a server that goes away meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from chromium import Site, axe
from dashboard_jobs import long_job, quick_job, submitted
from playwright.sync_api import Browser, expect
from running_server import RunningServer
from tiny_jobs import FEATURES, dense, dense_data, save_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SOON_MS = 30_000
"""Far beyond what any of it takes."""
END_MS = 240_000
GONE = r"net::ERR_|status of 50\d"
"""What Chromium writes to the console while a server is away, or not ready yet."""
VERDICT = re.compile("target met|nothing was gained", re.IGNORECASE)


@dataclass(frozen=True)
class Served(Site):
    server: RunningServer
    folder: Path


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("flows")
    with RunningServer(folder) as server:
        yield Served(browser, server.url, server, folder)


def test_a_job_from_files_on_the_disk_to_the_model(site: Served, tmp_path: Path) -> None:
    model, data = dense(), dense_data(dense(), 1000)
    (tmp_path / "net.onnx").write_bytes(model)
    parts = {"test": slice(500), "holdout": slice(500, 1000)}
    files = [save_data(tmp_path / f"{name}.npz", {key: value[rows] for key, value in data.items()}) for name, rows in parts.items()]
    with site.open() as at:
        at.go("/new")
        at.page.get_by_label("Send a model").set_input_files(tmp_path / "net.onnx")
        at.page.get_by_label("Send data").set_input_files(files)
        expect(at.page.locator("#model option:checked")).to_contain_text("net.onnx", timeout=SOON_MS)
        for role, file in (("validation", "test.npz"), ("holdout", "holdout.npz")):
            expect(at.page.locator(f"#role-{role} option:checked"), "guessed from the name").to_contain_text(file, timeout=SOON_MS)
        at.page.get_by_label("Amount", exact=True).fill("5")
        at.page.get_by_label("Unit of the amount").select_option("points")
        at.page.get_by_label("What to improve").select_option("size")
        at.page.get_by_label("Trials at most").fill("4")
        at.page.get_by_label("Minutes at most").fill("2")
        expect(at.page.locator("#preview-word")).to_have_text("can start", timeout=SOON_MS)
        assert "\n".join(axe(at.page)) == ""
        at.page.get_by_role("button", name="Start the job").click()
        at.page.wait_for_url(re.compile(r"/jobs/\d{8}-"), timeout=SOON_MS)
        job_id = at.page.url.rpartition("/")[2]
        expect(at.page.locator("#verdict-title")).to_have_text(VERDICT, timeout=END_MS)
        expect(at.page.locator(".js-plotly-plot").first).to_be_visible()
        with at.page.expect_download() as download:
            at.page.get_by_role("link", name="Download the model").click()
        session = onnxruntime.InferenceSession(str(download.value.path()))
        assert np.asarray(session.run(None, {"x": np.zeros((1, FEATURES), np.float32)})[0]).shape == (1, 5)
    spec = site.server.get(f"/jobs/{job_id}")["spec"]
    assert spec["constraints"][0]["max_drop"] == 0.05 and spec["constraints"][0]["relative"] is False
    assert (spec["objectives"], spec["budget"]["trials"], spec["budget"]["seconds"]) == (["size"], 4, 120)
    assert spec["data"]["validation"]["file"] != spec["data"]["holdout"]["file"]


def test_what_the_server_would_refuse_is_said_beside_the_form(site: Served, tmp_path: Path) -> None:
    (tmp_path / "narrow.onnx").write_bytes(dense(seed=3))
    data = dense_data(dense(seed=3), 300)
    data["x"] = data["x"][:, :4]
    before = site.server.get("/jobs")["items"]
    with site.open() as at:
        at.go("/new")
        at.page.get_by_label("Send a model").set_input_files(tmp_path / "narrow.onnx")
        at.page.get_by_label("Send data").set_input_files(save_data(tmp_path / "narrow.npz", data))
        expect(at.page.locator("#role-validation option:checked")).to_contain_text("narrow.npz", timeout=SOON_MS)
        with at.expecting("status of 422"):
            at.page.get_by_role("button", name="Start the job").click()
            expect(at.page.locator("#summary")).to_contain_text("16", timeout=SOON_MS)
            assert "\n".join(axe(at.page)) == ""
        assert at.page.url == f"{site.url}/new"
    assert site.server.get("/jobs")["items"] == before


def test_a_new_job_comes_to_the_list_by_itself_and_is_cancelled_and_resumed(site: Served) -> None:
    with site.open() as at:
        at.go("/")
        job_id = submitted(site.server, long_job(site.folder / "long", name="soon cancelled"))
        at.page.get_by_role("link", name="soon cancelled").click(timeout=SOON_MS)
        at.page.wait_for_url(f"{site.url}/jobs/{job_id}")
        at.ready()
        expect(at.page.locator("#badge")).to_contain_text("running", timeout=SOON_MS)
        at.page.get_by_role("button", name="Cancel").click()
        expect(at.page.locator("#badge")).to_contain_text("cancelled", timeout=SOON_MS)
        assert site.server.get(f"/jobs/{job_id}")["state"] == "cancelled"
        at.page.get_by_role("button", name="Resume").click()
        expect(at.page.locator("#badge")).to_contain_text("running", timeout=SOON_MS)
        at.page.get_by_role("button", name="Cancel").click()
        expect(at.page.locator("#badge")).to_contain_text("cancelled", timeout=SOON_MS)


def test_a_page_outlives_the_server_and_goes_on_with_it(browser: Browser, tmp_path: Path) -> None:
    """The server is killed in the midst of a job and started again: the page says so, and shows the end without a reload."""
    with RunningServer(tmp_path) as server, Site(browser, server.url).open() as at:
        job_id = submitted(server, long_job(tmp_path, trials=4))
        at.go(f"/jobs/{job_id}")
        expect(at.page.locator("#stat-trials")).to_have_text("1", timeout=END_MS)
        at.page.evaluate("window.same = true")
        with at.expecting(GONE):
            server.kill()
            expect(at.page.locator("#broken-link")).to_be_visible(timeout=SOON_MS)
            server.start()
            expect(at.page.locator("#broken-link")).to_be_hidden(timeout=SOON_MS)
        expect(at.page.locator("#verdict-title")).not_to_be_empty(timeout=END_MS)
        assert server.wait(job_id, "succeeded") == "succeeded"
        expect(at.page.locator("#stat-trials")).to_have_text("4")
        assert at.page.evaluate("window.same")


def test_a_failed_job_says_where_and_why_and_what_to_do(site: Served) -> None:
    job = quick_job(site.folder / "lost", model=dense(seed=9), name="lost")
    waiting = submitted(site.server, long_job(site.folder / "before"))
    job_id = submitted(site.server, job)
    model = site.server.get(f"/models/{site.server.get(f'/jobs/{job_id}')['model']}")
    (site.folder / "data" / "artifacts" / model["sha256"][:2] / model["sha256"]).unlink()
    with site.open() as at:
        at.go(f"/jobs/{job_id}")
        site.server.post(f"/jobs/{waiting}/cancel")
        expect(at.page.locator("#failure")).to_contain_text("Failed at prepare", timeout=END_MS)
        expect(at.page.locator("#failure")).to_contain_text("send the file again")
        expect(at.page.locator("#badge")).to_contain_text("failed")
        assert at.page.get_by_role("link", name="Clone with changes").is_visible()
