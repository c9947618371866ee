from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tiny_jobs import CLASSES, FEATURES, dense, net, reference

from tuner.errors import ModelError
from tuner.measure.machine import processor_features
from tuner.measure.runtime import Session, environment, float_weights, scratch

ROWS = np.random.default_rng(0).standard_normal((6, FEATURES)).astype(np.float32)


def test_a_session_runs_the_model() -> None:
    session = Session(dense(), 1)
    (outputs,) = session.run({"x": ROWS})
    np.testing.assert_allclose(outputs, reference(dense(), ROWS), rtol=1e-4, atol=1e-5)
    assert outputs.shape == (6, CLASSES)
    assert session.output_names == ["y"]
    assert session.fixed_batch is None
    assert Session(dense(batch=4), 1).fixed_batch == 4


def test_a_model_is_loaded_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(dense())
    np.testing.assert_array_equal(Session(path, 1).run({"x": ROWS})[0], Session(dense(), 1).run({"x": ROWS})[0])


def test_bytes_that_are_no_model_are_named() -> None:
    with pytest.raises(ModelError, match=r"onnxruntime \d+\.\d+\.\d+ cannot load the model: .+"):
        Session(b"not a model", 1)


def test_a_graph_that_the_runtime_does_not_know_is_named_in_one_line() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", domain="com.microsoft")
    with pytest.raises(ModelError, match="cannot load the model") as caught:
        Session(net([node], {"w": np.zeros((FEATURES, 2))}, ["batch", FEATURES], ["batch", 2]), 1)
    assert "\n" not in str(caught.value)


def test_a_feed_that_does_not_fit_is_named() -> None:
    with pytest.raises(ModelError, match=r"cannot run the model: .*x"):
        Session(dense(), 1).run({"x": np.zeros((2, FEATURES + 1), np.float32)})


def quantized_conv(activations: bool) -> bytes:
    """One Conv with 8-bit weights. Without 8-bit activations, nothing can run it on integers."""
    random = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        "w_q": random.integers(-127, 128, (4, 2, 3)).astype(np.int8),
        "s": np.array(0.01, np.float32),
        "w_z": np.array(0, np.int8),
        "x_z": np.array(128, np.uint8),
    }
    nodes = [helper.make_node("DequantizeLinear", ["w_q", "s", "w_z"], ["w"], name="w_dq")]
    names = iter(["x", "x_q", "x_dq", "y", "y_q", "y_dq"] if activations else ["x", "y"])
    source = next(names)

    def both_ways(source: str) -> str:
        quantized, back = next(names), next(names)
        nodes.append(helper.make_node("QuantizeLinear", [source, "s", "x_z"], [quantized], name=quantized))
        nodes.append(helper.make_node("DequantizeLinear", [quantized, "s", "x_z"], [back], name=back))
        return back

    source = both_ways(source) if activations else source
    output = next(names)
    nodes.append(helper.make_node("Conv", [source, "w"], [output], name="conv"))
    output = both_ways(output) if activations else output
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2, 8])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", 4, 6])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("activations", "left"), [(True, set()), (False, {"w_q"})])
def test_weights_that_no_integer_kernel_took_are_found(activations: bool, left: set[str]) -> None:
    session, found = float_weights(quantized_conv(activations), ["w_q"], 1)
    assert found == left
    assert session.run({"x": ROWS.reshape(-1, 2, 8)})[0].shape == (6, 4, 6)


def test_scratch_is_gone_afterwards() -> None:
    with scratch() as folder:
        (folder / "file").write_text("text")
    assert not folder.exists()


def test_the_environment_names_what_figures_depend_on() -> None:
    found = environment()
    assert found["cores"] == str(os.cpu_count())
    assert all(found[name] for name in ("processor", "system", "python", "onnxruntime", "onnx", "numpy"))
    assert all(" " not in feature for feature in processor_features())
