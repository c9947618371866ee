"""The pages as they are served: who sees them, with which policy, and what stands in them before any script runs."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from server.dashboard import assets, pages
from tests.service import Caller, opened, started, trial
from tuner.wire import Role

PAGES = ("/", "/new", "/system")
STATIC = Path(assets.__file__).parent / "static"
TEMPLATES = STATIC.parent / "templates"


class Marks(HTMLParser):
    """What stands in a page: (tag, attributes) of every element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.elements}


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path, anonymous=False) as services:
        yield Caller(services)


def job_with_a_trial(caller: Caller) -> str:
    job_id = caller.submit()
    _, store = started(caller.services)
    store.save_trial(job_id, trial(0))
    return job_id


def all_pages(job_id: str) -> list[str]:
    below = ("", "/layers", "/compare?trial=0", "/trials/0")
    return [*PAGES, "/signin", *(f"/jobs/{job_id}{rest}" for rest in below)]


def test_every_page_is_served_without_a_line_of_script_or_style_in_it(caller: Caller) -> None:
    for path in all_pages(job_with_a_trial(caller)):
        answer = caller.http.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        marks = Marks(answer.text)
        assert "style" not in {tag for tag, _ in marks.elements}, path
        assert all(attributes.get("src") for tag, attributes in marks.elements if tag == "script"), path
        named = {name for _, attributes in marks.elements for name in attributes}
        assert not {name for name in named if name.startswith("on") or name == "style"}, path
        assert re.search(r"<h1[^>]*>.+</h1>", answer.text), path


def test_the_policy_lets_in_nothing_from_elsewhere_and_no_script_in_pages(caller: Caller) -> None:
    policy = caller.http.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    nothing = "'sha256-" + base64.b64encode(hashlib.sha256(b"").digest()).decode() + "'"
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": f"'self' {nothing}",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }


def test_addresses_in_a_page_are_its_own(caller: Caller) -> None:
    for path in all_pages(job_with_a_trial(caller)):
        for _, attributes in Marks(caller.http.get(path).text).elements:
            for name in ("src", "href", "action"):
                assert not re.match(r"([a-z]+:)?//", attributes.get(name) or ""), (path, attributes)


def test_who_is_not_known_is_sent_to_sign_in_and_comes_back(guarded: Caller) -> None:
    answer = guarded.http.get("/jobs/some-job/layers?layer=a%26b", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/signin?next=%2Fjobs%2Fsome-job%2Flayers%3Flayer%3Da%2526b")
    assert guarded.http.get("/signin").status_code == 200


def test_a_session_opens_the_pages(guarded: Caller) -> None:
    key = guarded.with_key("viewer").http.headers["Authorization"].removeprefix("Bearer ")
    assert guarded.post("/session", json={"key": key}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 201
    answer = guarded.http.get("/")
    assert answer.status_code == 200
    assert "a viewer" in answer.text


@pytest.mark.parametrize(("role", "sees"), [("viewer", False), ("submitter", True), ("admin", True)])
def test_nobody_sees_a_button_that_they_may_not_press(guarded: Caller, role: Role, sees: bool) -> None:
    owner = guarded.with_key("submitter")
    job_id = owner.submit()
    somebody = guarded.with_key(role)
    assert ('href="/new"' in somebody.http.get("/").text) is sees
    assert ("Clone with changes" in somebody.http.get(f"/jobs/{job_id}").text) is sees
    # Another's job can be stopped by an admin alone, and one's own by everybody who could submit it.
    assert ('id="cancel"' in somebody.http.get(f"/jobs/{job_id}").text) is (role == "admin")
    assert 'id="cancel"' in owner.http.get(f"/jobs/{job_id}").text


def test_what_is_not_there_is_a_page_too(caller: Caller) -> None:
    job_id = caller.submit()
    for path in ("/jobs/none", "/jobs/none/layers", f"/jobs/{job_id}/trials/7", f"/jobs/{job_id}/compare?trial=x"):
        answer = caller.http.get(path)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "content-security-policy" in answer.headers
        assert 'href="/"' in answer.text


def test_names_of_jobs_are_text(tmp_path: Path) -> None:
    with opened(tmp_path) as services:
        caller = Caller(services)
        caller.upload(content=b"a model", name="<img src=x onerror=alert(1)>.onnx")
        answer = caller.http.get(f"/jobs/{caller.submit()}").text
        assert "&lt;img src=x onerror=alert(1)&gt;.onnx" in answer
        assert "<img src=x" not in answer


def test_a_prefix_stands_before_every_address(tmp_path: Path) -> None:
    with opened(tmp_path, root_path="/tuning") as services:
        caller = Caller(services)
        for path in ("/", "/new", f"/jobs/{caller.submit()}"):
            for _, attributes in Marks(caller.http.get(f"/tuning{path}").text).elements:
                for name in ("src", "href"):
                    address = attributes.get(name) or "/tuning"
                    assert address.startswith(("/tuning", "#")), (path, attributes)


def test_static_files_are_kept_for_ever_and_packed(caller: Caller) -> None:
    address = f"/static/{pages.ASSETS.digest}"
    plain = caller.http.get(f"{address}/jobs.js", headers={"Accept-Encoding": "identity"})
    packed = caller.http.get(f"{address}/jobs.js", headers={"Accept-Encoding": "gzip"})
    assert plain.content == packed.content == (STATIC / "jobs.js").read_bytes()
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    for answer in (plain, packed):
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"].startswith("text/javascript")


def test_plotly_comes_out_of_its_package_packed() -> None:
    found = pages.ASSETS.get(pages.ASSETS.digest, "plotly.min.js")
    assert found is not None
    assert gzip.decompress(found.packed) == assets.plotly_script().read_bytes()
    assert len(found.packed) < 0.4 * len(found.body)


@pytest.mark.parametrize("path", ["/static/0000000000000000/jobs.js", "/static/{digest}/none.js", "/static/{digest}/..%2Fpages.py"])
def test_of_static_files_only_this_version_s_are_there(caller: Caller, path: str) -> None:
    assert caller.http.get(path.format(digest=pages.ASSETS.digest)).status_code == 404


def test_a_mark_keeps_plotly_from_adding_styles_that_the_policy_refuses(caller: Caller) -> None:
    script = assets.plotly_script().read_text(encoding="utf-8")
    guarded_by = re.findall(r'getElementById\("([0-9a-f]{64})"\)', script)
    assert guarded_by
    assert set(guarded_by) <= Marks(caller.http.get("/").text).ids()


def test_every_module_that_a_page_or_module_names_is_there() -> None:
    names = {path.name for path in STATIC.iterdir()} | {"plotly.min.js"}
    for path in TEMPLATES.glob("*.html"):
        assert set(re.findall(r"\{\{ static \}\}/([\w.-]+)", path.read_text())) <= names, path.name
    for path in STATIC.glob("*.js"):
        assert set(re.findall(r'(?:from|import|import\()\s*"\./([\w.-]+)"', path.read_text())) <= names, path.name
