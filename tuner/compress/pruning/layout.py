"""Layers as the pruning code sees them: one layout for every weight, and where a layer reads, writes and is activated.

Canonical layout: [out, in, *kernel], with in = the inputs that one output sees (of a grouped Conv, those of its group).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from tuner.errors import PlanError
from tuner.model.graph import Model, attribute
from tuner.model.layers import weight_of

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATIONS = frozenset(
    "Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Softplus Softsign Gelu Mish Swish ThresholdedRelu".split()
)
GATED = {"Sigmoid", "HardSigmoid"}
"""Followed by a product with their own input they are one activation: SiLU, HardSwish."""


@dataclass(frozen=True)
class Site:
    """A layer in the graph. Tensors by their ONNX names."""

    node: onnx.NodeProto
    weight: str
    reads: str
    writes: str
    activated: str
    """What it makes after the normalization and activation that follow it; `writes` where none does."""
    gamma: str | None
    beta: str | None
    groups: int


def site_of(model: Model, name: str) -> Site:
    """PlanError where the node is no layer whose weight stands on the right of its input."""
    node = model.nodes.get(name)
    weight = weight_of(model, node) if node is not None else None
    if node is None or weight is None or node.op_type not in LAYERS or node.input[1] != weight or attribute(node, "transA", 0):
        raise PlanError(
            f"'{name}' is no Conv, ConvTranspose, Gemm or MatMul that multiplies its input, as it is, with a stored weight on the right, "
            "so it cannot be pruned. Leave it out."
        )
    activated, norm = _activated(model, node.output[0])
    gamma, beta = (norm.input[1], norm.input[2]) if norm is not None else (None, None)
    groups = attribute(node, "group", 1) if "Conv" in node.op_type else 1
    return Site(node, weight, node.input[0], node.output[0], activated, gamma, beta, groups)


def canonical(weight: Tensor, node: onnx.NodeProto) -> Tensor:
    """A weight from its ONNX layout to [out, in, *kernel] (a view where that is possible)."""
    if node.op_type == "ConvTranspose":
        # [in, out/groups, *kernel], the inputs of a group side by side.
        groups = attribute(node, "group", 1)
        parts = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return parts.transpose(1, 2).flatten(0, 1)
    return weight if _outputs_first(node) else weight.transpose(0, 1)


def restore(weight: Tensor, node: onnx.NodeProto) -> Tensor:
    """From [out, in, *kernel] back to the ONNX layout: the two swap the same axes, so it is the same step."""
    return canonical(weight, node)


def channels_last(node: onnx.NodeProto) -> bool:
    """Do the layer's channels lie on the last axis of what it reads and writes? Otherwise on axis 1."""
    return node.op_type in ("Gemm", "MatMul")


def patches(x: Tensor, site: Site, kernel: tuple[int, ...]) -> Tensor:
    """What each row of the canonical weight is multiplied with: [rows, groups, in·kernel, positions].

    x: what the layer reads, [rows, channels, *space] or [rows, …, in]. For a Conv these are its patches (im2col)."""
    node = site.node
    if node.op_type == "ConvTranspose":
        raise PlanError(
            f"input norms and Hessians are known for Conv, Gemm and MatMul, not for the ConvTranspose '{node.name}'. Leave it out."
        )
    if channels_last(node):
        x = x * attribute(node, "alpha", 1.0)
        return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2)[:, None]
    strides, dilations, pads = _geometry(node, x.shape[2:], kernel)
    # functional.pad counts from the last axis.
    x = functional.pad(x, [p for axis in reversed(range(len(kernel))) for p in pads[axis]])
    for axis, size in enumerate(kernel):
        x = x.unfold(2 + axis, dilations[axis] * (size - 1) + 1, strides[axis])[..., :: dilations[axis]]
    space = len(kernel)
    x = x.permute(0, 1, *range(2 + space, 2 + 2 * space), *range(2, 2 + space))
    return x.reshape(x.shape[0], site.groups, x.shape[1] // site.groups * prod(kernel), -1)


def _outputs_first(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" or (node.op_type == "Gemm" and bool(attribute(node, "transB", 0)))


def _geometry(node: onnx.NodeProto, space: torch.Size, kernel: tuple[int, ...]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """(strides, dilations, (before, after) padding) per axis, auto_pad resolved for inputs of size `space`."""
    count = len(kernel)
    strides = list(attribute(node, "strides", [1] * count))
    dilations = list(attribute(node, "dilations", [1] * count))
    automatic = attribute(node, "auto_pad", b"NOTSET").decode()
    if not automatic.startswith("SAME"):
        flat = [0] * 2 * count if automatic == "VALID" else list(attribute(node, "pads", [0] * 2 * count))
        return strides, dilations, list(zip(flat[:count], flat[count:], strict=True))
    pads = []
    for size, stride, dilation, width in zip(space, strides, dilations, kernel, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        less = total // 2
        pads.append((less, total - less) if automatic == "SAME_UPPER" else (total - less, less))
    return strides, dilations, pads


def _activated(model: Model, tensor: str) -> tuple[str, onnx.NodeProto | None]:
    """(what a tensor becomes by the normalization, the affine steps and the activation after it, that normalization).

    A sum with another branch is passed only if an activation comes after it, as in residual networks."""
    norm, reached = None, tensor
    while True:
        consumers = model.consumers.get(tensor, [])
        if _gate(consumers, tensor):
            return str(consumers[1].output[0]), norm
        if len(consumers) != 1 or any(value.name == tensor for value in model.outputs):
            return reached, norm
        node = consumers[0]
        if node.op_type in ACTIVATIONS and node.input[0] == tensor:
            return str(node.output[0]), norm
        if node.op_type == "BatchNormalization":
            norm, reached = (node, node.output[0]) if norm is None and reached == tensor else (norm, reached)
        elif node.op_type in ("Add", "Mul") and any(name in model.initializers for name in node.input):
            reached = node.output[0] if reached == tensor else reached
        elif node.op_type != "Add":
            return reached, norm
        tensor = node.output[0]


def _gate(consumers: list[onnx.NodeProto], tensor: str) -> bool:
    """Is the tensor read by a sigmoid and by the product with that sigmoid alone?"""
    if [node.op_type in GATED for node in consumers] != [True, False]:
        return False
    sigmoid, product = consumers
    return product.op_type == "Mul" and set(product.input) == {tensor, sigmoid.output[0]}
