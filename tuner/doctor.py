"""Is this machine fit for tuning, and what does it accelerate? Every answer is asked or measured here and now."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from search_spaces.capability import load_target
from search_spaces.presets import load_preset, preset_names
from search_spaces.schemes import Frozen, QuantScheme
from search_spaces.space import QUANTIZE
from tuner.compress.fusion import prepare
from tuner.compress.pipeline import Compressor
from tuner.compress.quantization.collect import collect, exposing
from tuner.compress.quantization.placement import observed_tensors
from tuner.cost_table import cost_cache
from tuner.measure.latency import alone, compare_latency
from tuner.measure.machine import processor_features
from tuner.measure.runtime import Session, environment
from tuner.model.graph import Model, serialize
from tuner.plan import CompressionPlan, Step

RUNTIME = "onnxruntime-cpu"
PROBES = ("u8-asym-minmax/s8-sym-channel", "s8-asym-minmax/s8-sym-channel", "u8-asym-minmax/u8-asym-tensor")


class Check(Frozen):
    """One question and its answer."""

    name: str
    status: Literal["ok", "warning", "problem"]
    answer: str


def examine() -> Iterator[Check]:
    """All checks, one by one as they are done. The last ones measure for about a second each."""
    facts = environment()
    yield Check(name="machine", status="ok", answer=f"{facts['processor']}, {facts['cores']} cores, {facts['system']}")
    yield Check(name="runtime", status="ok", answer=f"onnxruntime {facts['onnxruntime']}, onnx {facts['onnx']}, Python {facts['python']}")
    processor = load_target(RUNTIME).processor(processor_features())
    status: Literal["ok", "warning"] = "warning" if processor.warning or processor.name == "unknown processor" else "ok"
    accelerated = f"{processor.name}: {', '.join(processor.accelerated)} (activation/weight)"
    yield Check(name="processor", status=status, answer=accelerated + (f"; {processor.warning}" if processor.warning else ""))
    yield _load()
    yield _writable("latency tables", cost_cache())
    yield _writable("temporary files", Path(tempfile.gettempdir()))
    for name in preset_names():
        yield Check(name=f"space {name}", status="ok", answer=load_preset(name).summary)
    yield from _speeds()


def _load() -> Check:
    if not hasattr(os, "getloadavg"):
        return Check(name="load", status="ok", answer="this system does not tell")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = load > 0.7 * cores
    answer = f"{load:.1f} of {cores} cores busy" + ("; latency is measured more slowly and with wider intervals" if busy else "")
    return Check(name="load", status="warning" if busy else "ok", answer=answer)


def _writable(name: str, folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Check(name=name, status="ok", answer=str(folder))
    except OSError as error:
        return Check(name=name, status="problem", answer=f"{folder} cannot be written: {error.strerror}")


def _speeds() -> Iterator[Check]:
    """How much faster than float a small convolutional network runs under each scheme."""
    model = _network()
    prepared, target = prepare(model), load_target(RUNTIME)
    feed = {"x": np.random.default_rng(0).normal(size=(1, 32, 32, 32)).astype(np.float32)}
    names = observed_tensors(prepared, target)
    session = Session(exposing(prepared, names), 1)
    compressor = Compressor(model, prepared, collect(prepared, names, [feed], session.run), target)
    baseline = Session(model.data, 1)
    layers = [node.name for node in prepared.nodes.values() if node.op_type == "Conv"]
    for probe in PROBES:
        plan = CompressionPlan(steps=(Step(name=QUANTIZE, layers=dict.fromkeys(layers, probe)),))
        candidate = Session(compressor.build(compressor.resolve(plan)), 1)
        with alone():
            latency = compare_latency(lambda: baseline.run(feed), lambda: candidate.run(feed), seconds=1.0)  # noqa: B023
        ratio = latency.ratio
        status: Literal["ok", "warning"] = "ok" if ratio.lower > 1 or probe != PROBES[0] else "warning"
        answer = f"{ratio.value:.2f}× the speed of float ({ratio.lower:.2f} to {ratio.upper:.2f}) on a small convolutional network"
        yield Check(name=f"speed of {QuantScheme.parse(probe).kind}", status=status, answer=answer)


def _network() -> Model:
    """Four convolutions of 32 channels on 32 × 32 positions, with random weights."""
    source = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for index in range(4):
        weight = source.normal(0, 0.06, (32, 32, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        name = f"r{index}"
    shape: list[str | int | None] = ["batch", 32, 32, 32]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    return Model.parse(serialize(proto))
