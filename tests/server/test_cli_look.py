"""What the command line shows of a model's structure: layers with their costs, channels that go together, how far layers can be pruned."""

from __future__ import annotations

import csv
import io
from math import ceil
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Net, resnet20, run, small_cnn
from onnx import numpy_helper

from server.commands.look import shares_of
from tests.command_line import Call, WriteJob, refused
from tests.tiny_jobs import dense, tiny_job
from tuner.errors import JobError
from tuner.model.graph import Model


def saved(model: Model, path: Path) -> Path:
    path.write_bytes(model.data)
    return path


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def layers(call: Call, path: Path) -> dict[str, tuple[int, int]]:
    """{layer: (parameters, MACs)} as the CSV has them."""
    done = call("inspect", path, "--csv")
    assert (done.status, done.err) == (0, "")
    return {row["layer"]: (int(row["params"]), int(row["macs"])) for row in read(done.out)}


def test_the_counts_of_a_resnet20_are_the_published_ones(call: Call, tmp_path: Path) -> None:
    """He et al., 2016, arXiv:1512.03385, table 6: 0.27 M parameters; 40.55 M MACs by summing up its convolutions and its last layer."""
    path = saved(resnet20(), tmp_path / "resnet20.onnx")
    assert "269,722 parameters, 40,551,040 MACs a row" in call("inspect", path).out
    found = layers(call, path)
    assert sum(macs for _, macs in found.values()) == 40_551_040
    assert found["stem"] == (3 * 9 * 16 + 16, 32 * 32 * 3 * 9 * 16)
    assert found["fc"] == (64 * 10 + 10, 64 * 10)


def test_convolutions_in_groups_and_with_strides_are_counted_by_hand(call: Call, tmp_path: Path) -> None:
    """A VGG-like stem, then an inverted residual: expanded, depthwise with stride 2, projected."""
    net = Net()
    x = net.op("Relu", net.conv(net.input(shape=("batch", 3, 16, 16)), 3, 8, "stem"))
    x = net.op("Relu", net.conv(x, 8, 24, "expand", kernel=1))
    x = net.op("Relu", net.conv(x, 24, 24, "depthwise", group=24, stride=2))
    x = net.op("GlobalAveragePool", net.conv(x, 24, 8, "project", kernel=1, bias=False))
    path = saved(net.output(net.gemm(net.op("Flatten", x), 8, 5, "fc")).model(), tmp_path / "blocks.onnx")
    assert layers(call, path) == {
        "stem": (8 * 3 * 9 + 8, 16 * 16 * 8 * 3 * 9),
        "expand": (24 * 8 + 24, 16 * 16 * 24 * 8),
        "depthwise": (24 * 9 + 24, 8 * 8 * 24 * 9),
        "project": (8 * 24, 8 * 8 * 8 * 24),
        "fc": (5 * 8 + 5, 5 * 8),
    }


def test_the_csv_names_shapes_and_what_can_be_quantized(call: Call, tmp_path: Path) -> None:
    rows = read(call("inspect", saved(small_cnn(), tmp_path / "cnn.onnx"), "--csv").out)
    assert list(rows[0]) == ["layer", "op", "weight_shape", "output_shape", "params", "macs", "quantizable"]
    assert [row["layer"] for row in rows] == ["conv1", "conv2", "fc"]
    assert list(rows[1].values()) == ["conv2", "Conv", "8×8×3×3", "1×8×8×8", str(8 * 8 * 9 + 8), str(8 * 8 * 8 * 8 * 9), "yes"]


def test_dependencies_list_the_layers_that_lose_channels_together(call: Call, tmp_path: Path) -> None:
    done = call("inspect", saved(small_cnn(), tmp_path / "cnn.onnx"), "--dependencies")
    assert done.status == 0
    assert done.out == "Dependency Set,Layers\nconv1,conv1; conv2; fc\n"
    assert "'fc'" in done.err
    assert "'fc_out'" in done.err


def test_only_one_form_is_printed(call: Call, tmp_path: Path) -> None:
    path = saved(small_cnn(), tmp_path / "cnn.onnx")
    assert refused(call("inspect", path, "--csv", "--dependencies")).startswith("give one of --json, --csv and --dependencies")


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("0.1..0.9", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.3..0.7", [0.3, 0.4, 0.5, 0.6, 0.7]),
        ("0.25..0.5", [0.25, 0.35, 0.45]),
        ("0.5..0.5", [0.5]),
        ("0.1,0.3,0.95", [0.1, 0.3, 0.95]),
    ],
)
def test_shares_are_read(text: str, shares: list[float]) -> None:
    assert shares_of(text) == shares


@pytest.mark.parametrize(
    "text", ["", "half", "0.9..0.1", "0..0.5", "0.5..1", "0.5,0.1", "0.1,0.1", "0.1;0.2", "nan..nan", "nan", "1e9..inf", "0.1.."]
)
def test_what_names_no_shares_is_refused(text: str) -> None:
    with pytest.raises(JobError, match=r"--sparsity must name rising shares between 0 and 1, got '.*'; write a range in steps of 0\.1"):
        shares_of(text)


def test_early_stop_goes_with_sparsity(call: Call, tmp_path: Path) -> None:
    assert refused(call("sensitivity", tmp_path / "job.yaml", "--early-stop", "0.1")) == "--early-stop goes with --sparsity"


def pruned_accuracy(folder: Path, layer: str, share: float) -> float:
    """Top-1 on the validation rows with the smallest of the layer's weights at zero, worked out apart from the product."""
    job, proto = tiny_job(folder), onnx.load_from_string(dense())
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == layer)
    weight = numpy_helper.to_array(tensor).copy()
    weight.ravel()[np.argsort(np.abs(weight), axis=None)[: ceil(share * weight.size)]] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, layer))
    first, end = job.data.validation.rows or (0, 0)
    data = np.load(folder / "data.npz")
    (outputs,) = run(proto.SerializeToString(), {"x": data["x"][first:end]})
    return float((outputs.argmax(axis=1) == data["labels"][first:end]).mean())


def test_the_sweep_measures_each_layer_alone(call: Call, job_file: WriteJob, tmp_path: Path) -> None:
    done = call("sensitivity", job_file(tmp_path), "--sparsity", "0.2,0.8")
    assert done.status == 0
    rows = read(done.out)
    assert list(rows[0]) == ["layername", "0.2", "0.8"]
    assert [row["layername"] for row in rows] == ["fc1", "fc2", "fc3"]
    for index, row in enumerate(rows, start=1):
        for share in ("0.2", "0.8"):
            assert float(row[share]) == pytest.approx(pruned_accuracy(tmp_path, f"w{index}", float(share)))
    assert [line.split()[0] for line in done.err.splitlines()[1:]] == ["1/3", "2/3", "3/3"]


def test_a_layer_that_lost_enough_is_not_pruned_further(call: Call, job_file: WriteJob, tmp_path: Path) -> None:
    table = tmp_path / "sweep.csv"
    job, shares = job_file(tmp_path), "0.1,0.6,0.9,0.95"
    whole = read(call("sensitivity", job, "--sparsity", shares).out)
    done = call("sensitivity", job, "--sparsity", shares, "--early-stop", "0.15", "-o", table)
    assert "layername" in done.out
    original = float(done.err.splitlines()[0].rpartition(" ")[2])
    ended = 0
    for full, row in zip(whole, read(table.read_text()), strict=True):
        lost = [original - float(full[share]) > 0.15 for share in shares.split(",")]
        reached = lost.index(True) + 1 if True in lost else len(lost)
        assert list(row.values())[1:] == [*list(full.values())[1 : reached + 1], *[""] * (len(lost) - reached)]
        ended += reached < len(lost)
    assert ended > 0
