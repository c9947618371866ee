from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_gate
import numpy as np
import pytest
from builders import Net, small_cnn
from onnx import TensorProto, helper
from tiny_jobs import dense, dense_data, save_data, tiny_job

from server.gate import Gate
from tuner.errors import DataError, InputError, JobError, ModelError, PlanError, StorageError, WrongKind
from tuner.executor import LONGEST_REPLY
from tuner.wire import DataFacts

FAKE = (sys.executable, fake_gate.__file__)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    gate = Gate(tmp_path_factory.mktemp("gate"), memory_gb=0.5, seconds=60)
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """One for all tests that leave it usable, which is what it promises to be after every error."""
    os.environ["A_SECRET"] = "hidden"
    gate = Gate(tmp_path_factory.mktemp("fake"), memory_gb=1, seconds=60, file_gb=0.5, command=FAKE)
    yield gate
    gate.close()
    del os.environ["A_SECRET"]


def held(gate: Gate) -> dict[str, tuple[Any, ...]]:
    return {array.name: array.shape for array in gate.inspect_data(Path("blob"), "good.npz").arrays}


def refusal(kind: type[InputError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


def test_the_child_is_limited_alone_in_its_group_and_knows_no_secrets(fake: Gate) -> None:
    found = held(fake)
    assert (found["files"], found["core"], found["open"]) == ((2**29,), (0,), (256,))
    pid, group = found["pid"]
    assert pid == group != os.getpid()
    assert found["secrets"] == ()
    assert held(fake)["pid"] == (pid, pid)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        (
            "greedy.npz",
            DataError,
            "data file greedy.npz needs more than the 1 GB of memory that may be spent on looking at it; "
            "send a smaller one, or have the server's inspect_memory_gb raised",
        ),
        (
            "fatal.npz",
            DataError,
            "data file fatal.npz could not be looked at: the worker ended by signal 11 (SIGSEGV) while reading it. "
            "Write it again with a current exporter, and try it with `tuner` first",
        ),
        ("odd.npz", DataError, "data file odd.npz could not be read (KeyError: 'a\\nb'). Write it again with a current exporter"),
        ("other.npz", WrongKind, "it is of another kind"),
    ],
)
def test_whatever_goes_wrong_is_told_and_the_next_call_is_answered(fake: Gate, name: str, kind: type[InputError], text: str) -> None:
    assert refusal(kind, lambda: fake.inspect_data(Path("blob"), name)).startswith(text)
    assert held(fake)["core"] == (0,)


def test_an_answer_without_end_is_cut_off(fake: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONGEST_REPLY == 64 * 2**20
    monkeypatch.setattr("tuner.executor.LONGEST_REPLY", 2**20)
    text = refusal(DataError, lambda: fake.inspect_data(Path("blob"), "chatty.npz"))
    assert text.startswith("data file chatty.npz could not be looked at: the worker ended")
    assert held(fake)["core"] == (0,)


def test_a_file_over_the_limit_is_not_written(fake: Gate, tmp_path: Path) -> None:
    text = refusal(StorageError, lambda: fake.inspect_data(tmp_path / "blob", "large.npz"))
    assert "inspect_data failed: File too large" in text
    assert (tmp_path / "blob").stat().st_size == 0


def test_a_call_that_takes_too_long_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "cache", memory_gb=1, seconds=60, command=FAKE)
    held(gate)  # So that starting the child is not what takes long.
    gate._seconds = 1
    try:
        text = refusal(DataError, lambda: gate.inspect_data(Path("blob"), "slow.npz"))
        assert text.startswith("data file slow.npz takes longer to look at than the 1 s allowed; send a smaller one, or have the server's")
        assert not (tmp_path / "cache" / "scratch").exists()
    finally:
        gate.close()


def test_a_call_waits_for_its_turn_but_not_for_ever(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "cache", memory_gb=1, seconds=60, command=FAKE)
    asleep = tmp_path / "cache" / "scratch" / "asleep"
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(refusal(StorageError, lambda: gate.inspect_data(Path("blob"), "slow.npz"))))
    thread.start()
    while not asleep.exists():
        assert thread.is_alive()
    gate._seconds = 0.2
    text = refusal(StorageError, lambda: gate.inspect_data(Path("blob"), "good.npz"))
    assert text == "the server is busy looking at other files and jobs, for more than 0.2 s; try again later"
    gate.close()
    thread.join(20)
    assert found == ["the server is shutting down; try again later"]
    assert refusal(StorageError, lambda: gate.inspect_data(Path("blob"), "good.npz")) == found[0]


def test_several_threads_take_turns(fake: Gate) -> None:
    pids: list[tuple[Any, ...]] = []
    threads = [threading.Thread(target=lambda: pids.append(held(fake)["pid"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 8 and len(set(pids)) == 1


def test_real_files_pass_through_the_real_child(gate: Gate, tmp_path: Path) -> None:
    blob = tmp_path / "0af3"
    blob.write_bytes(small_cnn().data)
    facts = gate.inspect_model(blob, "net.onnx")
    assert (facts.parameters, [layer.name for layer in facts.layers if layer.quantizable]) == (1453, ["conv1", "conv2", "fc"])
    with blob.open("wb") as file:
        np.savez(file, x=np.zeros((5, 2), np.float32))
    assert gate.inspect_data(blob, "rows.npz") == DataFacts.model_validate(
        {"format": "npz", "arrays": [{"name": "x", "dtype": "float32", "shape": (5, 2)}]}
    )
    assert refusal(WrongKind, lambda: gate.inspect_model(blob, "net.pt")).startswith(
        "model net.pt is an .npz archive of arrays; that is data"
    )


def filling(side: int, hidden: bool) -> bytes:
    """A small graph that makes a tensor of side² floats. hidden: only following values tells its size."""
    net = Net()
    net.input(shape=["batch", 16])
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5]))
    net.constant("one", [1.0])
    size = net.constant("size", [side if hidden else side**2], np.int64)
    big = net.op("Expand", "one", net.op("Mul", size, size) if hidden else size, name="giant")
    net.op("Add", net.gemm("x", 16, 5, "fc"), net.op("ReduceMax", net.op("Add", big, big), keepdims=0), out="y")
    graph = helper.make_graph(net.nodes, "net", net.inputs, net.outputs, net.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_a_small_graph_cannot_take_more_memory_than_is_allowed(gate: Gate, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    needs = "needs more than the 0.5 GB of memory that may be spent on looking at it; send a smaller one, or have the server's"
    blob.write_bytes(filling(100_000, hidden=False))
    assert "which takes 37.3 GiB for one row; at most 16 GiB are taken" in refusal(ModelError, lambda: gate.inspect_model(blob, "net.onnx"))
    blob.write_bytes(filling(100_000, hidden=True))
    assert refusal(ModelError, lambda: gate.inspect_model(blob, "net.onnx")).startswith(f"model net.onnx {needs}")
    job = tiny_job(tmp_path, filling(25_000, hidden=False), dense_data(dense(), 300))
    assert refusal(JobError, lambda: gate.check_job(job)).startswith(f"the job {needs}")
    blob.write_bytes(small_cnn().data)
    assert gate.inspect_model(blob, "net.onnx").opset == 17


def test_jobs_are_checked_within_their_folder(gate: Gate, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, None, dense_data(dense(), 300))

    def within(file: str) -> Any:
        roles = {role: ref.model_copy(update={"file": "data.npz"}) for role, ref in job.data.roles().items()}
        return job.model_copy(update={"model": file, "data": job.data.model_copy(update=roles)})

    inside, outside = gate.check_job(within("model.onnx"), tmp_path), gate.check_job(job)
    assert inside.rows == {"calibration": 75, "training": 0, "validation": 135, "holdout": 90}
    assert inside.model_copy(update={"seconds": outside.seconds}) == outside
    text = refusal(ModelError, lambda: gate.check_job(within("gone.onnx"), tmp_path))
    assert text == "model gone.onnx cannot be read (No such file or directory); give the path of an .onnx file"
    data = dense_data(dense(), 300)
    data["labels"][299] = 7
    save_data(tmp_path / "data.npz", data)
    assert refusal(DataError, lambda: gate.check_job(within("model.onnx"), tmp_path)).startswith("label 7 in row 299 of data.npz must be")


def test_an_impossible_plan_is_refused(gate: Gate, tmp_path: Path) -> None:
    for name in ("plan.json", "model.onnx"):
        (tmp_path / name).write_bytes(small_cnn().data)
    assert "is no best.plan.json" in refusal(
        JobError, lambda: gate.rebuild(tmp_path / "plan.json", tmp_path / "model.onnx", tmp_path / "out.onnx")
    )
    assert issubclass(PlanError, InputError) and not (tmp_path / "out.onnx").exists()


def test_a_warmed_gate_has_its_child_before_anybody_asks(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate", memory_gb=1, seconds=60)
    gate.warm()
    process = gate._child._process
    assert process is not None
    assert process.poll() is None
    gate.close()
    gate.warm()
    assert process.wait(10) == -9
