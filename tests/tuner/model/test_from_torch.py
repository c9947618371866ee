from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tuner.errors import ModelError, StorageError
from tuner.measure.runtime import Session
from tuner.model.from_torch import Example, choose_inputs, export, input_names
from tuner.model.graph import Model


class Net(nn.Module):
    """Conv with BatchNorm, a reshape by the batch's size, a Linear on three dimensions and one on two."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.mix = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)
        for norm in self.body:
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean = torch.rand(4)
                norm.running_var = torch.rand(4) + 0.5

    def forward(self, image: Tensor, scale: Tensor | None = None) -> Tensor:
        tokens = self.body(image).view(image.shape[0], 4, -1).transpose(1, 2)
        pooled = self.mix(tokens).mean(1)
        logits: Tensor = self.head(pooled if scale is None else pooled * scale)
        return logits


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(4)[:, None]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Sum(nn.Module):
    def forward(self, *terms: Tensor) -> Tensor:
        return terms[0] + terms[1]


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def model(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(export(net, (torch.zeros(1, 2, 5, 5),), tmp_path_factory.mktemp("model") / "net.onnx"))


def outputs(model: Model, feed: Mapping[str, Tensor]) -> Tensor:
    return torch.from_numpy(Session(model.data, 1).run({name: tensor.numpy() for name, tensor in feed.items()}, None)[0])


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_file_computes_what_the_module_does_for_any_batch(net: Net, model: Model, rows: int) -> None:
    image = torch.randn(rows, 2, 5, 5)
    torch.testing.assert_close(outputs(model, {"image": image}), net(image), rtol=1e-5, atol=1e-6)


def test_the_batch_is_dynamic_and_the_rest_is_fixed(model: Model) -> None:
    assert [(tensor.name, tensor.shape) for tensor in model.inputs] == [("image", (None, 2, 5, 5))]
    assert model.outputs[0].shape == (None, 3)
    assert model.opset == 18


def test_parameters_keep_their_names_and_values(net: Net, model: Model) -> None:
    state = {name: value.numpy() for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert set(state) <= set(model.initializers)
    for name, value in state.items():
        # A Linear on three dimensions is a MatMul, which reads its weight the other way round.
        np.testing.assert_array_equal(model.array(name), value.T if name == "mix.weight" else value)


def test_batch_norm_stays_apart_and_nodes_are_named_after_submodules(model: Model) -> None:
    named = {name: node.op_type for name, node in model.nodes.items() if not name.startswith("node_")}
    assert named == {
        "body.0": "Conv",
        "body.1": "BatchNormalization",
        "body.3": "Conv",
        "body.4": "BatchNormalization",
        "mix": "MatMul",
        "head": "Gemm",
    }
    operators = "Conv BatchNormalization Relu Conv BatchNormalization Reshape Transpose MatMul Add ReduceMean Gemm"
    assert [node.op_type for node in model.nodes.values()] == operators.split()


def test_the_file_tells_nothing_of_the_source(model: Model) -> None:
    assert Path(__file__).name.encode() not in model.data
    assert not any(node.metadata_props for node in model.nodes.values())


def test_inputs_by_name_may_be_optional_arguments(net: Net, tmp_path: Path) -> None:
    feed = {"image": torch.randn(3, 2, 5, 5), "scale": torch.randn(3, 6)}
    model = Model.load(export(net, feed, tmp_path / "net.onnx"))
    assert [tensor.name for tensor in model.inputs] == ["image", "scale"]
    torch.testing.assert_close(outputs(model, feed), net(**feed), rtol=1e-5, atol=1e-6)


def test_names_that_forward_does_not_know_name_the_inputs_in_order(tmp_path: Path) -> None:
    feed = {"left": torch.randn(2, 3), "right": torch.randn(2, 3)}
    model = Model.load(export(Sum(), feed, tmp_path / "sum.onnx"))
    assert [tensor.name for tensor in model.inputs] == ["left", "right"]
    torch.testing.assert_close(outputs(model, feed), feed["left"] + feed["right"])


def test_modes_are_restored_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    module[2].eval()
    model = Model.load(export(module, (torch.zeros(2, 3),), tmp_path / "m.onnx"))
    assert [module.training, *(part.training for part in module)] == [True, True, True, False]
    assert "Dropout" not in {node.op_type for node in model.nodes.values()}
    with pytest.raises(ModelError):
        export(Branching(), (torch.zeros(2, 3),), tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (
            Branching(),
            (torch.zeros(2, 3),),
            r"module Branching could not be exported to ONNX: .*make its forward free of branches on values",
        ),
        (FixedBatch(), (torch.zeros(4, 3),), r"module FixedBatch .*(any number of rows|sizes that fix the batch)"),
        (
            nn.Linear(3, 2),
            (torch.zeros(2, 3).double(),),
            r"module Linear does not run on rows of the data \(float64 \[2, 3\]\): .*dtype.*give data",
        ),
        (Net(), {"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}, r"cannot be called with the inputs a, b, c: too many"),
    ],
)
def test_what_cannot_be_exported_is_named_with_a_way_out(module: nn.Module, example: Example, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        export(module, example, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"writing m\.onnx failed: .*Choose another folder"):
        export(nn.Linear(3, 2), (torch.zeros(2, 3),), tmp_path / "file" / "m.onnx")


def test_inputs_are_chosen_by_the_names_of_arguments() -> None:
    assert input_names(Net()) == ["image"]
    assert input_names(Sum()) == ["input"]
    assert choose_inputs(Net(), ["scale", "image", "weights"]) == ["image", "scale"]
    assert choose_inputs(Net(), ["pixels"]) == ["pixels"]
    with pytest.raises(ModelError, match=re.escape("module Net takes image, but the data has the arrays ids, pixels; name the arrays")):
        choose_inputs(Net(), ["pixels", "ids"])


def test_the_file_is_valid_onnx(model: Model) -> None:
    onnx.checker.check_model(model.proto, full_check=True)
