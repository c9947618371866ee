from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
from builders import Net, small_cnn
from onnx import TensorProto, helper, numpy_helper

from tuner.errors import ModelError
from tuner.model import safety
from tuner.model.graph import Model, serialize


def refusal(data: bytes) -> str:
    with pytest.raises(ModelError) as error:
        Model.parse(data, "net.onnx")
    return str(error.value)


def relu(opset: int = 17, kind: str = "Relu", domain: str = "") -> Net:
    net = Net(opset=opset)
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 8, 8]))
    net.op(kind, net.input(), name="node1", out="y", domain=domain)
    return net


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float) -> None:
    data = small_cnn().data
    cut = data[: int(len(data) * share)]
    text = f"model net.onnx ({len(cut)} bytes) is not an ONNX file, or it is truncated; export or copy it again"
    assert refusal(cut) == text


def test_other_files_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "weights.npz"
    np.savez(archive, w=np.arange(10))
    for data in (b"Hello, this is a text.\n" * 20, archive.read_bytes(), b"\x80\x04\x95pickle"):
        assert f"model net.onnx ({len(data)} bytes) is not an ONNX file, or it is truncated" in refusal(data)


@pytest.mark.parametrize("proto", [onnx.ModelProto(), onnx.ModelProto(ir_version=8), helper.make_model(onnx.GraphProto(name="g"))])
def test_a_model_without_nodes_is_refused(proto: onnx.ModelProto) -> None:
    data = serialize(proto)
    text = f"model net.onnx ({len(data)} bytes) holds no ONNX graph with nodes; give a file written by an ONNX exporter"
    assert refusal(data) == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        Model.load(tmp_path / "none.onnx")
    assert str(error.value) == f"model {tmp_path}/none.onnx cannot be read (No such file or directory); give the path of an .onnx file"
    with pytest.raises(ModelError, match=r"cannot be read \(Is a directory\); give the path of an \.onnx file"):
        Model.load(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".PKL", ".ckpt"])
def test_formats_that_run_code_are_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    with pytest.raises(ModelError) as error:
        Model.load(path)
    assert str(error.value) == (
        f"model {path} is a {suffix.lower() if suffix != '.PKL' else '.PKL'} file, whose loading can execute code; "
        "export it with torch.onnx.export and give the .onnx file"
    )


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.onnx"
    path.touch()
    os.truncate(path, 2**31)
    with pytest.raises(ModelError, match=r"big\.onnx has 2147483648 bytes; an ONNX file without external data has at most 2147483647"):
        Model.load(path)
    data = small_cnn().data
    monkeypatch.setattr(safety, "MAX_NODES", 3)
    assert refusal(data) == "model net.onnx has 8 nodes; at most 3 are taken"


def test_external_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(small_cnn().proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size > 0
    with pytest.raises(ModelError) as error:
        Model.load(path)
    assert str(error.value) == (
        f"model {path} keeps tensor 'conv1.w' in another file (external data), which is refused; "
        "save it in one file: onnx.save_model(onnx.load(path), out, save_as_external_data=False)"
    )
    whole = tmp_path / "whole.onnx"
    onnx.save_model(onnx.load(str(path)), str(whole), save_as_external_data=False)
    assert Model.load(whole).parameters == small_cnn().parameters


def test_external_data_inside_a_constant_is_refused() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    net = relu()
    net.nodes.append(helper.make_node("Constant", [], ["c"], value=tensor))
    assert "keeps tensor 'w' in another file (external data), which is refused" in refusal(net.data())


@pytest.mark.parametrize("opset", [7, 10, 25, 99])
def test_opsets_outside_the_range_are_refused(opset: int) -> None:
    proto = relu().proto()
    proto.opset_import[0].version = opset
    assert refusal(serialize(proto)) == f"model net.onnx has opset {opset}; opsets 11 to 24 are supported: export it with one of those"


@pytest.mark.parametrize("opset", [11, 24])
def test_the_ends_of_the_range_are_taken(opset: int) -> None:
    assert Model.parse(relu(opset).data()).opset == opset


def test_a_model_without_the_standard_opset_is_refused() -> None:
    net = relu(kind="Gelu", domain="com.microsoft")
    proto = net.proto()
    del proto.opset_import[0]
    text = "model net.onnx does not say which opset of the standard operators it uses; export it with one of 11 to 24"
    assert refusal(serialize(proto)) == text


def test_a_node_of_a_foreign_domain_is_named() -> None:
    assert refusal(relu(kind="Magic", domain="my.ops").data()) == (
        "model net.onnx: node 'node1' (Magic) is of the operator domain 'my.ops', which onnxruntime does not have; "
        "known: '', 'ai.onnx', 'ai.onnx.ml', 'com.microsoft'. Export the model without custom operators"
    )


def test_a_foreign_domain_that_no_node_uses_does_no_harm() -> None:
    proto = relu().proto()
    proto.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    assert list(Model.parse(serialize(proto)).nodes) == ["node1"]


def test_a_node_of_a_foreign_domain_inside_a_branch_is_found() -> None:
    info = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 3, 8, 8])
    magic = helper.make_node("Magic", ["x"], ["b"], name="deep", domain="my.ops")
    branches = [helper.make_graph([magic], name, [], [info]) for name in ("then", "else")]
    net = relu()
    flag = net.constant("flag", True, np.bool_)
    net.op("If", flag, name="if", then_branch=branches[0], else_branch=branches[1])
    assert "node 'deep' (Magic) is of the operator domain 'my.ops'" in refusal(net.data())


def test_local_functions_are_refused() -> None:
    proto = relu(kind="Twice", domain="my.ops").proto()
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(helper.make_function("my.ops", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    data = serialize(proto)
    assert refusal(data) == (
        "model net.onnx defines local functions ('Twice'), which are not supported; inline them with onnx.inliner.inline_local_functions"
    )
    inlined = onnx.inliner.inline_local_functions(onnx.load_from_string(data))
    assert [node.op_type for node in Model.parse(serialize(inlined)).nodes.values()] == ["Add"]


def test_sparse_tensors_are_refused() -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "at"), [4])
    proto = relu().proto()
    proto.graph.sparse_initializer.append(sparse)
    assert refusal(serialize(proto)) == "model net.onnx stores 'thin' as a sparse tensor, which is not supported; store it as a dense one"
    net = relu()
    net.nodes.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    assert "stores 'sparse_value' as a sparse tensor" in refusal(net.data())


def test_a_graph_that_breaks_a_rule_is_refused() -> None:
    net = relu()
    net.nodes.append(helper.make_node("Relu", ["nowhere"], ["z"], name="lost"))
    text = refusal(net.data())
    assert text.startswith("model net.onnx breaks a rule of ONNX: ") and "nowhere" in text
    assert text.endswith("; export it again, or find the node with onnx.checker")
