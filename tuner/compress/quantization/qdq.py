"""Writes a quantized graph: QuantizeLinear/DequantizeLinear pairs exactly where an AppliedPlan says, for the runtime to fuse.

The graph is a pure function of the prepared model and the plan, so replaying a plan gives the same bytes. Weights are
quantized once per scheme and kept: two trials that differ in one layer re-quantize that layer only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from search_spaces.schemes import FLOAT
from tuner.compress.quantization.affine import SMALLEST_SCALE, STORAGE, quantize, weight_scale
from tuner.errors import PlanError
from tuner.model.graph import Model, attribute, inner_reads
from tuner.plan import AppliedPlan, LayerQuant, TensorQuant, WeightQuant

BIAS_LIMIT = 2**30
"""Half of what 32 bits hold: the other half is for the sum of products that the bias is added to."""
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

    def __init__(self, weight: NDArray[Any], quant: WeightQuant, scale: NDArray[np.float32] | None = None) -> None:
        self.scale, self.zero_point = weight_scale(weight, quant.axis, quant.dtype, quant.symmetric)
        if scale is not None:
            self.scale = scale
        stored = quantize(weight, self.scale, self.zero_point, quant.dtype, quant.axis)
        others = None if quant.axis is None else tuple(i for i in range(weight.ndim) if i != quant.axis % weight.ndim)
        self.silent = np.asarray(np.abs(weight).max(axis=others, initial=0.0) < SMALLEST_SCALE)
        """Per scale: are all the weights zero?"""
        self.tensor = numpy_helper.from_array(stored, quant.initializer + "_q")


def write_quantized(model: Model, applied: AppliedPlan, cache: WeightCache | None = None) -> onnx.ModelProto:
    """The quantized graph of a prepared model. PlanError where the plan names what the model does not have."""
    _check_fits(model, applied)
    return _Writer(model, applied, cache or WeightCache()).write()


def stored_weights(graph: onnx.GraphProto, layers: Collection[str]) -> dict[str, list[str]]:
    """{integer weight in a written graph: the layers that read it dequantized}, for the layers named."""
    constants = {tensor.name for tensor in graph.initializer}
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants}
    found: dict[str, list[str]] = {}
    for node in graph.node:
        for name in (source[tensor] for tensor in node.input[:2] if tensor in source and node.name in layers):
            found.setdefault(name, []).append(node.name)
    return found


class _Writer:
    def __init__(self, model: Model, applied: AppliedPlan, cache: WeightCache) -> None:
        self.model, self.applied, self.cache = model, applied, cache
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.domain16 = "" if model.opset >= AXIS_OPSET else "com.microsoft"
        self.uses_domain16 = False
        self.outputs = {output.name for output in model.outputs}
        self.names: dict[str, str] = {}
        """New tensors by the name they would have if no tensor of the model had it."""
        self.taken = {*(value.name for value in model.proto.graph.input), *model.producers, *model.initializers}
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
        if name in self.outputs and produced is not None and not quant.readers:
            source, result = self._fresh(f"{name}_f"), name
            produced.output[list(produced.output).index(name)] = source
        else:
            source, result = name, self._fresh(f"{name}_dq")
        parameters = self._parameters(name, quant)
        stored = self._fresh(f"{name}_q")
        self._conversion("QuantizeLinear", [source, *parameters], stored, quant.dtype)
        self._conversion("DequantizeLinear", [stored, *parameters], result, quant.dtype)
        for reader in quant.readers or ("",):
            self.redirected[reader, name] = result

    def _quantize_layer(self, node: onnx.NodeProto, layer: LayerQuant, quant: WeightQuant) -> None:
        position = list(node.input).index(quant.initializer)
        bias = self._bias(node, layer, quant)
        source = self._source_scale(node) if bias is not None else np.float32(0)
        stored = self.cache.get(self.model, quant)
        prefix = quant.initializer + self._form(quant)
        if bias is not None and (scale := _scale_for_bias(stored, bias, source)) is not None:
            stored = QuantizedWeight(self.model.array(quant.initializer), quant, scale)
            prefix += "" if len(self.model.consumers[quant.initializer]) == 1 else f"_{node.name}"
        names = self._constants(prefix, stored)
        if node.op_type == "Gather":
            self._quantize_gather(node, names, quant)
            return
        node.input[position] = self._dequantized(prefix, names, quant)
        if bias is not None:
            node.input[2] = self._quantize_bias(node, bias, source, stored.scale)
        self.nodes.append(node)

    def _bias(self, node: onnx.NodeProto, layer: LayerQuant, quant: WeightQuant) -> NDArray[np.float32] | None:
        """The bias as [channels], where an integer kernel adds it; None where there is none or it is no such vector."""
        if node.op_type not in ("Conv", "Gemm") or layer.scheme.split("/")[0] == FLOAT or len(node.input) < 3 or not node.input[2]:
            return None
        values = self.model.array(node.input[2])
        weight = self.model.initializers[quant.initializer].dims
        channels = weight[weight_axis(node, len(weight))]
        if values.size != 1 and values.shape[-1:] != (values.size,) and values.shape != (1, values.size):
            return None
        return np.broadcast_to(values.reshape(-1), (channels,)) if values.size in (1, channels) else None

    def _form(self, quant: WeightQuant) -> str:
        """What tells the name of a weight that is stored in several forms from the others'."""
        forms = {layer.weight for layer in self.applied.layers.values() if layer.weight and layer.weight.initializer == quant.initializer}
        if len(forms) == 1:
            return ""
        return f"_{quant.dtype}{'c' if quant.axis is not None else 't'}{'s' if quant.symmetric else 'a'}"

    def _constants(self, prefix: str, stored: QuantizedWeight) -> list[str]:
        names = [self._fresh(f"{prefix}_{part}") for part in "qsz"]
        for name, values in zip(names[1:], (stored.scale, stored.zero_point), strict=True):
            self.initializers[name] = numpy_helper.from_array(np.asarray(values), name)
        if names[0] not in self.initializers:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(stored.tensor)
            tensor.name = names[0]
            self.initializers[names[0]] = tensor
        return names

    def _dequantized(self, prefix: str, names: list[str], quant: WeightQuant) -> str:
        """The dequantized weight, which layers that share it in one form share too."""
        base = f"{prefix}_dq"
        if base not in self.names:
            self._conversion("DequantizeLinear", names, self._fresh(base), quant.dtype, quant.axis)
        return self.names[base]

    def _quantize_gather(self, node: onnx.NodeProto, names: list[str], quant: WeightQuant) -> None:
        """Rows are looked up as integers and only those are converted: the float table is never made."""
        output, rows = node.output[0], self._fresh(f"{node.output[0]}_rows")
        node.input[0] = names[0]
        node.output[0] = rows
        self.nodes.append(node)
        self._conversion("DequantizeLinear", [rows, *names[1:]], output, quant.dtype, None if quant.axis is None else -1)

    def _quantize_bias(self, node: onnx.NodeProto, bias: NDArray[np.float32], source: np.float32, scale: NDArray[np.float32]) -> str:
        """int32 with scale S_input · S_weight and zero point 0 (Jacob et al., 2018, arXiv:1712.05877, section 2.4)."""
        combined = (source * scale).astype(np.float32)
        stored = np.rint(bias.astype(np.float64) / combined).astype(np.int32)
        names = [self._fresh(f"{node.name}.bias_{part}") for part in "qs"]
        self.initializers[names[0]] = numpy_helper.from_array(stored, names[0])
        self.initializers[names[1]] = numpy_helper.from_array(combined, names[1])
        result = self._fresh(f"{node.name}.bias_dq")
        self._conversion("DequantizeLinear", names, result, "s32", 0 if combined.ndim else None)
        return result

    def _source_scale(self, node: onnx.NodeProto) -> np.float32:
        read = self.model.nodes[node.name].input[0]
        if read not in self.applied.tensors:
            raise PlanError(f"the plan quantizes what layer '{node.name}' reads, but gives no scale for tensor '{read}'; was it edited?")
        return np.float32(self.applied.tensors[read].scale)

    def _fresh(self, base: str) -> str:
        """The name for a new tensor: `base`, unless the model has a tensor of that name."""
        if base not in self.names:
            name = base
            while name in self.taken:
                name += "_"
            self.names[base] = name
            self.taken.add(name)
        return self.names[base]

    def _parameters(self, name: str, quant: TensorQuant) -> list[str]:
        names = [self._fresh(f"{name}_s"), self._fresh(f"{name}_z")]
        self.initializers[names[0]] = numpy_helper.from_array(np.array(quant.scale, np.float32), names[0])
        self.initializers[names[1]] = numpy_helper.from_array(np.array(quant.zero_point, STORAGE[quant.dtype]), names[1])
        return names

    def _conversion(self, op: str, inputs: list[str], output: str, dtype: str, axis: int | None = None) -> None:
        domain = self.domain16 if dtype.endswith("16") else ""
        self.uses_domain16 |= bool(domain)
        node = helper.make_node(op, inputs, [output], name=output, domain=domain)
        node.attribute.extend([] if axis is None else [helper.make_attribute("axis", axis)])
        self.nodes.append(node)

    def _assemble(self) -> onnx.ModelProto:
        graph = self.model.proto.graph
        read = {name for node in self.nodes for name in node.input} | self.outputs | inner_reads(graph)
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


def _scale_for_bias(stored: QuantizedWeight, bias: NDArray[np.float32], source: np.float32) -> NDArray[np.float32] | None:
    """Weight scales with which the bias fits; None where those that the weight asks for do.

    bias: [channels]. The scale of a channel whose bias would pass 2**30 is raised to where it just fits. The scale of a channel
    without weights is free: it becomes that too, because the bias then loses nothing."""
    magnitude = np.abs(bias) if stored.scale.ndim else np.abs(bias).max(initial=0.0)
    least = np.maximum(magnitude / (np.float64(source) * BIAS_LIMIT), SMALLEST_SCALE)
    free = stored.silent & (magnitude > 0)
    scale = np.where(free, least, np.maximum(stored.scale, least)).astype(np.float32)
    return None if np.array_equal(scale, stored.scale) else scale


def _check_fits(model: Model, applied: AppliedPlan) -> None:
    for name, layer in applied.layers.items():
        if name not in model.nodes:
            raise PlanError(f"the plan quantizes layer '{name}', which the model does not have; apply it to the model it was made for")
        if layer.weight is not None and layer.weight.initializer not in model.initializers:
            raise PlanError(f"the plan needs weight '{layer.weight.initializer}' of layer '{name}', which the model does not have")
        if layer.weight is not None and layer.weight.initializer not in model.nodes[name].input:
            raise PlanError(
                f"the plan needs weight '{layer.weight.initializer}' of layer '{name}', which that layer does not read; "
                "apply it to the model it was made for"
            )
    known = {value.name for value in model.inputs} | set(model.producers)
    for name in applied.tensors:
        if name not in known:
            raise PlanError(f"the plan quantizes tensor '{name}', which the model does not have; apply it to the model it was made for")


def weight_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a weight that has one index per output channel (of a ConvTranspose, per output channel of a group)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1
