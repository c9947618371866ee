"""Model files that must be refused, made in memory."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable

import numpy as np
import onnx
from builders import Net, small_cnn
from onnx import TensorProto, helper, numpy_helper

LOCAL = "local.functions"


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """A good model in which one thing is changed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(small_cnn().proto)
    change(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def truncated() -> bytes:
    return small_cnn().data[:2000]


def external(location: str) -> bytes:
    """A weight that lies in another file."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return changed(change)


def forty_gigabytes() -> bytes:
    """Some 70 bytes that ask for 40 GB: one node that fills a tensor of ten thousand million floats."""
    size = onnx.TensorProto(name="s", dims=[1], data_type=TensorProto.INT64, int64_data=[10**10])
    node = onnx.NodeProto(op_type="ConstantOfShape", input=["s"], output=["y"])
    graph = onnx.GraphProto(name="g", node=[node], initializer=[size], output=[helper.make_tensor_value_info("y", 1, ["n"])])
    model = onnx.ModelProto(ir_version=8, graph=graph, opset_import=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString(deterministic=True))


def hidden_gigabytes() -> bytes:
    """The same, where only running the graph tells the size."""
    net = Net()
    net.input(shape=["batch", 16])
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5]))
    net.constant("one", [1.0])
    size = net.constant("size", [100_000], np.int64)
    big = net.op("Expand", "one", net.op("Mul", size, size))
    net.op("Add", net.gemm("x", 16, 5, "fc"), net.op("ReduceMax", net.op("Add", big, big), keepdims=0), out="y")
    graph = helper.make_graph(net.nodes, "net", net.inputs, net.outputs, net.initializers)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def boastful_initializer() -> bytes:
    """A weight of 4 TB, by its shape; it stores four bytes."""
    return changed(lambda proto: proto.graph.initializer.append(TensorProto(name="big", dims=[2**40], data_type=1, raw_data=bytes(4))))


def foreign_domain() -> bytes:
    return changed(lambda proto: setattr(proto.graph.node[0], "domain", "my.ops"))


def opset(version: int) -> bytes:
    return changed(lambda proto: setattr(proto.opset_import[0], "version", version))


def local_functions() -> bytes:
    def change(proto: onnx.ModelProto) -> None:
        relu = helper.make_node("Relu", ["a"], ["b"])
        proto.functions.append(helper.make_function(LOCAL, "MyRelu", ["a"], ["b"], [relu], [helper.make_opsetid("", 17)]))
        proto.opset_import.append(helper.make_opsetid(LOCAL, 1))

    return changed(change)


def many_nodes() -> bytes:
    """200,001 nodes in a megabyte."""
    return changed(lambda proto: proto.graph.node.extend([onnx.NodeProto(op_type="A")] * 200_001))


def many_inputs() -> bytes:
    extra = [helper.make_tensor_value_info(f"more{index}", TensorProto.FLOAT, [1]) for index in range(1001)]
    return changed(lambda proto: proto.graph.input.extend(extra))


def nested(depth: int) -> bytes:
    """An If in an If in an If …"""
    info = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["batch", 5])
    flat = graph = helper.make_graph([helper.make_node("Relu", ["fc_out"], ["o"])], "inner", [], [info])
    for _ in range(depth - 1):
        graph = helper.make_graph([helper.make_node("If", ["flag"], ["o"], then_branch=graph, else_branch=flat)], "inner", [], [info])

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
        proto.graph.node.append(helper.make_node("If", ["flag"], ["z"], name="outer", then_branch=graph, else_branch=flat))

    return changed(change)


def bottomless() -> bytes:
    """Graph → node → attribute → graph, 20,000 times, written byte by byte: no library builds it."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + content

    graph = b""
    for _ in range(20_000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return small_cnn().data + field(7, graph)


def endless_name() -> bytes:
    return changed(lambda proto: setattr(proto.graph.node[0], "name", "n" * 5000))


def cycle() -> bytes:
    """The first node reads what the last one makes."""
    return changed(lambda proto: proto.graph.node[0].input.__setitem__(0, proto.graph.output[0].name))


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}q\x00.")
    return stream.getvalue()


def torch_archive() -> bytes:
    return zipped("archive/data.pkl", "archive/version", "archive/data/0")


def torchscript() -> bytes:
    return zipped("net/constants.pkl", "net/data.pkl", "net/code/__torch__.py", "net/version")


def exported_program() -> bytes:
    return zipped("net/archive_format", "net/models/model.json", "net/serialized_exported_program.json")


def bare_pickle() -> bytes:
    return pickle.dumps({"fc.weight": [1.0, 2.0]}, protocol=2)


def hdf5() -> bytes:
    return b"\x89HDF\r\n\x1a\n" + bytes(88)


def safetensors() -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(4)


def noise() -> bytes:
    return np.random.default_rng(0).bytes(5000)
