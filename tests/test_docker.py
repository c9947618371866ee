"""The container's files, as far as they can be tried without an engine: what they promise, name and run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import typer
import yaml
from running_server import RunningServer, free_port

from server import cli
from server.settings import documented
from server.store.engines import parse
from tests.test_docs import GUIDE, ROOT

DOCKER = ROOT / "docker"
README = (DOCKER / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """(keyword, the rest) of every instruction of the Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    words = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(keyword, rest.strip()) for keyword, rest in words]


def of(keyword: str) -> list[str]:
    return [rest for name, rest in instructions() if name == keyword]


def listed(text: str) -> list[str]:
    """The JSON list in an instruction: what runs without a shell in between."""
    found: list[str] = json.loads(text[text.index("[") :])
    return found


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yml").read_text(encoding="utf-8"))
    return found


def filled(text: str) -> str:
    """As compose fills in variables."""
    return re.sub(r"\$\{POSTGRES_PASSWORD(:\?[^}]*)?\}", "0f3a9c1e", text)


def sources() -> list[str]:
    return [source for copied in of("COPY") for source in copied.split()[:-1]]


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    assert [source for source in sources() if not (ROOT / source).exists()] == []
    lines = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert [line[1:] for line in lines if line.startswith("!")] == sources()
    assert lines[1] == "*"


def test_what_the_package_needs_is_copied() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*built, PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt"} <= set(sources())


def test_the_base_and_the_install_are_as_they_should_be() -> None:
    (base,) = of("FROM")
    image, _, tag = base.partition(":")
    assert (image, tag.partition("-")[0]) == ("python", PROJECT["requires-python"].removeprefix(">="))
    (install,) = (run for run in of("RUN") if "pip install" in run)
    assert "--no-cache-dir" in install and "--constraint constraints.txt" in install
    (extras,) = re.findall(r"\.\[([a-z,]+)\]", install)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "postgres" in extras


def test_it_runs_as_a_user_of_its_own_who_owns_the_data() -> None:
    (user,) = of("USER")
    (made,) = (run for run in of("RUN") if "useradd" in run)
    assert made.endswith(f" {user} && mkdir /data && chown {user} /data")
    last_run = max(index for index, (name, _) in enumerate(instructions()) if name == "RUN")
    assert instructions().index(("USER", user)) > last_run
    assert of("VOLUME") == [of("WORKDIR")[-1]] == ["/data"]
    assert "ACCUTUNE_DATA_DIR=/data" in of("ENV")[0].split()


def test_entry_point_and_command_run(tmp_path: Path) -> None:
    entry, command = listed(of("ENTRYPOINT")[0]), listed(of("CMD")[0])
    script = Path(sys.executable).with_name(entry[0])
    assert PROJECT["scripts"] == {entry[0]: "server.cli:main"}
    done = subprocess.run([script, *entry[1:], *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "serve" in done.stdout) == (0, True)


def test_the_health_check_tells_a_server_from_none(tmp_path: Path) -> None:
    python, option, code = listed(of("HEALTHCHECK")[0])
    assert (python, option) == ("python", "-c")

    def healthy(port: int) -> bool:
        line = code.replace(of("EXPOSE")[0], str(port))
        assert line != code
        proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        return subprocess.run([sys.executable, option, line], env=os.environ | proxy, capture_output=True, timeout=60).returncode == 0

    with RunningServer(tmp_path) as server:
        assert healthy(server.port)
    assert not healthy(free_port())


def test_the_server_is_locked_in() -> None:
    server = compose()["services"]["server"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in server and "privileged" not in server, "the image's own user"
    assert server["tmpfs"] == ["/tmp"]
    assert server["volumes"] == ["data:/data"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"]), "plain HTTP is for this machine alone"
    assert server["ports"][0].rpartition(":")[2] == of("EXPOSE")[0]


def test_the_database_is_ready_before_the_server_starts() -> None:
    services = compose()["services"]
    database = services["database"]
    assert services["server"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert database["healthcheck"]["test"][:4] == ["CMD", "pg_isready", "--host", "127.0.0.1"], "the socket answers while it is set up"
    assert database["image"].startswith("postgres:")
    assert "ports" not in database
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}
    named = {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]}
    assert named == set(compose()["volumes"])


def test_no_secret_stands_in_the_file() -> None:
    secret = re.compile(r"password|secret|token|key", re.IGNORECASE)
    for service in compose()["services"].values():
        for name, value in service["environment"].items():
            if secret.search(name):
                assert value.startswith("${POSTGRES_PASSWORD:?"), name
            assert "://" not in value or ":${POSTGRES_PASSWORD}@" in value, name
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_variables_are_settings_and_the_database_is_the_other_container() -> None:
    server, database = (compose()["services"][name] for name in ("server", "database"))
    ours = [name for name in server["environment"] if name.startswith("ACCUTUNE_")]
    known = {row.variable for row in documented()} | set(re.findall(r"ACCUTUNE_[A-Z]+", GUIDE))
    assert [name for name in ours if name not in known] == []
    url = parse(filled(server["environment"]["ACCUTUNE_DATABASE_URL"]))
    given = database["environment"]
    assert (url.host, url.username, url.database) == ("database", given["POSTGRES_USER"], given["POSTGRES_DB"])
    assert url.password == filled(given["POSTGRES_PASSWORD"])


def test_the_server_is_built_from_this_repository_and_started_by_a_real_command() -> None:
    server = compose()["services"]["server"]
    context = (DOCKER / server["build"]["context"]).resolve()
    assert (context, (context / server["build"]["dockerfile"]).is_file()) == (ROOT, True)
    name, *options = server["command"]
    group: Any = typer.main.get_command(cli.app)
    assert [word for word in options if word.startswith("--")] == ["--host"]
    assert "--host" in {option for parameter in group.commands[name].params for option in parameter.opts}


def test_the_way_to_the_first_key_works_outside(tmp_path: Path) -> None:
    """What compose starts refuses to run without a key, says what the README says, and runs with one."""
    (line,) = (line for line in README.splitlines() if " server keys create admin" in line)
    words = shlex.split(line, comments=True)
    create = words[words.index("server") + 1 :]
    tuner = str(Path(sys.executable).with_name("tuner"))
    environment = os.environ | {"ACCUTUNE_DATA_DIR": str(tmp_path / "data"), "ACCUTUNE_PORT": str(free_port())}

    def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tuner, *arguments], env=environment, capture_output=True, text=True, timeout=60)

    refused = run(compose()["services"]["server"]["command"])
    assert (refused.returncode, "tuner keys create NAME --role admin" in refused.stderr) == (2, True)
    key = run(create).stdout.strip()
    assert re.fullmatch(r"acc_key[0-9a-f]+_[\w-]+", key)
    with RunningServer(tmp_path, host="0.0.0.0") as server:
        answers = [httpx.get(f"{server.url}/api/v1/jobs", headers=headers) for headers in ({}, {"Authorization": f"Bearer {key}"})]
    assert [answer.status_code for answer in answers] == [401, 200]
