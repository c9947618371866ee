"""What a model file must satisfy before any other code looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from tuner.errors import ModelError

MAX_BYTES = 2**31 - 1
"""A single protobuf message, and so an ONNX file without external data, cannot be larger."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
MIN_OPSET, MAX_OPSET = 11, 24
MAX_NODES = 200_000

_CODE_FORMATS = (".pt", ".pth", ".pt2", ".pkl", ".pickle", ".ckpt")


def read_limited(path: Path) -> bytes:
    """The bytes of a model file. ModelError if it is missing, too large or of a format that runs code when loaded."""
    if path.suffix.lower() in _CODE_FORMATS:
        raise ModelError(
            f"model {path} is a {path.suffix} file, whose loading can execute code; "
            "export it with torch.onnx.export and give the .onnx file"
        )
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"model {path} has {size} bytes; an ONNX file without external data has at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"model {path} cannot be read ({error.strerror}); give the path of an .onnx file") from error


def check_safety(data: bytes, name: str) -> onnx.ModelProto:
    """Parse `data` and refuse what could harm or could not be run.

    Refused: bytes that are not ONNX, external data, sparse or empty graphs, local functions, nodes of operator domains other
    than the standard ones, opsets outside 11 … 24, more than 200,000 nodes, and graphs that break the ONNX rules."""
    proto = _parse(data, name)
    _check_opsets(proto, name)
    _check_graphs(proto, name)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"model {name} breaks a rule of ONNX: {first}; export it again, or find the node with onnx.checker") from error
    return proto


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"model {name} ({len(data)} bytes) is not an ONNX file, or it is truncated; export or copy it again") from error
    if not proto.HasField("graph") or not proto.graph.node or not proto.opset_import:
        raise ModelError(f"model {name} ({len(data)} bytes) holds no ONNX graph with nodes; give a file written by an ONNX exporter")
    return proto


def _check_opsets(proto: onnx.ModelProto, name: str) -> None:
    standard = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not standard:
        raise ModelError(f"model {name} does not say which opset of the standard operators it uses; export it with one of {_opsets()}")
    for version in standard:
        if not MIN_OPSET <= version <= MAX_OPSET:
            raise ModelError(f"model {name} has opset {version}; opsets {_opsets()} are supported: export it with one of those")


def _check_graphs(proto: onnx.ModelProto, name: str) -> None:
    if proto.functions:
        raise ModelError(
            f"model {name} defines local functions ('{proto.functions[0].name}'), which are not supported; "
            "inline them with onnx.inliner.inline_local_functions"
        )
    count = 0
    for graph in _graphs(proto.graph):
        for node in graph.node:
            count += 1
            if node.domain not in DOMAINS:
                raise ModelError(
                    f"model {name}: node '{node.name}' ({node.op_type}) is of the operator domain '{node.domain}', which onnxruntime "
                    f"does not have; known: {_known_domains()}. Export the model without custom operators"
                )
        sparse = [tensor.values.name for tensor in graph.sparse_initializer]
        for tensor in graph.initializer:
            _check_tensor(tensor, name)
        for node in graph.node:
            for item in node.attribute:
                sparse += [item.name] if item.HasField("sparse_tensor") or item.sparse_tensors else []
                for tensor in (item.t, *item.tensors):
                    _check_tensor(tensor, name)
        if sparse:
            raise ModelError(f"model {name} stores '{sparse[0]}' as a sparse tensor, which is not supported; store it as a dense one")
    if count > MAX_NODES:
        raise ModelError(f"model {name} has {count} nodes; at most {MAX_NODES} are taken")


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ModelError(
            f"model {name} keeps tensor '{tensor.name}' in another file (external data), which is refused; "
            "save it in one file: onnx.save_model(onnx.load(path), out, save_as_external_data=False)"
        )


def _graphs(outermost: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all graphs nested in attributes."""
    pending = [outermost]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for item in node.attribute:
                pending.extend([item.g] if item.HasField("g") else [])
                pending.extend(item.graphs)


def _opsets() -> str:
    return f"{MIN_OPSET} to {MAX_OPSET}"


def _known_domains() -> str:
    return ", ".join(repr(domain) for domain in sorted(DOMAINS))
