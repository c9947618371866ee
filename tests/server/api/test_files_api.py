from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from service import BINARY, Caller, opened
from starlette.exceptions import HTTPException

from server.api import bodies
from server.gate import Gate
from tests.tiny_jobs import dense, dense_data, save_data


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


def kept(folder: Path) -> list[Path]:
    """Every file in the artefact store, half ones too."""
    return [path for path in (folder / "artifacts").rglob("*") if path.is_file() and path.name != "lock"]


def test_an_upload_is_inspected_and_kept_under_an_id(api: Caller, tmp_path: Path) -> None:
    answer = api.upload(content=b"a model", name="résnet 20.onnx")
    view = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/v1/models/{view['id']}"
    assert (view["name"], view["size_bytes"], view["parameters"], view["layer_count"], view["owner"]) == ("résnet 20.onnx", 7, 80, 1, None)
    assert api.get(f"/models/{view['id']}").json() == view
    assert [layer["name"] for layer in api.get(f"/models/{view['id']}/layers").json()] == ["fc1"]
    assert [path.read_bytes() for path in kept(tmp_path)] == [b"a model"]


def test_the_same_bytes_have_one_id_and_are_looked_at_once(api: Caller) -> None:
    first, again = api.upload(name="one.onnx"), api.upload(name="two.onnx")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert api.services.gate.calls == ["inspect_model"]  # type: ignore[attr-defined]


def test_a_body_larger_than_one_batch_arrives_whole(api: Caller) -> None:
    content = bytes(range(256)) * 10_000
    view = api.post(
        "/datasets?name=d.npz", content=(content[i : i + 70_001] for i in range(0, len(content), 70_001)), headers=BINARY
    ).json()
    assert view["size_bytes"] == len(content)
    assert b"".join(api.services.artifacts.open(view["sha256"])) == content


def test_what_the_inspection_refuses_leaves_nothing(api: Caller, tmp_path: Path) -> None:
    answer = api.upload(content=b"bad bytes")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "'m.onnx' is not an ONNX file; export it again"
    assert kept(tmp_path) == []
    assert api.get("/models").json() == {"items": [], "next": None}


def test_an_empty_body_is_refused(api: Caller, tmp_path: Path) -> None:
    answer = api.upload(content=b"")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body")
    assert "curl --data-binary" in answer.json()["detail"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_other_types_of_content_are_refused_with_the_way_to_send_it(api: Caller, kind: str) -> None:
    answer = api.post("/models?name=m.onnx", content=b"x", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert f"got {kind.partition(';')[0]}. " in answer.json()["detail"]
    assert "curl --data-binary @models -H 'Content-Type: application/octet-stream'" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["net.pt", "net.PTH", "net.pt2", "net.pkl", "net.h5", "net.ckpt"])
def test_formats_that_run_code_are_refused_by_name_with_what_to_send(api: Caller, name: str) -> None:
    model, data = api.upload(name=name), api.upload("datasets", name=name)
    assert (model.status_code, data.status_code) == (415, 415)
    assert f"'{name}' is not taken here. Export the network with torch.onnx.export" in model.json()["detail"]
    assert "np.savez" in data.json()["detail"]


@pytest.mark.parametrize("name", ["", " ", "..", "../m.onnx", "a\\b.onnx", "a\x00b", "a\nb", "a\x1b[2J", "‮gpj.onnx", "x" * 201])
def test_a_name_is_for_people_and_never_a_path(api: Caller, name: str) -> None:
    answer = api.upload(name=name)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "name"
    assert "must be a file name of at most 200 printable characters, without folders" in answer.json()["detail"]


def test_more_bytes_than_allowed_are_refused_before_and_while_they_arrive(tmp_path: Path) -> None:
    with opened(tmp_path, max_upload_gb=1e-6) as services:
        api = Caller(services)
        announced = api.upload(content=b"x" * 1001)
        streamed = api.post("/models", content=(b"x" * 600 for _ in range(2)), headers=BINARY)
        assert (announced.status_code, streamed.status_code) == (413, 413)
        assert "a file may have 1e-06 GB at most (ACCUTUNE_MAX_UPLOAD_GB)" in announced.json()["detail"]
        assert streamed.json()["detail"] == announced.json()["detail"]
        assert api.upload(content=b"x" * 1000).status_code == 201
        assert len(kept(tmp_path)) == 1


def test_a_key_can_keep_so_much_and_no_more(tmp_path: Path) -> None:
    with opened(tmp_path, max_stored_gb=2e-6) as services:
        api, other = Caller(services).with_key(), Caller(services).with_key()
        first = api.upload(content=b"x" * 1500)
        second = api.upload(content=b"y" * 600)
        assert (first.status_code, second.status_code) == (201, 413)
        assert (
            "one key may keep 2e-06 GB of files (ACCUTUNE_MAX_STORED_GB), and 1.5e-06 GB of it is used. Delete" in second.json()["detail"]
        )
        assert other.upload(content=b"y" * 600).status_code == 201
        assert api.delete(f"/models/{first.json()['id']}").status_code == 204
        assert api.upload(content=b"z" * 600).status_code == 201


async def _silent(request: Request) -> bytes:
    return await bodies.small(request, 100, seconds=0.05)


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.request"}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(HTTPException) as error:
        asyncio.run(_silent(request))
    assert error.value.status_code == 408
    assert error.value.headers == {"Connection": "close"}
    assert error.value.detail == "the body did not arrive in time: within 0.05 s, and never silent for 30 s. Send it again."


def test_an_upload_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as services:
        api = Caller(services)
        sent = iter([{"type": "http.request", "body": b"x" * 10, "more_body": True}, {"type": "http.disconnect"}])
        statuses = []

        async def receive() -> Any:
            return next(sent)

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        headers = [(b"host", b"localhost"), (b"content-type", b"application/octet-stream")]
        path = "/api/v1/models"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
        scope |= {"scheme": "http", "server": ("localhost", 80), "root_path": "", "http_version": "1.1"}
        asyncio.run(api.http.app(scope, receive, send))
        assert statuses[0] == 400
        assert kept(tmp_path) == []


def test_lists_are_newest_first_in_pages_and_find_bytes(api: Caller) -> None:
    views = [api.upload(content=b"model %d" % i, name=f"{i}.onnx").json() for i in range(5)]
    page = api.get("/models?limit=2").json()
    names = [view["name"] for view in page["items"]]
    while page["next"]:
        page = api.get("/models", params={"limit": 2, "cursor": page["next"]}).json()
        names += [view["name"] for view in page["items"]]
    assert names == ["4.onnx", "3.onnx", "2.onnx", "1.onnx", "0.onnx"]
    assert api.get(f"/models?sha256={views[3]['sha256']}").json()["items"] == [views[3]]
    assert api.get(f"/datasets?sha256={views[3]['sha256']}").json()["items"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "cursor=%00", "cursor=nonsense", "sha256=xyz"])
def test_queries_that_break_a_rule_are_named(api: Caller, query: str) -> None:
    answer = api.get(f"/models?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, query.partition("=")[0])


def test_files_that_a_job_needs_stay(api: Caller) -> None:
    job = api.submit()
    model = api.get(f"/jobs/{job}").json()["model"]
    refused = api.delete(f"/models/{model}")
    assert refused.status_code == 409
    assert job in refused.json()["detail"]
    assert api.delete(f"/jobs/{job}").status_code == 204
    assert api.delete(f"/models/{model}").status_code == 204
    assert api.get(f"/models/{model}").status_code == 404


def test_only_the_owner_and_admins_delete(api: Caller) -> None:
    owner, other, viewer, admin = api.with_key(), api.with_key(), api.with_key("viewer"), api.with_key("admin")
    model = owner.upload().json()["id"]
    data = owner.upload("datasets").json()["id"]
    assert other.delete(f"/models/{model}").status_code == 403
    assert viewer.delete(f"/models/{model}").status_code == 403
    assert viewer.upload(content=b"other").status_code == 403
    assert viewer.get(f"/models/{model}").status_code == 200
    assert admin.delete(f"/models/{model}").status_code == 204
    assert owner.delete(f"/datasets/{data}").status_code == 204


@pytest.mark.parametrize(
    "path", ["/models/nope", "/models/dat-1", "/models/..%2f..%2fetc%2fpasswd", "/models/a%00b", "/models/" + "a" * 65]
)
def test_ids_that_nobody_has_are_not_found(api: Caller, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.slow
def test_the_real_gate_looks_at_real_files(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate", 4.0, 60.0)
    try:
        with opened(tmp_path, gate=gate) as services:
            api = Caller(services)
            model = dense()
            data = save_data(tmp_path / "data.npz", dense_data(model, 64)).read_bytes()
            view = api.upload(content=model).json()
            assert (view["layer_count"], view["inputs"][0]["name"]) == (3, "x")
            assert [a["name"] for a in api.upload("datasets", data, "d.npz").json()["arrays"]] == ["x", "labels"]
            npz, torn = api.upload(content=data), api.upload(content=model[: len(model) // 2])
            assert (npz.status_code, torn.status_code) == (415, 422)
            job = {"model": view["id"], "data": {"validation": {"file": "x"}}, "constraints": [{"metric": "top1", "max_drop": 0.01}]}
            files = api.get("/datasets").json()["items"]
            job["data"] = {"validation": {"file": files[0]["id"], "rows": [0, 32]}, "holdout": {"file": files[0]["id"], "rows": [32, 64]}}
            assert api.post("/jobs", json=job).status_code == 201
            beyond = {"validation": {"file": files[0]["id"], "rows": [0, 1000]}}
            answer = api.post("/jobs", json=job | {"data": beyond})
            assert answer.status_code == 422
            assert str(tmp_path) not in answer.text
            assert "64" in answer.json()["detail"]
    finally:
        gate.close()
