"""What a plan took away from a model, done again: from the record and the stored weights, without data and without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tuner.compress.decomposition import skeleton
from tuner.compress.pruning.removal import remove_channels
from tuner.errors import PlanError
from tuner.model.graph import Model, seal
from tuner.plan import Structure

Arrays = Mapping[str, NDArray[Any]]


def shaped(base: Model, structure: Structure) -> Model:
    """The model with its channels removed and its layers split; what is new has no values yet."""
    model = remove_channels(base, structure.removed) if structure.removed else base
    if structure.splits:
        model = skeleton(model, {layer: (split.method, split.rank) for layer, split in structure.splits.items()})
    return model


def restored(base: Model, structure: Structure, tensors: Arrays) -> Model:
    """The structured model. PlanError where a weight does not fit it, or is not there.

    base: the original, cleaned up by `fusion.unfold`. tensors: every weight that `changed_tensors` named."""
    proto = shaped(base, structure).copy()
    left = dict(tensors)
    for tensor in proto.graph.initializer:
        array = left.pop(tensor.name, None)
        if array is not None:
            _check_fit(tensor, array)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        elif tensor.name not in base.initializers:
            raise PlanError(f"the trained weights lack '{tensor.name}', which the plan made; do plan and weights belong together?")
    if left:
        raise PlanError(
            f"the trained weights name '{next(iter(left))}', which the model does not have; do plan, weights and model belong together?"
        )
    return seal(proto)


def _check_fit(tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
    shape, dtype = list(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if list(array.shape) != shape:
        raise PlanError(
            f"the trained weight '{tensor.name}' has shape {list(array.shape)}, the plan makes {shape}; do both belong together?"
        )
    if array.dtype != dtype:
        raise PlanError(f"the trained weight '{tensor.name}' holds {array.dtype}, the model has {dtype}; do both belong together?")


def changed_tensors(base: Model, structure: Structure, model: Model) -> dict[str, NDArray[Any]]:
    """The weights of a structured model that its record alone does not give."""
    plain = shaped(base, structure).initializers
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in model.initializers.items()
        if name not in base.initializers or plain[name].SerializeToString() != tensor.SerializeToString()
    }
