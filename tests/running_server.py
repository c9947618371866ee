"""A real server in a process of its own, on loopback and a folder of its own: started, killed, started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil

MARK = "PYTHON_ACCUTUNE_TEST_MARK"
"""A variable that the gate hands on too, which keeps most from its child."""
START_SECONDS = 60.0


class RunningServer:
    """`tuner serve` on `folder`. All processes that descend from it carry a mark, so that none is overlooked."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.environment = {f"ACCUTUNE_{name.upper()}": str(value) for name, value in settings.items()}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> RunningServer:
        environment = os.environ | self.environment | {MARK: self.mark}
        command = [str(Path(sys.executable).with_name("tuner")), "serve", "--port", str(self.port), "--data-dir", str(self.folder / "data")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with status {self.process.returncode}: {self.log()[-2000:]}")
            try:
                httpx.get(f"{self.url}/healthz", timeout=2).raise_for_status()
                return self
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError(f"no answer after {START_SECONDS:.0f} s: {self.log()[-2000:]}")

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """Every living process that descends from any server of this object."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def studies(self) -> list[psutil.Process]:
        """The processes that run jobs."""
        return [process for process in self.family() if "server.runner" in _command(process)]

    def kill(self) -> None:
        """End the server with -9, as a lost machine would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask the server to end; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def gone(self, seconds: float = 10.0) -> list[str]:
        """What still runs `seconds` after the server ended; it should be nothing."""
        deadline = time.monotonic() + seconds
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [" ".join(_command(process)) for process in left]

    def __enter__(self) -> RunningServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for process in self.family():
            process.kill()

    def get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1{path}", params=parameters, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, **content: Any) -> Any:
        answer = httpx.post(f"{self.url}/api/v1{path}", timeout=60, **content)
        assert answer.is_success, answer.text
        return answer.json()

    def upload(self, kind: str, path: Path) -> str:
        headers = {"Content-Type": "application/octet-stream"}
        return str(self.post(f"/{kind}?name={path.name}", content=path.read_bytes(), headers=headers)["id"])

    def submit(self, job: dict[str, Any]) -> str:
        """A job whose model and data are local paths: uploaded, then submitted."""
        files = {ref["file"]: "" for ref in job["data"].values() if ref}
        ids = {path: self.upload("datasets", Path(path)) for path in files}
        data = {role: ref | {"file": ids[ref["file"]]} for role, ref in job["data"].items() if ref}
        return str(self.post("/jobs", json=job | {"model": self.upload("models", Path(job["model"])), "data": data})["id"])

    def wait(self, job_id: str, *states: str, seconds: float = 120.0) -> str:
        deadline = time.monotonic() + seconds
        while (state := str(self.get(f"/jobs/{job_id}")["state"])) not in states:
            assert time.monotonic() < deadline, f"job {job_id} is {state}, not {' or '.join(states)}: {self.log()[-2000:]}"
            time.sleep(0.1)
        return state


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
