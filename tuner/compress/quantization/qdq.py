"""Writes a quantized graph: QuantizeLinear/DequantizeLinear pairs exactly where an AppliedPlan says, for the runtime to fuse.

The graph is a pure function of the prepared model and the plan, so replaying a plan gives the same bytes. Weights are
quantized once per scheme and kept: two trials that differ in one layer re-quantize that layer only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tuner.compress.quantization.affine import STORAGE, quantize, weight_scale
from tuner.errors import PlanError
from tuner.model.graph import Model, attribute
from tuner.plan import AppliedPlan, LayerQuant, TensorQuant, WeightQuant

INT32_MAX = 2**31 - 1
AXIS_OPSET = 21
"""From this opset on, QuantizeLinear knows 16 bits; before it, onnxruntime's own domain does."""


class WeightCache:
    """Quantized weights by initializer and scheme, bounded in bytes, least recently used first out."""

    def __init__(self, max_bytes: int = 512 * 2**20) -> None:
        self._items: OrderedDict[tuple[str, WeightQuant], QuantizedWeight] = OrderedDict()
        self._left = max_bytes

    def get(self, model: Model, quant: WeightQuant) -> QuantizedWeight:
        key = (model.sha256, quant)
        if key not in self._items:
            self._items[key] = QuantizedWeight(model.array(quant.initializer), quant)
            self._left -= self._items[key].tensor.ByteSize()
            while self._left < 0 and len(self._items) > 1:
                self._left += self._items.popitem(last=False)[1].tensor.ByteSize()
        self._items.move_to_end(key)
        return self._items[key]


class QuantizedWeight:
    """One stored weight: integers, scales and zero points as they go into the graph."""

    def __init__(self, weight: NDArray[Any], quant: WeightQuant, least_scale: NDArray[np.float32] | None = None) -> None:
        self.scale, self.zero_point = weight_scale(weight, quant.axis, quant.dtype, quant.symmetric)
        if least_scale is not None:
            self.scale = np.maximum(self.scale, least_scale).astype(np.float32)
        stored = quantize(weight, self.scale, self.zero_point, quant.dtype, quant.axis)
        self.tensor = numpy_helper.from_array(stored, quant.initializer + "_q")


def write_quantized(model: Model, applied: AppliedPlan, cache: WeightCache | None = None) -> onnx.ModelProto:
    """The quantized graph of a prepared model. PlanError where the plan names what the model does not have."""
    _check_fits(model, applied)
    return _Writer(model, applied, cache or WeightCache()).write()


class _Writer:
    def __init__(self, model: Model, applied: AppliedPlan, cache: WeightCache) -> None:
        self.model, self.applied, self.cache = model, applied, cache
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.domain16 = "" if model.opset >= AXIS_OPSET else "com.microsoft"
        self.uses_domain16 = False
        self.outputs = {output.name for output in model.outputs}
        self.redirected: dict[tuple[str, str], str] = {}
        """(node, tensor) -> the tensor that the node reads instead."""

    def write(self) -> onnx.ModelProto:
        for value in self.model.inputs:
            if value.name in self.applied.tensors:
                self._quantize_tensor(value.name, produced=None)
        for original in self.model.proto.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            self._redirect(node)
            layer = self.applied.layers.get(node.name)
            if layer is not None and layer.weight is not None:
                self._quantize_layer(node, layer, layer.weight)
            else:
                self.nodes.append(node)
            for tensor in original.output:
                if tensor in self.applied.tensors:
                    self._quantize_tensor(tensor, produced=self.nodes[-1])
        return self._assemble()

    def _redirect(self, node: onnx.NodeProto) -> None:
        for position, name in enumerate(node.input):
            node.input[position] = self.redirected.get((node.name, name), self.redirected.get(("", name), name))

    def _quantize_tensor(self, name: str, produced: onnx.NodeProto | None) -> None:
        """Put Q and DQ behind a tensor; its readers (those named, or all) read the dequantized one."""
        quant = self.applied.tensors[name]
        source, result = name, f"{name}_dq"
        if name in self.outputs and produced is not None and not quant.readers:
            source, result = f"{name}_f", name
            produced.output[list(produced.output).index(name)] = source
        parameters = self._parameters(name, quant)
        self._conversion("QuantizeLinear", [source, *parameters], f"{name}_q", quant.dtype)
        self._conversion("DequantizeLinear", [f"{name}_q", *parameters], result, quant.dtype)
        for reader in quant.readers or ("",):
            self.redirected[reader, name] = result

    def _quantize_layer(self, node: onnx.NodeProto, layer: LayerQuant, quant: WeightQuant) -> None:
        position = list(node.input).index(quant.initializer)
        bias = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2] else ""
        source = self._source_scale(node) if bias and layer.scheme.split("/")[0] != "float" else None
        stored, suffix = self._stored(node, quant, bias, source)
        prefix = f"{quant.initializer}{suffix}"
        names = [f"{prefix}_q", f"{prefix}_s", f"{prefix}_z"]
        for name, values in zip(names[1:], (stored.scale, stored.zero_point), strict=True):
            self.initializers[name] = numpy_helper.from_array(np.asarray(values), name)
        tensor = onnx.TensorProto()
        tensor.CopyFrom(stored.tensor)
        tensor.name = names[0]
        self.initializers[names[0]] = tensor
        if node.op_type == "Gather":
            self._quantize_gather(node, names, quant)
            return
        self._conversion("DequantizeLinear", names, f"{prefix}_dq", quant.dtype, quant.axis)
        node.input[position] = f"{prefix}_dq"
        if source is not None:
            node.input[2] = self._quantize_bias(node, bias, source, stored.scale)
        self.nodes.append(node)

    def _stored(
        self, node: onnx.NodeProto, quant: WeightQuant, bias: str, source: np.float32 | None
    ) -> tuple[QuantizedWeight, str]:
        """The stored weight and what tells its name from others'. Where a channel's scale is so small that its bias would
        not fit 32 bits, the scale is raised until it does."""
        stored = self.cache.get(self.model, quant)
        suffix = "" if self._only_form(quant) else f"_{quant.dtype}{'c' if quant.axis is not None else 't'}{'s' if quant.symmetric else 'a'}"
        if source is None:
            return stored, suffix
        magnitude = np.abs(self.model.array(bias).reshape(-1))
        magnitude = magnitude if stored.scale.ndim else magnitude.max(initial=0.0)
        least = (magnitude / (float(source) * INT32_MAX * 0.99)).astype(np.float32)
        if not np.any(least > stored.scale):
            return stored, suffix
        return QuantizedWeight(self.model.array(quant.initializer), quant, least), f"{suffix}_{node.name}"

    def _only_form(self, quant: WeightQuant) -> bool:
        """Is a shared weight stored in one way only?"""
        forms = {layer.weight for layer in self.applied.layers.values() if layer.weight and layer.weight.initializer == quant.initializer}
        return len(forms) == 1

    def _quantize_gather(self, node: onnx.NodeProto, names: list[str], quant: WeightQuant) -> None:
        """Rows are looked up as integers and only those are converted: the float table is never made."""
        output = node.output[0]
        node.input[0] = names[0]
        node.output[0] = f"{output}_rows"
        self.nodes.append(node)
        self._conversion("DequantizeLinear", [f"{output}_rows", *names[1:]], output, quant.dtype, None if quant.axis is None else -1)

    def _quantize_bias(self, node: onnx.NodeProto, bias: str, source: np.float32, scale: NDArray[np.float32]) -> str:
        """int32 with scale S_input · S_weight and zero point 0 (Jacob et al., 2018, arXiv:1712.05877, section 2.4)."""
        values = self.model.array(bias)
        combined = (np.float32(source) * scale).astype(np.float32)
        stored = np.clip(np.rint(values.astype(np.float64) / combined), -INT32_MAX - 1, INT32_MAX).astype(np.int32)
        names = [f"{node.name}.bias_q", f"{node.name}.bias_s"]
        self.initializers[names[0]] = numpy_helper.from_array(stored, names[0])
        self.initializers[names[1]] = numpy_helper.from_array(combined, names[1])
        self._conversion("DequantizeLinear", names, f"{node.name}.bias_dq", "s32", 0 if combined.ndim else None)
        return f"{node.name}.bias_dq"

    def _source_scale(self, node: onnx.NodeProto) -> np.float32:
        read = self.model.nodes[node.name].input[0]
        return np.float32(self.applied.tensors[read].scale)

    def _parameters(self, name: str, quant: TensorQuant) -> list[str]:
        names = [f"{name}_s", f"{name}_z"]
        self.initializers[names[0]] = numpy_helper.from_array(np.array(quant.scale, np.float32), names[0])
        self.initializers[names[1]] = numpy_helper.from_array(np.array(quant.zero_point, STORAGE[quant.dtype]), names[1])
        return names

    def _conversion(self, op: str, inputs: list[str], output: str, dtype: str, axis: int | None = None) -> None:
        domain = self.domain16 if dtype.endswith("16") else ""
        self.uses_domain16 |= bool(domain)
        extra = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **extra))

    def _assemble(self) -> onnx.ModelProto:
        graph = self.model.proto.graph
        read = {name for node in self.nodes for name in node.input} | self.outputs
        proto = onnx.ModelProto(ir_version=self.model.proto.ir_version, producer_name="accutune")
        proto.opset_import.extend(self.model.proto.opset_import)
        if self.uses_domain16 and all(entry.domain != self.domain16 for entry in proto.opset_import):
            proto.opset_import.append(helper.make_opsetid(self.domain16, 1))
        proto.graph.name = graph.name
        proto.graph.input.extend(graph.input)
        proto.graph.output.extend(graph.output)
        proto.graph.node.extend(self.nodes)
        kept: Iterable[onnx.TensorProto] = (tensor for tensor in graph.initializer if tensor.name in read)
        proto.graph.initializer.extend(kept)
        proto.graph.initializer.extend(self.initializers.values())
        return proto


def _check_fits(model: Model, applied: AppliedPlan) -> None:
    for name, layer in applied.layers.items():
        if name not in model.nodes:
            raise PlanError(f"the plan quantizes layer '{name}', which the model does not have; apply it to the model it was made for")
        if layer.weight is not None and layer.weight.initializer not in model.initializers:
            raise PlanError(f"the plan needs weight '{layer.weight.initializer}' of layer '{name}', which the model does not have")
    known = {value.name for value in model.inputs} | set(model.producers)
    for name in applied.tensors:
        if name not in known:
            raise PlanError(f"the plan quantizes tensor '{name}', which the model does not have; apply it to the model it was made for")


def weight_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a weight that has one index per output channel."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1
