"""The border to PyTorch: a module goes out once, as an ONNX file; everything after that reads and writes ONNX."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tuner.errors import ModelError, writing
from tuner.model.graph import attribute, serialize

OPSET = 18
BATCH = "batch"
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)

Example = Sequence[Tensor] | Mapping[str, Tensor]


def export(module: nn.Module, example: Example, path: Path) -> Path:
    """Write `module`, in evaluation mode, as one ONNX file whose batch (dimension 0 of every input) is dynamic.

    example: some rows for every argument of forward, in order or by name. A mapping whose names forward does not know is handed over
    in order and names the inputs. BatchNormalization stays apart from Conv, weights keep their parameters' names and a node with
    a weight is named after its submodule. ModelError where the module does not run on the example or cannot be exported."""
    kind = type(module).__name__
    arguments, names = _arguments(module, _two_rows(module, example))
    with _evaluating(module), _quiet():
        _try_run(module, arguments, kind)
        proto = _export(module, arguments, names, kind)
        _check_batch(proto, kind)
        proto = _simplified(proto)
    _turn_weights(proto.graph)
    _tidy(proto)
    with writing(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(serialize(proto))
    return path


def input_names(module: nn.Module) -> list[str]:
    """The arguments of forward that must be given, in order; without any, its first, or `input`."""
    parameters = _parameters(module)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty] or [p.name for p in parameters[:1]] or ["input"]


def choose_inputs(module: nn.Module, arrays: Collection[str]) -> list[str]:
    """Which of the named arrays forward takes: those named after its arguments, or the only one there is. ModelError otherwise."""
    needed = input_names(module)
    if set(needed) <= set(arrays):
        optional = [p.name for p in _parameters(module) if p.name in arrays]
        return optional or needed
    if len(needed) == len(arrays) == 1:
        return list(arrays)
    raise ModelError(
        f"module {type(module).__name__} takes {', '.join(needed)}, but the data has the arrays {', '.join(sorted(arrays)) or 'nothing'}; "
        "name the arrays after the arguments of its forward"
    )


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """The arguments of forward that have a name of their own."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in inspect.signature(module.forward).parameters.values() if p.kind not in variadic]


def _two_rows(module: nn.Module, example: Example) -> dict[str, Tensor]:
    """The example by input name, on the module's device. A single row is doubled: export takes a batch of 1 for a constant."""
    if not isinstance(example, Mapping):
        free = [p.name for p in _parameters(module) if p.kind != p.KEYWORD_ONLY]
        example = {free[i] if i < len(free) else f"input_{i}": tensor for i, tensor in enumerate(example)}
    first = next(module.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    return {name: (torch.cat([tensor, tensor]) if len(tensor) == 1 else tensor).to(device) for name, tensor in example.items()}


def _arguments(module: nn.Module, example: dict[str, Tensor]) -> tuple[inspect.BoundArguments, list[str]]:
    """How forward is called with the example, and the inputs' names in the order in which it is."""
    signature = inspect.signature(module.forward)
    try:
        if set(example) <= set(signature.parameters):
            bound = signature.bind(**example)
            return bound, list(bound.arguments)
        return signature.bind(*example.values()), list(example)
    except TypeError as error:
        raise ModelError(
            f"module {type(module).__name__} cannot be called with the inputs {', '.join(example)}: {error}; its forward takes "
            f"{signature}. Name the data's arrays after its arguments."
        ) from error


def _try_run(module: nn.Module, arguments: inspect.BoundArguments, kind: str) -> None:
    """What a plain call refuses is told better by it than by the exporter."""
    try:
        with torch.no_grad():
            module(*arguments.args, **arguments.kwargs)
    except Exception as error:
        tensors = (*arguments.args, *arguments.kwargs.values())
        shown = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in tensors)
        raise ModelError(
            f"module {kind} does not run on rows of the data ({shown}): {_first_line(error)}; give data in the shape "
            "and dtype that its forward takes"
        ) from error


def _export(module: nn.Module, arguments: inspect.BoundArguments, names: list[str], kind: str) -> onnx.ModelProto:
    dynamic = [{0: BATCH} for _ in names]
    try:
        program = torch.onnx.export(
            module,
            arguments.args,
            kwargs=arguments.kwargs,
            input_names=names,
            opset_version=OPSET,
            dynamic_shapes=_shaped_like(arguments, dynamic),
            dynamo=True,
            external_data=False,
            # It would fold BatchNormalization into Conv; see _simplified.
            optimize=False,
            verbose=False,
        )
        assert program is not None
        return program.model_proto
    except Exception as error:
        cause = _root(error)
        raise ModelError(
            f"module {kind} could not be exported to ONNX: {type(cause).__name__}: {_first_line(cause)}; make its forward free of branches "
            f"on values and of sizes that fix the batch, or give an .onnx file exported in another way "
            f"(torch.onnx.export({kind}(...).eval(), ..., dynamo=True) shows the whole report)"
        ) from error


def _shaped_like(arguments: inspect.BoundArguments, dynamic: list[dict[int, str]]) -> dict[str, Any]:
    """`dynamic` in the form of forward's arguments, where a variadic one holds several."""
    left, shaped = iter(dynamic), {}
    for name, value in arguments.arguments.items():
        shaped[name] = tuple(next(left) for _ in value) if isinstance(value, tuple) else next(left)
    return shaped


def _check_batch(proto: onnx.ModelProto, kind: str) -> None:
    for value in proto.graph.input:
        batch = value.type.tensor_type.shape.dim[0]
        if batch.HasField("dim_value"):
            raise ModelError(
                f"module {kind} fixes the batch of its input '{value.name}' to {batch.dim_value}; write its forward for any number of rows "
                "(x.flatten(1) instead of x.view(32, -1)), or give an .onnx file"
            )


def _simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without the arithmetic on shapes that tracing leaves.

    Weights are inputs meanwhile, so that none is folded into another, merged with an equal one or renamed."""
    graph, declared = proto.graph, len(proto.graph.input)
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer]
    weights = [tensor for tensor in tensors if tensor.data_type in FLOATS]
    graph.input.extend(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in weights)
    _set_initializers(graph, [tensor for tensor in tensors if tensor.data_type not in FLOATS])
    proto = onnxscript.optimizer.optimize(proto)
    del proto.graph.input[declared:]
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(tensor for tensor in weights if tensor.name in read)
    return proto


def _turn_weights(graph: onnx.GraphProto) -> None:
    """Linear on more than two dimensions reads its weight through a Transpose: turn the weight itself
    where nobody else reads it."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    for node in [node for node in graph.node if node.op_type == "Transpose" and readers[node.input[0]] == 1 and node.input[0] in weights]:
        weight = weights[node.input[0]]
        values = numpy_helper.to_array(weight).transpose(attribute(node, "perm"))
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
        for reader in graph.node:
            reader.input[:] = [weight.name if name == node.output[0] else name for name in reader.input]
        graph.node.remove(node)


def _set_initializers(graph: onnx.GraphProto, tensors: Iterable[onnx.TensorProto]) -> None:
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _tidy(proto: onnx.ModelProto) -> None:
    """Leave out source paths and traces, which would count as size, and name nodes after the submodules that own their weights."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    weights = {tensor.name for tensor in graph.initializer}
    taken = {node.name for node in graph.node}
    for node in graph.node:
        owners = {name.rpartition(".")[0] for name in node.input[1:] if name in weights}
        owner = owners.pop() if len(owners) == 1 else ""
        if owner and owner not in taken:
            node.name = owner
            taken.add(owner)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every submodule's own mode back at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of the exporter's on standard output, standard error or in the log: what matters is in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()) as void, redirect_stderr(void), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
