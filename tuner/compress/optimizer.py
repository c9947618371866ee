"""The optimizer of recovery: which parameters it changes, how fast, and the learning rate at each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
import torch
from torch import nn

from search_spaces.recovery import RecoverySpec
from tuner.model.graph import Model

if TYPE_CHECKING:
    from tuner.model.torch_view import TorchView

RATES = {("adamw", True): 5e-5, ("adamw", False): 1e-3, ("sgd", True): 1e-3, ("sgd", False): 1e-2}
"""(optimizer, is it a transformer) -> the highest learning rate where none is given."""

TRANSFORMER_OPS = {"LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "Attention", "MultiHeadAttention"}

SECOND_MOMENT = 0.999


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of step 0..steps-1: a rise in equal stages to `peak`, then half a cosine towards 0.

    warmup: share of the steps in the rise. The cosine is that of Loshchilov and Hutter, 2017, "SGDR", equation 5
    (arXiv:1608.03983), with η_min = 0 and no restart."""
    rise = math.ceil(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def is_transformer(view: TorchView) -> bool:
    """Does the network attend or normalize layers? The learning rates of convolutions destroy such networks."""
    return any(node.op_type in TRANSFORMER_OPS or _attends(view.model, node) for node in view.model.nodes.values())


def _attends(model: Model, node: onnx.NodeProto) -> bool:
    """Softmax that is multiplied with something is attention, however its normalizations were exported."""
    followers = model.consumers.get(node.output[0], []) if node.op_type == "Softmax" else []
    return any(follower.op_type in ("MatMul", "Einsum") for follower in followers)


def peak_rate(view: TorchView, spec: RecoverySpec) -> tuple[float, str]:
    """The highest learning rate, and where it comes from."""
    if spec.learning_rate is not None:
        return spec.learning_rate, f"learning rate {spec.learning_rate:g}, as given"
    transformer = is_transformer(view)
    rate = RATES[spec.optimizer, transformer]
    kind = "with attention or layer normalization" if transformer else "of convolutions or dense layers"
    return rate, f"learning rate {rate:g}, chosen for {spec.optimizer} on a network {kind}"


def trained(view: TorchView) -> list[nn.Parameter]:
    """Every parameter that is trained, once."""
    found = {id(parameter): parameter for name in view.trainable if (parameter := view.parameter(name)).requires_grad}
    return list(found.values())


def make_optimizer(view: TorchView, spec: RecoverySpec, rate: float) -> torch.optim.Optimizer:
    """A fresh optimizer. Parameters that are vectors in disguise (biases, normalizations, scales) have no weight decay."""
    vectors = [parameter for parameter in trained(view) if sum(size > 1 for size in parameter.shape) < 2]
    ids = {id(parameter) for parameter in vectors}
    matrices = [parameter for parameter in trained(view) if id(parameter) not in ids]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=spec.momentum, nesterov=spec.momentum > 0)
    return torch.optim.AdamW(groups, lr=rate, betas=(spec.momentum, SECOND_MOMENT))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
