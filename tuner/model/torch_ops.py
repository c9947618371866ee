"""All operators of the torch view: importing this fills the table. `@operator("Relu")` adds one, from a plug-in too."""

from __future__ import annotations

from tuner.model import (
    torch_ops_activations,
    torch_ops_attention,
    torch_ops_index,
    torch_ops_layers,
    torch_ops_math,
    torch_ops_pool,
    torch_ops_recurrent,
    torch_ops_reduce,
    torch_ops_resize,
    torch_ops_shape,
)
from tuner.model.torch_table import DTYPES, Operator, find_operator, ints, known_operators, operator

FAMILIES = (
    torch_ops_activations,
    torch_ops_attention,
    torch_ops_index,
    torch_ops_layers,
    torch_ops_math,
    torch_ops_pool,
    torch_ops_recurrent,
    torch_ops_reduce,
    torch_ops_resize,
    torch_ops_shape,
)

__all__ = ["DTYPES", "FAMILIES", "Operator", "find_operator", "ints", "known_operators", "operator"]
