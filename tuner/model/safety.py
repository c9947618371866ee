"""What a model file must satisfy before any other code looks at it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sized
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from tuner.errors import ModelError, WrongKind
from tuner.kinds import kind_of_stream, not_a_model
from tuner.model.shapes import bits_of, graphs_of, inferred_graph, one_row

MAX_BYTES = 2**31 - 1
"""A single protobuf message, and so an ONNX file without external data, cannot be larger."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
MIN_OPSET, MAX_OPSET = 11, 24
MAX_NODES = 200_000
MAX_DEPTH = 8
"""How deep graphs may be nested in each other; parsers give up at about 30."""
MAX_ENDS = 1000
MAX_RANK = 64
MAX_NAME = 4096
MAX_TENSOR_BYTES = 16 << 30
"""The most that one tensor may take for one row."""

_TYPED = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_CODE_FORMATS = (".pt", ".pth", ".pt2", ".pkl", ".pickle", ".ckpt")


def read_limited(path: Path, name: str | None = None) -> bytes:
    """The bytes of a model file, which messages call `name`. ModelError if it is missing or too large, WrongKind for a format that
    runs code when loaded."""
    name = str(path) if name is None else name
    if path.suffix.lower() in _CODE_FORMATS:
        raise WrongKind(
            f"model {name} is a {path.suffix} file, whose loading can execute code; "
            "export it with torch.onnx.export and give the .onnx file"
        )
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"model {name} has {size} bytes; an ONNX file without external data has at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"model {name} cannot be read ({error.strerror}); give the path of an .onnx file") from error


def check_safety(data: bytes, name: str) -> onnx.ModelProto:
    """Parse `data` and refuse what could harm or could not be run.

    Refused: bytes that are not ONNX (WrongKind where they are a known other kind), external data, sparse or empty graphs, local
    functions, nodes of operator domains other than the standard ones, opsets outside 11 … 24, more than 200,000 nodes or 1,000 inputs
    or outputs, graphs nested more than 8 deep, tensors whose stored bytes are not what their shape needs, tensors that would take more
    than 16 GiB for one row, and graphs that break the ONNX rules."""
    proto = _parse(data, name)
    _check_opsets(proto, name)
    _check_graphs(proto, name)
    _check_ends(proto.graph, name)
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {name} breaks a rule of ONNX: {first}; export it again, or find the node with onnx.checker") from error
    _check_sizes(proto, name)
    return proto


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    kind = kind_of_stream(io.BytesIO(data), len(data))
    if kind is not None:
        raise WrongKind(f"model {name} is {not_a_model(kind)}")
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
    for graph, depth in graphs_of(proto.graph):
        count += len(graph.node)
        if count > MAX_NODES:
            raise ModelError(f"model {name} has {_all_nodes(proto.graph)} nodes; at most {MAX_NODES} are taken")
        if depth > MAX_DEPTH:
            raise ModelError(
                f"model {name} has graphs nested more than {MAX_DEPTH} deep; export it without so many If, Loop or Scan in each other"
            )
        _check_nodes(graph, name)
        sparse = [tensor.values.name for tensor in graph.sparse_initializer]
        for tensor in graph.initializer:
            _check_tensor(tensor, name)
        for node in graph.node:
            for item in node.attribute:
                sparse += [item.name] if item.HasField("sparse_tensor") or item.sparse_tensors else []
                for tensor in (*([item.t] if item.HasField("t") else []), *item.tensors):
                    _check_tensor(tensor, name)
        if sparse:
            raise ModelError(f"model {name} stores '{sparse[0]}' as a sparse tensor, which is not supported; store it as a dense one")


def _all_nodes(outermost: onnx.GraphProto) -> int:
    return sum(len(graph.node) for graph, _ in graphs_of(outermost))


def _check_nodes(graph: onnx.GraphProto, name: str) -> None:
    for node in graph.node:
        _check_name(node.name, name)
        if node.domain not in DOMAINS:
            raise ModelError(
                f"model {name}: node '{node.name}' ({node.op_type}) is of the operator domain '{node.domain}', which onnxruntime "
                f"does not have; known: {_known_domains()}. Export the model without custom operators"
            )


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ModelError(
            f"model {name} keeps tensor '{tensor.name}' in another file (external data), which is refused; "
            "save it in one file: onnx.save_model(onnx.load(path), out, save_as_external_data=False)"
        )
    _check_dims(f"tensor '{tensor.name}'", tensor.dims, name)
    if min(tensor.dims, default=0) < 0:
        raise ModelError(
            f"model {name}: tensor '{tensor.name}' declares the shape {_few(tensor.dims)}; no size may be negative. Export it again"
        )
    try:
        bits = bits_of(tensor.data_type)
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    except KeyError:
        kind = tensor.data_type
        raise ModelError(
            f"model {name}: tensor '{tensor.name}' is of the element type {kind}, which ONNX does not have. Export it again"
        ) from None
    numbers = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        needed, stored, unit = -(-numbers * bits // 8), len(tensor.raw_data), "bytes"
    else:
        parts = 2 if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1
        needed, stored, unit = -(-numbers * min(bits, 8) // 8) * parts, len(getattr(tensor, field)), "numbers"
    if stored != needed:
        raise ModelError(
            f"model {name}: tensor '{tensor.name}' declares the shape {_few(tensor.dims)}, which takes {needed} {unit}, "
            f"but stores {stored}; export it again"
        )


def _check_ends(graph: onnx.GraphProto, name: str) -> None:
    """Inputs (older exporters list every initializer among them) and outputs: how many, what they are called, how many dimensions."""
    stored = {tensor.name for tensor in graph.initializer}
    fed = [value for value in graph.input if value.name not in stored]
    for kind, values in (("inputs", fed), ("outputs", list(graph.output))):
        if len(values) > MAX_ENDS:
            raise ModelError(f"model {name} has {len(values)} {kind}; at most {MAX_ENDS} are taken")
        for value in values:
            _check_name(value.name, name)
            _check_dims(f"{kind[:-1]} '{value.name}'", value.type.tensor_type.shape.dim, name)


def _check_dims(what: str, dims: Sized, name: str) -> None:
    if len(dims) > MAX_RANK:
        raise ModelError(f"model {name}: {what} has {len(dims)} dimensions; at most {MAX_RANK} are taken")


def _check_name(text: str, name: str) -> None:
    if len(text) > MAX_NAME:
        raise ModelError(f"model {name}: the name '{text[:60]}…' has {len(text)} characters; at most {MAX_NAME} are taken")


def _check_sizes(proto: onnx.ModelProto, name: str) -> None:
    """ModelError for a tensor that would be too large for one row, as far as shapes can be told without running the graph."""
    for graph, _ in graphs_of(inferred_graph(proto, one_row(proto.graph))):
        makers = {output: node for node in graph.node for output in node.output}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            dims = [dim.dim_value for dim in kind.shape.dim]
            size = prod(max(1, dim) for dim in dims) * bits_of(kind.elem_type or onnx.TensorProto.UINT8) // 8
            if size <= MAX_TENSOR_BYTES:
                continue
            node = makers.get(value.name)
            where = f"node '{node.name}' ({node.op_type}) makes" if node is not None else "the graph has"
            raise ModelError(
                f"model {name}: {where} the tensor '{value.name}' of shape {_few(dims)}, which takes {size / 2**30:.1f} GiB for one row; "
                f"at most {MAX_TENSOR_BYTES >> 30} GiB are taken. Export the model with smaller constants"
            )


def _few(dims: Iterable[int]) -> str:
    return str(list(dims))


def _opsets() -> str:
    return f"{MIN_OPSET} to {MAX_OPSET}"


def _known_domains() -> str:
    return ", ".join(repr(domain) for domain in sorted(DOMAINS))
