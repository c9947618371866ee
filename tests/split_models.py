"""Networks of one layer, called `layer`, that the tests of decomposition split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from builders import Array, Net, rows, run

from tuner.compress.decomposition import Factors, factorize, full_rank
from tuner.model.graph import Model

CONVOLUTION_METHODS = ("channel-svd", "spatial-svd", "tucker2")
PRODUCT_METHODS = ("svd-llm", "fwsvd", "svd")

WINDOWS: dict[str, dict[str, Any]] = {
    "plain": {"pads": [1, 1, 1, 1]},
    "no pads": {},
    "stride": {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    "unequal strides": {"pads": [1, 1, 1, 1], "strides": [1, 3]},
    "dilation": {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "unequal dilations and pads": {"pads": [0, 2, 1, 3], "dilations": [1, 2], "strides": [2, 1]},
    "same upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same lower": {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
    "valid": {"auto_pad": "VALID", "strides": [2, 2]},
}
PRODUCTS = ["gemm", "gemm not transposed", "gemm with all attributes", "gemm without bias", "matmul", "matmul 3-D", "matmul from the left"]


def convolution(kernel: tuple[int, int] = (3, 3), bias: bool = True, i: int = 6, o: int = 8, size: int = 11, **window: Any) -> Model:
    """One convolution called `layer` with BatchNormalization behind it."""
    net = Net()
    parameters = [net.weight("w", (o, i, *kernel), i * kernel[0] * kernel[1])]
    parameters += [net.constant("b", net.random.normal(size=o))] if bias else []
    y = net.op("Conv", net.input(shape=("batch", i, size, size + 1)), *parameters, name="layer", **window)
    return net.output(net.norm(y, o, "bn")).model()


def linear(kind: str, i: int = 7, o: int = 9) -> Model:
    """One product called `layer` with the weight `layer.w`."""
    net = Net()
    if kind == "matmul from the left":
        y = net.op("MatMul", net.weight("layer.w", (o, i), i), net.input(shape=("batch", i, 5)), name="layer")
        return net.output(y).model()
    if kind.startswith("matmul"):
        return net.output(net.matmul(net.input(shape=("batch", 5, i) if "3-D" in kind else ("batch", i)), i, o, "layer")).model()
    if kind == "gemm without bias":
        return net.output(net.op("Gemm", net.input(shape=("batch", i)), net.weight("layer.w", (i, o), i), name="layer")).model()
    if kind == "gemm with all attributes":
        return net.output(net.gemm(net.input(shape=(i, 32)), i, o, "layer", alpha=0.5, beta=2.0, transA=1)).model()
    return net.output(net.gemm(net.input(shape=("batch", i)), i, o, "layer", transposed="not" not in kind)).model()


def model_for(method: str) -> Model:
    return linear("gemm") if method in PRODUCT_METHODS else convolution(i=12, o=16, pads=[1] * 4, strides=[2, 2])


def evidence(out: int = 9, inputs: int = 7) -> dict[str, Mapping[str, Array]]:
    random = np.random.default_rng(3)
    x = random.normal(size=(inputs, 50))
    return {"layer": {"hessian": x @ x.T, "grad_squared": random.uniform(size=(out, inputs))}}


def check_equal(model: Model, other: Model) -> None:
    feed = rows(model, 32)
    for ours, theirs in zip(run(other, feed), run(model, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def at_full_rank(model: Model, method: str) -> Model:
    return factorize(model, {"layer": Factors(method, full_rank(model, "layer", method))}, evidence())
