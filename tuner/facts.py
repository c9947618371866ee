"""What can be said about a model or a data file by itself, before any job names it."""

from __future__ import annotations

from pathlib import Path

from search_spaces.capability import load_target
from tuner.compress.fusion import prepare
from tuner.compress.quantization.placement import candidates
from tuner.data.headers import array_heads
from tuner.model.graph import Model, TensorInfo
from tuner.model.layers import LayerInfo, layer_table, total_macs
from tuner.wire import ArrayView, DataFacts, LayerView, ModelFacts, TensorView

RUNTIME = "onnxruntime-cpu"


def layers_of(model: Model) -> list[tuple[LayerInfo, bool]]:
    """Every layer for one row, dynamic dimensions counted as 1, and whether it can be quantized. ModelError where an older model
    cannot be raised to an opset that can be."""
    prepared = prepare(model)
    able = {candidate.name for candidate in candidates(prepared, load_target(RUNTIME))}
    return [(layer, layer.name in able) for layer in layer_table(prepared)]


def model_facts(model: Model) -> ModelFacts:
    layers = layers_of(model)
    return ModelFacts(
        opset=model.opset,
        parameters=model.parameters,
        macs=total_macs([layer for layer, _ in layers]),
        inputs=tuple(map(_tensor, model.inputs)),
        outputs=tuple(map(_tensor, model.outputs)),
        layers=tuple(_layer(layer, able) for layer, able in layers),
    )


def data_facts(path: Path, name: str, limit_bytes: int) -> DataFacts:
    """What a data file holds; messages call it `name`. DataError where that would unpack to more than `limit_bytes` or does no good."""
    kind, heads = array_heads(path, name, limit_bytes)
    return DataFacts(format=kind, arrays=tuple(ArrayView(name=h.name, dtype=h.dtype, shape=h.shape) for h in heads))


def _tensor(tensor: TensorInfo) -> TensorView:
    return TensorView(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)


def _layer(layer: LayerInfo, quantizable: bool) -> LayerView:
    return LayerView(
        name=layer.name,
        op=layer.op,
        weight_shape=layer.weight_shape,
        output_shape=layer.output_shape,
        params=layer.params,
        macs=layer.macs,
        quantizable=quantizable,
    )
