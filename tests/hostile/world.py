"""A real server with small limits, keys of every kind, files and jobs; and what lies on its disk."""

from __future__ import annotations

import http.client
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from onnx import TensorProto, helper
from running_server import RunningServer
from service import BINARY, DATA, Caller, opened, started, succeed
from tiny_jobs import dense, net

from hostile import data
from server.api.services import Services
from server.auth import Keys
from server.sessions import Sessions
from server.store.keys import KeyStore
from server.store.sessions import SessionStore
from tuner.wire import KeyRequest, Role

LIMITS = {
    "max_upload_gb": 0.004,
    "upload_seconds": 3,
    "inspect_memory_gb": 1,
    "inspect_seconds": 30,
    "max_unpacked_gb": 0.1,
    "requests_per_minute": 240,
    "max_active_jobs": 1,
    "max_stored_gb": 0.01,
}
TABLES = ("api_keys", "sessions", "models", "datasets", "jobs", "job_files", "trials", "artifacts", "events")
CHANGING = ("accutune.db", "accutune.db-wal", "accutune.db-shm", "gate.log")
Send = Callable[["World"], httpx.Response]


@dataclass(frozen=True)
class Case:
    """One request that must be refused. says: what the answer must name as the way out."""

    name: str
    status: int
    says: str
    send: Send
    headers: dict[str, str] = field(default_factory=dict)
    """What the answer's headers must be."""


@dataclass(frozen=True)
class World:
    """A server, and what tests know of it. keys: by who holds them; ids: of uploads and jobs, by what they are; sessions: what proves
    them, by whose they are."""

    server: RunningServer
    http: httpx.Client
    keys: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    jobs: str = "/jobs"
    """Where jobs are sent."""

    def send(self, method: str, path: str, key: str | None = "submitter", **content: Any) -> httpx.Response:
        """path: below /api/v1, as it stands on the wire."""
        known = {"Authorization": f"Bearer {self.keys[key]}"} if key else {}
        headers = {**known, **content.pop("headers", {})}
        return self.http.request(method, f"/api/v1{path}", headers=headers, **content)

    def upload(self, kind: str, content: Any, name: str, key: str = "submitter", **headers: str) -> httpx.Response:
        return self.send("POST", f"/{kind}", key, params={"name": name}, content=content, headers=BINARY | headers)

    def keep(self, kind: str, name: str, content: bytes) -> None:
        """Upload what is taken."""
        answer = self.upload(kind, content, f"{name}.bin")
        assert answer.status_code == 201, answer.text
        self.ids[name] = answer.json()["id"]

    def job(self, **changes: Any) -> dict[str, Any]:
        """A job that would be taken, changed."""
        file = self.ids["rows"]
        data = {
            "calibration": {"file": file, "rows": [0, 64]},
            "validation": {"file": file, "rows": [64, 200]},
            "holdout": {"file": file, "rows": [200, 300]},
        }
        constraints = [{"metric": "top1", "max_drop": 0.02}]
        return {"name": "tiny", "model": self.ids["model"], "data": data, "constraints": constraints, "metrics": ["top1"]} | changes

    def submit(self, job: Any, key: str = "submitter", **headers: str) -> httpx.Response:
        return self.send("POST", self.jobs, key, json=job, headers=headers)

    def raw(self, head: str, body: bytes = b"", key: str = "submitter") -> httpx.Response:
        """Send bytes as they stand; `head` is the request line and headers, without those that every request has."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as wire:
            lines = [*head.splitlines(), f"Host: 127.0.0.1:{self.server.port}", f"Authorization: Bearer {self.keys[key]}", "", ""]
            wire.sendall("\r\n".join(lines).encode("latin-1") + body)
            return answered(wire)

    def left(self) -> tuple[list[str], dict[str, int]]:
        """Every file that the server keeps, and how many rows its tables have."""
        folder = self.server.folder
        files = [path for top in ("data", "tmp") for path in (folder / top).rglob("*") if path.name not in CHANGING]
        with sqlite3.connect(f"file:{folder / 'data' / 'accutune.db'}?mode=ro", uri=True) as database:
            counts = {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
        database.close()
        return sorted({str(path.relative_to(folder)) for path in files} - {"data/gate/scratch"}), counts

    def well(self) -> bool:
        return all(self.http.get(path).status_code == 200 for path in ("/healthz", "/readyz"))


def answered(wire: socket.socket) -> httpx.Response:
    """The answer that comes over `wire`."""
    answer = http.client.HTTPResponse(wire)
    answer.begin()
    return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A server on a new data folder, with keys, files, a finished job and one that another server runs."""
    keys, ids, sessions = _furnish(folder / "data")
    with _served(folder, keys, ids, **LIMITS) as made:
        made.sessions.update(sessions)
        made.keep("models", "model", dense())
        made.keep("models", "two inputs", net_of_two())
        for name, change in FILES.items():
            made.keep("datasets", name, change())
        yield made


@contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """A server without keys."""
    (folder / "data").mkdir()
    with opened(folder / "data"), _served(folder, {}, {}) as made:
        yield made


@contextmanager
def _served(folder: Path, keys: dict[str, str], ids: dict[str, str], **limits: object) -> Iterator[World]:
    server = RunningServer(folder, **limits)
    (folder / "tmp").mkdir()
    server.environment["TMPDIR"] = str(folder / "tmp")
    with server, httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
        made = World(server, http, keys, ids)
        assert made.well()  # The artefact store's own test file is there from now on.
        yield made


def _furnish(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    folder.mkdir()
    with opened(folder, anonymous=False) as services:
        keys, sessions = _keys(services), _sessions(services)
        ids = _jobs(services, keys["owner"])
        _hoard(services, keys["hoarder"])
    return keys, ids, sessions


def _keys(services: Services) -> dict[str, str]:
    roles: dict[str, Role] = {"viewer": "viewer", "admin": "admin"}
    names = ("submitter", "owner", "hasty", "hoarder", "viewer", "admin", "revoked")
    made = {name: services.keys.make(KeyRequest(name=name, role=roles.get(name, "submitter"))) for name in names}
    services.keys.revoke(made["revoked"].id)
    past = Keys(KeyStore(services.database), lambda: datetime(2020, 1, 1, tzinfo=UTC))
    made["expired"] = past.make(KeyRequest(name="expired", days=1))
    return {name: key.key for name, key in made.items()}


def _sessions(services: Services) -> dict[str, str]:
    """One for every key, as of now; `old` is of yesterday, and `ended` was signed out."""
    rows, keys = SessionStore(services.database), services.keys.list()
    made = {key.name: Sessions(rows).make(key).token for key in keys}
    (admin,) = (key for key in keys if key.name == "admin")
    made["ended"] = Sessions(rows).make(admin).token
    Sessions(rows).end(made["ended"])
    made["old"] = Sessions(rows, lambda: datetime.now(UTC) - timedelta(hours=12, seconds=1)).make(admin).token
    return made


def _jobs(services: Services, key: str) -> dict[str, str]:
    caller = Caller(services, key)
    answer = caller.post("/jobs", json=caller.job(), headers={"Idempotency-Key": "once"})
    claim, store = started(services)
    succeed(services, claim, store, {"best.onnx": (b"0123456789", BINARY["Content-Type"])})
    job = caller.job()
    running = caller.submit()
    assert services.jobs.claim("elsewhere", 1e9) is not None
    return {"done": answer.json()["id"], "running": running, "their model": job["model"], "their rows": job["data"]["validation"]["file"]}


def _hoard(services: Services, key: str) -> None:
    """A file of 10 GB, by its row: all that this key may keep."""
    owner = services.keys.caller(key).id
    services.files.add_dataset(name="big.npz", sha256="0" * 64, size_bytes=10**10, owner=owner, facts=DATA)


def net_of_two() -> bytes:
    """A model with the inputs x and z."""
    nodes = [helper.make_node("Add", ["x", "z"], ["s"], name="add"), helper.make_node("Gemm", ["s", "w"], ["y"], name="fc")]
    weights = {"w": np.ones((16, 5))}
    return net(nodes, weights, ["batch", 16], ["batch", 5], {"x": TensorProto.FLOAT, "z": TensorProto.FLOAT})


def _set(name: str, change: Callable[[Any], Any]) -> Callable[[data.Arrays], object]:
    return lambda arrays: arrays.__setitem__(name, change(arrays[name]))


def _at(name: str, cell: Any, value: float, dtype: str | None = None) -> Callable[[data.Arrays], object]:
    def change(arrays: data.Arrays) -> None:
        arrays[name] = arrays[name].astype(dtype or arrays[name].dtype)
        arrays[name][cell] = value

    return change


FILES: dict[str, Callable[[], bytes]] = {
    "rows": data.rows,
    "the same rows": lambda: data.rows(packed=True),
    "NaN labels": lambda: data.rows(_at("labels", 250, float("nan"), "float64")),
    "labels out of range": lambda: data.rows(_at("labels", 299, 5)),
    "float labels": lambda: data.rows(_set("labels", lambda labels: labels + 0.5)),
    "one-hot labels": lambda: data.rows(_set("labels", lambda labels: np.eye(5)[labels])),
    "infinite input": lambda: data.rows(_at("x", (250, 3), float("inf"))),
    "wide rows": lambda: data.rows(_set("x", lambda x: np.concatenate([x, x], axis=1))),
    "float64 rows": lambda: data.rows(_set("x", lambda x: x.astype("float64"))),
    "no labels": lambda: data.rows(lambda arrays: arrays.pop("labels")),
    "misnamed": lambda: data.rows(lambda arrays: arrays.update(X=arrays.pop("x"))),
    "fewer labels": lambda: data.rows(_set("labels", lambda labels: labels[:200])),
    "one row again and again": lambda: data.rows(_set("x", lambda x: np.repeat(x[:1], len(x), axis=0))),
    "a null": data.rows_with_a_null,
    "corrupt": data.corrupt,
}
