"""The command line as it is used: real exit statuses, one message for what went wrong, never a traceback."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from search_spaces.presets import preset_names
from server.cli import app, main
from server.store import SqlTrialStore, sqlite_url
from tests.command_line import Call, Done, WriteJob, refused
from tests.tiny_jobs import dense, dense_data, net, save_data, tiny_job
from tuner import __version__
from tuner.plan import AppliedPlan, CompressionPlan, Step, TensorQuant
from tuner.results import SensitivityRow

COMMANDS = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(dense())
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return save_data(tmp_path / "rows.npz", dense_data(dense(), 200))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Call, command: str) -> None:
    done = call(command, "--help")
    assert done.status == 0
    assert f"tuner {command} " in done.out


def test_help_names_every_command_and_exit_status(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = call("--help")
    assert done.status == 0
    assert [command for command in COMMANDS if command not in done.out] == []
    assert "Exit status: 0 target met, 3 finished but target missed, 2 bad input, 1 anything else." in done.out


def test_version(call: Call) -> None:
    assert call("--version") == Done(0, f"{__version__}\n", "")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["run", "--frobnicate"], ["compare", "a.onnx"], ["apply", "p.json", "m.onnx"]])
def test_a_command_line_that_is_none_has_status_2(call: Call, arguments: list[str]) -> None:
    assert call(*arguments).status == 2


def test_spaces_lists_the_presets(call: Call) -> None:
    done = call("spaces")
    assert done.status == 0
    assert tuple(line.split()[0] for line in done.out.splitlines()[1:]) == preset_names()


def test_spaces_for_a_model_counts_its_plans_and_says_what_is_left_out(call: Call, model: Path) -> None:
    done = call("spaces", "--model", model, "--space", "int8-full")
    assert done.status == 0
    assert [line.split()[0] for line in done.out.splitlines() if " Gemm " in line and line.startswith("fc")] == ["fc1", "fc2", "fc3"]
    assert "because integer kernels take signed weights with zero point 0 only" in done.out
    assert "int8-fast" not in done.out


def test_an_unknown_space_suggests_the_nearest(call: Call) -> None:
    assert refused(call("spaces", "--space", "int8-ful")).startswith("unknown space 'int8-ful'. Did you mean 'int8-full'?")


def test_inspect_shows_layers_in_a_table(call: Call, model: Path) -> None:
    done = call("inspect", model)
    assert done.status == 0
    assert "input x: float32 [?, 16]" in done.out
    assert "1,765 parameters, 1,696 MACs a row" in done.out
    (second,) = (line.split() for line in done.out.splitlines() if line.startswith("fc2"))
    assert second == ["fc2", "Gemm", "32×32", "1×32", "1,056", "1,024", "yes"]


def test_inspect_as_json(call: Call, model: Path) -> None:
    facts = json.loads(call("inspect", model, "--json").out)
    assert facts["parameters"] == 16 * 32 + 32 + 32 * 32 + 32 + 32 * 5 + 5
    assert facts["macs"] == 16 * 32 + 32 * 32 + 32 * 5
    assert facts["size_bytes"] == model.stat().st_size
    assert [layer["name"] for layer in facts["layers"] if layer["quantizable"]] == ["fc1", "fc2", "fc3"]
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 16]}]


def test_names_that_look_like_markup_are_shown_as_they_are(call: Call, tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="[red]a[/b]")
    (tmp_path / "odd.onnx").write_bytes(net([node], {"w": np.ones((4, 4))}, ["n", 4], ["n", 4]))
    assert "[red]a[/b]" in call("inspect", tmp_path / "odd.onnx").out


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("gone.onnx", None, "gone.onnx cannot be read (No such file or directory)"),
        ("text.onnx", b"no model", "text.onnx (8 bytes) is not an ONNX file"),
        ("code.pt", b"", "whose loading can execute code"),
    ],
)
def test_inspect_refuses_what_is_no_model(call: Call, tmp_path: Path, name: str, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert complaint in refused(call("inspect", tmp_path / name))


def plan_text(model: Path, **changes: Any) -> str:
    """A plan for fc1 with one value changed."""
    plan = CompressionPlan(steps=(Step(name="quantize", layers={"fc1": "u8-asym-minmax/s8-sym-tensor"}),))
    x = TensorQuant.model_construct(**({"dtype": "u8", "scale": 0.1, "zero_point": 128, "readers": ("fc1",)} | changes.pop("tensor", {})))
    weight = {"initializer": "w1", "dtype": "s8", "symmetric": True, "axis": None} | changes.pop("weight", {})
    applied = AppliedPlan(plan=plan, model_sha256=_sha256(model)).model_dump(mode="json")
    layers = {"fc1": {"scheme": "u8-asym-minmax/s8-sym-tensor", "weight": weight}}
    return json.dumps(applied | {"tensors": {"x": x.model_dump(warnings=False)}, "layers": layers} | changes)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_sha256": "0" * 64}, "the plan was made for the model with SHA-256 000000000000…, got one with"),
        ({"result_sha256": "0" * 64}, "the plan promises 000000000000…; was it edited?"),
        (
            {"plan": {"steps": [{"name": "prune"}]}},
            "the plan has the step 'prune', which this version does not know; known: channels, factorize",
        ),
        ({"surprise": 1}, "is no best.plan.json: surprise: Extra inputs are not permitted"),
        ({"tensor": {"dtype": "u9"}}, "u9"),
        ({"tensor": {"zero_point": 99999}}, "99999"),
        ({"weight": {"axis": 7}}, "was it edited? Give the file as the job left it"),
        ({"weight": {"initializer": "w9"}}, "the plan needs weight 'w9' of layer 'fc1', which the model does not have"),
    ],
)
def test_apply_refuses_a_plan_that_does_not_fit(call: Call, model: Path, tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    plan = tmp_path / "best.plan.json"
    plan.write_text(plan_text(model, **changes))
    assert complaint in refused(call("apply", plan, model, "-o", tmp_path / "out.onnx"))
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 1}', "\0"])
def test_apply_refuses_a_text_that_is_no_plan(call: Call, model: Path, tmp_path: Path, text: str) -> None:
    plan = tmp_path / "best.plan.json"
    plan.write_text(text)
    assert f"the plan {plan} is no best.plan.json: " in refused(call("apply", plan, model, "-o", tmp_path / "out.onnx"))


def test_apply_writes_the_model_that_the_plan_says(call: Call, model: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "best.plan.json", tmp_path / "out.onnx"
    plan.write_text(plan_text(model))
    assert call("apply", plan, model, "-o", out) == Done(0, f"{out}: {out.stat().st_size:,} bytes, 1 choice applied\n", "")
    assert {t.data_type for t in onnx.load(out).graph.initializer} >= {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    assert "cannot be read" in refused(call("apply", tmp_path / "gone.json", model, "-o", out))
    assert "writing" in refused(call("apply", plan, model, "-o", tmp_path / "nowhere" / "out.onnx"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rows", "5"], "--rows must be FIRST:END with FIRST < END, got '5'; for the first thousand write 0:1000"),
        (["--rows", "7:7"], "--rows must be FIRST:END with FIRST < END, got '7:7'"),
        (["--rows", "0:201"], "rows [0, 201) lie outside rows.npz, which has 200 rows"),
        (["--metric", "top_1"], "unknown metric 'top_1'. Did you mean 'top1'?"),
        (["--target", "truth"], "has no array 'truth' for the labels"),
    ],
)
def test_compare_refuses_what_cannot_be_compared(call: Call, model: Path, rows: Path, arguments: list[str], complaint: str) -> None:
    assert complaint in refused(call("compare", model, model, "--data", rows, *arguments))


def test_compare_refuses_missing_data_and_other_inputs(call: Call, model: Path, rows: Path, tmp_path: Path) -> None:
    assert "gone.npz does not exist" in refused(call("compare", model, model, "--data", tmp_path / "gone.npz"))
    other = tmp_path / "other.onnx"
    node = helper.make_node("Gemm", ["z", "w"], ["y"])
    other.write_bytes(net([node], {"w": np.ones((16, 5))}, ["n", 16], ["n", 5], inputs={"z": onnx.TensorProto.FLOAT}))
    assert "compare models with the same inputs" in refused(call("compare", model, other, "--data", rows))


def test_compare_counts_rows_and_pairs_them(call: Call, model: Path, rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(dense(seed=5, hidden=64))
    found = json.loads(call("compare", model, other, "--data", rows, "--rows", "0:150", "--metric", "top1", "--json").out)
    assert found["rows"] == 150
    assert found["size_ratio"] == other.stat().st_size / model.stat().st_size
    assert found["drops"]["top1"]["value"] == pytest.approx(found["first"]["top1"]["value"] - found["second"]["top1"]["value"])


def test_sensitivity_lists_every_layer_worst_first(call: Call, job_file: WriteJob, tmp_path: Path) -> None:
    table = tmp_path / "sensitivity.csv"
    assert call("sensitivity", job_file(tmp_path), "-o", table).status == 0
    with table.open() as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == list(SensitivityRow.model_fields)
    assert {row["layer"] for row in found} == {"fc1", "fc2", "fc3"}
    harms = [float(row["divergence"]) for row in found]
    assert harms == sorted(harms, reverse=True)


def test_doctor_answers_every_question(call: Call) -> None:
    done = call("doctor")
    assert done.status == (1 if "PROBLEM" in done.out else 0)
    assert [name for name in ("machine", "runtime", "processor", "latency tables", "speed of u8-asym") if f" {name}" not in done.out] == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give either a job file to start, or --resume FOLDER to go on"),
        (["job.yaml", "--resume", "there"], "give either a job file to start, or --resume FOLDER to go on"),
        (["--resume", "there", "--out", "here"], "--out goes with a new job; a resumed job stays in its folder"),
        (["job.yaml", "--finish"], "--finish goes with --resume FOLDER"),
        (["gone.yaml"], "the job file gone.yaml cannot be read (No such file or directory); give the path of a YAML job file"),
        (["--resume", "there"], "there is no job in there (trials.db is missing); give an interrupted job's folder, or a job file"),
    ],
)
def test_run_needs_a_job_or_a_folder(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in refused(call("run", *arguments))
    assert list(tmp_path.iterdir()) == []


NEEDED = "model: m\ndata: {validation: {file: f}}\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: [", "job.yaml is not valid YAML: while parsing"),
        ("- model", "must hold a mapping with at least model, data and constraints, got list"),
        (f"{NEEDED}constrains: []", "constrains: unknown key 'constrains'. Did you mean 'constraints'?"),
        (f"{NEEDED}constraints: []\nbudget: {{trails: 9}}", "budget.trails: unknown key 'trails'. Did you mean 'trials'?"),
        ("model: m\ndata: {}\nconstraints: [{metric: top1, max_drop: 0}]", "data.validation is missing"),
        (f"{NEEDED}constraints: [{{metric: top1}}]", "exactly one of max_drop, at_least, at_most"),
    ],
)
def test_a_job_file_with_a_mistake_is_told_where(call: Call, tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    assert complaint in refused(call("run", tmp_path / "job.yaml", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"space": "int9"}, "unknown space 'int9'. Did you mean 'int8'?"),
        ({"strategy": "atuo"}, "unknown strategy 'atuo'. Did you mean 'auto'?"),
        ({"objectives": ["speed"]}, "unknown objective 'speed'"),
        ({"constraints": [{"metric": "size_bytes", "at_most": 9}]}, "no constraint protects accuracy; add one like"),
    ],
)
def test_a_name_that_nobody_knows_ends_the_job(
    call: Call, job_file: WriteJob, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    assert complaint in refused(call("run", job_file(tmp_path, **changes), "--out", tmp_path / "out"))


def test_a_folder_that_cannot_be_written(call: Call, job_file: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    complaint = refused(call("run", job_file(tmp_path), "--out", tmp_path / "file" / "out"))
    assert "failed: Not a directory" in complaint
    assert "Choose another folder, or change its permissions." in complaint


def test_a_second_process_leaves_the_first_ones_folder_alone(call: Call, job_file: WriteJob, tmp_path: Path) -> None:
    job, folder = job_file(tmp_path), tmp_path / "out"
    folder.mkdir()
    store = SqlTrialStore(sqlite_url(folder / "trials.db"))
    store.create_job("first", tiny_job(tmp_path))
    store.close()
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (["run", job, "--out", folder], ["run", "--resume", folder]):
            complaint = refused(call(*arguments))
            assert complaint == f"another process is working on the job in {folder}; wait for it or stop it"
    store = SqlTrialStore(sqlite_url(folder / "trials.db"))
    assert store.job_ids() == ["first"]
    store.close()


def test_a_job_that_was_never_stored_is_started_again(call: Call, tmp_path: Path) -> None:
    SqlTrialStore(sqlite_url(tmp_path / "trials.db")).close()
    complaint = refused(call("run", "--resume", tmp_path))
    assert complaint == f"the job in {tmp_path} broke off before it was stored; start it again with its job file and --out {tmp_path}"


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError])
def test_an_unforeseen_error_is_one_line_and_status_1(
    call: Call, model: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(*_: object) -> None:
        raise kind("first line\nsecond line")

    monkeypatch.setattr("tuner.facts.layer_table", broken)
    expected = f"failed: {kind.__name__}: first line second line (set ACCUTUNE_DEBUG=1 for the traceback)\n"
    assert call("inspect", model) == Done(1, "", expected)
    monkeypatch.setenv("ACCUTUNE_DEBUG", "1")
    with pytest.raises(kind, match="first line"):
        main()
