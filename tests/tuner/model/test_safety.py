from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
from builders import Net, small_cnn
from onnx import TensorProto, helper, numpy_helper

from tuner.errors import ModelError, WrongKind
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


def test_a_text_is_refused() -> None:
    data = b"Hello, this is a text.\n" * 20
    assert f"model net.onnx ({len(data)} bytes) is not an ONNX file, or it is truncated" in refusal(data)


def test_a_file_of_another_kind_is_told_what_it_is(tmp_path: Path) -> None:
    archive = tmp_path / "weights.npz"
    np.savez(archive, w=np.arange(10))
    with pytest.raises(WrongKind) as error:
        Model.parse(archive.read_bytes(), "net.onnx")
    text = "model net.onnx is an .npz archive of arrays; that is data, not a model; give it where data goes, and here an .onnx file"
    assert str(error.value) == text
    with pytest.raises(
        WrongKind, match=r"^model net\.onnx is a Python pickle, perhaps an old PyTorch checkpoint, whose loading can execute"
    ):
        Model.parse(b"\x80\x04\x95pickle", "net.onnx")


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
    with pytest.raises(WrongKind) as error:
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


FILLED = {
    "ConstantOfShape": (["size"], {}),
    "Expand": (["one", "size"], {}),
    "Tile": (["one", "size"], {}),
    "RandomNormal": ([], {"shape": [100_000, 100_000]}),
    "Range": (["zero", "end", "step"], {}),
}


@pytest.mark.parametrize("kind", FILLED)
def test_a_tiny_graph_that_asks_for_40_gigabytes_is_refused(kind: str) -> None:
    net = relu()
    net.constant("size", [10**10], np.int64)
    net.constant("one", [1.0])
    for name, value in (("zero", 0.0), ("end", 1e10), ("step", 1.0)):
        net.constant(name, value)
    inputs, attributes = FILLED[kind]
    net.op(kind, *inputs, name="giant", out="big", **attributes)
    shape = "[100000, 100000]" if kind == "RandomNormal" else "[10000000000]"
    assert refusal(net.data()) == (
        f"model net.onnx: node 'giant' ({kind}) makes the tensor 'big' of shape {shape}, which takes 37.3 GiB for one row; "
        "at most 16 GiB are taken. Export the model with smaller constants"
    )


def test_a_giant_in_a_branch_and_a_giant_input_are_refused() -> None:
    info = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n"])
    size = helper.make_node("Constant", [], ["s"], value_ints=[10**10])
    branch = helper.make_graph([size, helper.make_node("ConstantOfShape", ["s"], ["o"], name="deep")], "then", [], [info])
    net = relu()
    net.op("If", net.constant("flag", True, np.bool_), name="if", then_branch=branch, else_branch=branch)
    assert "takes 37.3 GiB for one row" in refusal(net.data())
    wide = Net()
    wide.input(shape=["batch", 10**10])
    wide.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10**10]))
    wide.op("Relu", "x", out="y")
    assert "the graph has the tensor 'x' of shape [1, 10000000000], which takes 37.3 GiB for one row" in refusal(wide.data())


def test_large_batches_are_no_reason_to_refuse() -> None:
    net = relu()
    proto = net.proto()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1000
    assert Model.parse(serialize(proto)).inputs[0].shape == (1000, 3, 8, 8)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (
            TensorProto(dims=[8], data_type=1, raw_data=bytes(16)),
            "declares the shape [8], which takes 32 bytes, but stores 16; export it again",
        ),
        (TensorProto(dims=[2], data_type=1, raw_data=bytes(16)), "declares the shape [2], which takes 8 bytes, but stores 16"),
        (TensorProto(dims=[2**40], data_type=1, raw_data=bytes(16)), f"which takes {2**42} bytes, but stores 16"),
        (TensorProto(dims=[2**62, 4], data_type=1, raw_data=b""), f"which takes {2**66} bytes, but stores 0"),
        (TensorProto(dims=[8], data_type=1, float_data=[1.0]), "which takes 8 numbers, but stores 1"),
        (TensorProto(dims=[8], data_type=1), "which takes 8 numbers, but stores 0"),
        (TensorProto(dims=[-4], data_type=1, raw_data=bytes(16)), "declares the shape [-4]; no size may be negative. Export it again"),
        (TensorProto(dims=[4], data_type=99, raw_data=bytes(16)), "is of the element type 99, which ONNX does not have. Export it again"),
        (TensorProto(dims=[4], data_type=0, raw_data=bytes(16)), "is of the element type 0, which ONNX does not have"),
        (TensorProto(dims=[1] * 65, data_type=1, raw_data=bytes(4)), "has 65 dimensions; at most 64 are taken"),
    ],
)
def test_a_tensor_that_stores_something_else_than_it_declares_is_refused(tensor: TensorProto, text: str) -> None:
    tensor.name = "w"
    proto = relu().proto()
    proto.graph.initializer.append(tensor)
    message = refusal(serialize(proto))
    assert message.startswith("model net.onnx: tensor 'w' ") and text in message
    held = relu()
    held.nodes.append(helper.make_node("Constant", [], ["c"], value=tensor))
    graph = held.nodes and helper.make_graph(held.nodes, "net", held.inputs, held.outputs)
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert text in refusal(serialize(other))


@pytest.mark.parametrize(
    "kind", ["INT4", "UINT4", "BFLOAT16", "FLOAT8E4M3FN", "BOOL", "FLOAT16", "UINT64", "COMPLEX64", "STRING", "DOUBLE"]
)
@pytest.mark.parametrize("shape", [(3,), (2, 2), (0,), ()])
def test_every_way_to_store_numbers_is_known(kind: str, shape: tuple[int, ...]) -> None:
    number = TensorProto.DataType.Value(kind)
    values = [b"a"] * int(np.prod(shape)) if kind == "STRING" else np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(number)).ravel()
    proto = relu(21).proto()
    proto.graph.initializer.append(helper.make_tensor("typed", number, shape, values))
    if kind != "STRING":
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(number)), "raw"))
    assert "typed" in Model.parse(serialize(proto)).initializers


def nested(depth: int) -> bytes:
    """An If in an If in an If …"""
    info = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["batch", 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "inner", [], [info])
    for _ in range(depth - 1):
        flat = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "else", [], [info])
        graph = helper.make_graph([helper.make_node("If", ["flag"], ["o"], then_branch=graph, else_branch=flat)], "inner", [], [info])
    net = relu()
    proto = net.proto()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    proto.graph.node.append(helper.make_node("If", ["flag"], ["z"], name="outer", then_branch=graph, else_branch=graph))
    return serialize(proto)


def test_graphs_nested_too_deeply_are_refused() -> None:
    assert "outer" in Model.parse(nested(8)).nodes
    text = "model net.onnx has graphs nested more than 8 deep; export it without so many If, Loop or Scan in each other"
    assert refusal(nested(9)) == refusal(nested(28)) == text


def test_graphs_nested_as_deeply_as_a_stack_are_refused() -> None:
    """Written byte by byte, for no library builds it: graph → node → attribute → graph, 20,000 times."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + content

    graph = b""
    for _ in range(20_000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    data = relu().data() + field(7, graph)
    assert "is not an ONNX file, or it is truncated" in refusal(data)


def test_nodes_in_branches_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "MAX_NODES", 10)
    assert refusal(nested(8)) == "model net.onnx has 32 nodes; at most 10 are taken"


def test_too_many_inputs_or_outputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "MAX_ENDS", 2)
    net = relu()
    for index in range(2):
        net.input(f"more{index}")
    assert refusal(net.data()) == "model net.onnx has 3 inputs; at most 2 are taken"
    proto = relu().proto()
    for index in range(5):  # Older exporters list constants among the inputs; those are not fed.
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), f"w{index}"))
        proto.graph.input.append(helper.make_tensor_value_info(f"w{index}", TensorProto.FLOAT, [2]))
    assert len(Model.parse(serialize(proto)).inputs) == 1
    proto.graph.output.extend([proto.graph.output[0]] * 2)
    assert refusal(serialize(proto)) == "model net.onnx has 3 outputs; at most 2 are taken"


def test_endless_names_and_shapes_are_refused() -> None:
    proto = relu().proto()
    proto.graph.node[0].name = "n" * 5000
    assert refusal(serialize(proto)) == f"model net.onnx: the name '{'n' * 60}…' has 5000 characters; at most 4096 are taken"
    net = relu()
    net.input("wide", shape=[1] * 65)
    assert refusal(net.data()) == "model net.onnx: input 'wide' has 65 dimensions; at most 64 are taken"
