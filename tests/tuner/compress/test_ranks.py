from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Array, Net
from split_models import convolution, evidence, linear, model_for

from search_spaces.schemes import RankScheme
from tuner.compress.decomposition import Factors, compression_of, factorize, full_rank, methods_for, rank_of, skeleton, whole_cost
from tuner.compress.factors import METHODS
from tuner.errors import PlanError, UnknownName
from tuner.model.graph import Model, seal
from tuner.model.layers import layer_table


@pytest.mark.parametrize("method", list(METHODS))
class TestEveryMethod:
    """The contract of all methods."""

    def test_costs_are_those_of_the_layer_table(self, method: str) -> None:
        model = model_for(method)
        [whole] = layer_table(model)
        assert whole_cost(model, "layer") == (whole.macs, whole.params)
        for rank in (full_rank(model, "layer", method), rank_of(model, "layer", method, ratio=0.5)):
            table = layer_table(factorize(model, {"layer": Factors(method, rank)}, evidence()))
            assert compression_of(model, "layer", method, rank) == (sum(e.macs or 0 for e in table), sum(e.params for e in table))

    @pytest.mark.parametrize("ratio", [0, 0.1, 0.3, 0.5, 0.7])
    def test_a_ratio_gives_the_greatest_rank_that_saves_as_much(self, method: str, ratio: float) -> None:
        model = model_for(method)
        rank = rank_of(model, "layer", method, ratio)
        budget = (1 - ratio) * whole_cost(model, "layer").macs
        assert compression_of(model, "layer", method, rank).macs <= budget
        if not isinstance(rank, tuple):
            assert compression_of(model, "layer", method, rank + 1).macs > budget
        else:
            assert rank[1] == pytest.approx(rank[0] * 16 / 12, abs=1)
            assert compression_of(model, "layer", method, (rank[0] + 1, rank[1] + 1)).macs > budget

    def test_a_saved_share_that_no_rank_reaches_is_refused(self, method: str) -> None:
        model = model_for(method)
        with pytest.raises(PlanError, match=rf"has \d+ MACs, and still \d+ when {method} splits it at the smallest rank") as caught:
            rank_of(model, "layer", method, 0.99)
        assert "Choose a ratio up to 0." in str(caught.value)
        reachable = float(str(caught.value).split("up to ")[1].split(",")[0])
        least = rank_of(model, "layer", method, reachable)
        assert least in (1, (1, 1))

    def test_an_energy_that_costs_more_than_the_layer_is_refused(self, method: str) -> None:
        model = model_for(method)
        macs, split = (
            whole_cost(model, "layer").macs,
            compression_of(model, "layer", method, full_rank(model, "layer", method)).macs,
        )
        assert split > macs
        wanted = rf"layer 'layer' has {macs} MACs, and {split} when {method} splits it at rank .* energy of 1 needs.*may not cost more"
        with pytest.raises(PlanError, match=wanted):
            rank_of(model, "layer", method, energy=1, evidence=evidence()["layer"])

    def test_ranks_are_multiples_where_that_is_asked(self, method: str) -> None:
        model = model_for(method)
        plain, aligned = rank_of(model, "layer", method, 0.1), rank_of(model, "layer", method, 0.1, align=2)
        assert all(rank % 2 == 0 and rank >= exact - 1 for rank, exact in zip(np.ravel(aligned), np.ravel(plain), strict=True))
        assert compression_of(model, "layer", method, aligned).macs <= 0.9 * whole_cost(model, "layer").macs
        # A rank below the multiple stays as it is.
        assert rank_of(model, "layer", method, 0.1, align=1000) == plain


def test_two_thirds_of_a_square_convolution() -> None:
    model = convolution(i=64, o=64, pads=[1] * 4)
    assert rank_of(model, "layer", "spatial-svd", 2 / 3) == 32
    split = factorize(model, {"layer": Factors("spatial-svd", 32)})
    assert [split.array(f"w.{index}").shape for index in range(2)] == [(32, 64, 3, 1), (64, 32, 1, 3)]
    saved = 1 - compression_of(model, "layer", "spatial-svd", 32).macs / whole_cost(model, "layer").macs
    assert saved == pytest.approx(0.667, abs=5e-4)


def test_a_stride_makes_the_first_spatial_factor_dearer() -> None:
    model = convolution(i=4, o=8, size=16, pads=[1] * 4, strides=[2, 2])  # 16×17 to 8×9
    assert compression_of(model, "layer", "spatial-svd", 3).macs == 3 * 4 * 3 * (8 * 17) + 8 * 3 * 3 * (8 * 9)
    assert compression_of(model, "layer", "channel-svd", 3).macs == (3 * 4 * 9 + 8 * 3) * 8 * 9
    assert compression_of(model, "layer", "tucker2", (2, 3)).macs == 2 * 4 * 16 * 17 + (3 * 2 * 9 + 8 * 3) * 8 * 9


def test_without_shapes_the_kernels_alone_count() -> None:
    model = convolution(i=4, o=8, strides=[2, 2])
    assert whole_cost(model, "layer", {}).macs == 4 * 8 * 9
    assert compression_of(model, "layer", "spatial-svd", 3, {}).macs == 3 * 4 * 3 + 8 * 3 * 3
    assert rank_of(model, "layer", "spatial-svd", 0.5, shapes={"x": (1, 4, None, 12)}) == 4
    assert compression_of(linear("gemm"), "layer", "svd", 2, {}).macs == 2 * (7 + 9)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("energy", [0.3, 0.6])
def test_an_energy_bounds_what_is_lost(method: str, energy: float) -> None:
    model = model_for(method)
    seen = {"layer": {"hessian": np.eye(7), "grad_squared": np.ones((9, 7))}}
    rank = rank_of(model, "layer", method, energy=energy, evidence=seen["layer"])
    split = factorize(model, {"layer": Factors(method, rank)}, seen)
    weight = model.array(model.nodes["layer"].input[1])
    lost = float(np.square(weight_of_factors(split, weight.ndim) - weight).sum())
    assert lost <= (1 - energy) * float(np.square(weight).sum()) * (1 + 1e-5)


def weight_of_factors(split: Model, ndim: int) -> Array:
    """The one weight that the factors amount to."""
    arrays = [split.array(node.input[1]).astype(np.float64) for node in split.nodes.values() if node.name.startswith("layer.")]
    if ndim == 2:
        return arrays[1] @ arrays[0]
    total = arrays[0]
    for array in arrays[1:]:
        total = np.einsum("orhw,rikl->oihkwl", array, total)
        total = total.reshape(*total.shape[:2], total.shape[2] * total.shape[3], -1)
    return total


def test_the_energy_of_asvd_is_that_of_outputs() -> None:
    model = linear("gemm")
    weight = model.array("layer.w").astype(np.float64)
    x = np.random.default_rng(0).normal(size=(7, 50)) * np.geomspace(0.01, 10, 7)[:, None]
    squares = np.square(np.linalg.svd(weight @ x, compute_uv=False))
    energy = float(squares[:2].sum() / squares.sum())
    seen = {"hessian": x @ x.T}
    assert rank_of(model, "layer", "svd-llm", energy=energy * 0.9999, evidence=seen) <= 2
    assert rank_of(model, "layer", "svd-llm", energy=energy * 1.0001, evidence=seen) == 3


def refused(model: Model, choices: Mapping[str, Any], seen: Any = None) -> str:
    with pytest.raises(PlanError) as caught:
        factorize(model, choices, seen)
    return str(caught.value)


def test_layers_that_cannot_be_split_say_why() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(shape=("batch", 4, 6, 6)), 4, 4, "depthwise", group=4), name="relu")
    line = net.op("Reshape", x, net.constant("shape", [0, 4, 36], np.int64), name="reshape")
    y = net.op("Conv", line, net.weight("line.w", (4, 4, 3), 12), name="line")
    batched = net.op("MatMul", y, net.weight("batched.w", (1, 34, 5), 34), name="batched")
    model = net.output(batched).model()
    reasons = {
        "depthwise": "layer 'depthwise' is a convolution in 4 groups; only those in one group can be split. Leave it 'whole'",
        "relu": "layer 'relu' is a Relu; only Conv, Gemm and MatMul with a constant float weight can be split. Leave it 'whole'",
        "line": "layer 'line' has a weight of shape [4, 4, 3]; only 2-D convolutions can be split. Leave it 'whole'",
        "batched": "layer 'batched' has a weight of shape [1, 34, 5]; only 2-D weights can be split. Leave it 'whole'",
        "none": "the plan splits 'none', which is no layer of this model; see `tuner inspect`",
    }
    for name, reason in reasons.items():
        assert refused(model, {name: RankScheme(method="svd", ratio=0.3)}) == reason
        assert name == "none" or methods_for(model, name) == ()


def test_methods_for_other_layers_are_refused() -> None:
    assert refused(convolution(), {"layer": RankScheme(method="svd", ratio=0.3)}) == (
        "svd splits Gemm and MatMul, and layer 'layer' is a Conv with a kernel of 3×3. Use one of channel-svd, spatial-svd, tucker2, "
        "or leave it 'whole'"
    )
    assert refused(convolution((1, 3)), {"layer": Factors("spatial-svd", 1)}) == (
        "spatial-svd splits convolutions whose kernel has more than one row and column, and layer 'layer' is a Conv with a kernel of 1×3. "
        "Use one of channel-svd, tucker2, or leave it 'whole'"
    )
    assert "Use one of fwsvd, svd, svd-llm" in refused(linear("gemm"), {"layer": Factors("tucker2", (1, 1))})
    with pytest.raises(UnknownName, match=r"unknown decomposition 'tucker'\. Did you mean 'tucker2'"):
        factorize(convolution(), {"layer": RankScheme(method="tucker", ratio=0.3)})


@pytest.mark.parametrize("rank", [0, 8, (2, 2)])
def test_ranks_out_of_bounds_are_refused(rank: Any) -> None:
    wanted = f"svd splits layer 'layer' at rank 1 to 7, got {rank}. Choose one within, or a ratio"
    assert refused(linear("gemm"), {"layer": Factors("svd", rank)}) == wanted


def test_ranks_may_come_as_a_list() -> None:
    model = convolution()
    assert skeleton(model, {"layer": ("tucker2", [2, 3])}).data == skeleton(model, {"layer": ("tucker2", (2, 3))}).data
    assert skeleton(linear("gemm"), {"layer": ("svd", [3])}).data == skeleton(linear("gemm"), {"layer": ("svd", 3)}).data
    assert "at rank 1 to 6 and 1 to 8, got 3" in refused(model, {"layer": Factors("tucker2", 3)})


def test_ratio_and_energy_are_checked() -> None:
    model = linear("gemm")
    for arguments, text in (
        ({}, "the rank of layer 'layer' follows from a ratio or an energy, got ratio None and energy None. Give one of them"),
        ({"ratio": 0.5, "energy": 0.5}, "got ratio 0.5 and energy 0.5. Give one of them"),
        ({"ratio": 1.0}, "the ratio of layer 'layer' is the share of MACs to remove, got 1. Choose one from 0 to below 1"),
        ({"energy": 0.0}, "the energy of layer 'layer' is the share of squared singular values to keep, got 0. Choose one above 0"),
    ):
        with pytest.raises(PlanError) as caught:
            rank_of(model, "layer", "svd", **arguments)
        assert text in str(caught.value)


def test_missing_or_misshapen_evidence_is_named() -> None:
    model, choices = linear("gemm"), {"layer": RankScheme(method="svd-llm", ratio=0.2)}
    assert refused(model, choices) == (
        "svd-llm needs hessian of layer 'layer', which was not collected. Give calibration data, or use svd, which needs none"
    )
    assert refused(model, choices, {"layer": {"hessian": np.eye(9)}}) == (
        "hessian of layer 'layer' must be finite and have shape [7, 7], got [9, 9]. Collect it again"
    )
    assert "must be finite" in refused(model, choices, {"layer": {"hessian": np.full((7, 7), np.nan)}})


def test_weights_that_are_not_finite_are_refused() -> None:
    proto = linear("gemm").copy()
    values = np.zeros((9, 7), np.float32)
    values[2, 3] = np.nan
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "layer.w"))
    assert refused(seal(proto), {"layer": RankScheme(method="svd", ratio=0.2)}) == (
        "the weight 'layer.w' of layer 'layer' holds NaN or infinity; only finite weights can be split. "
        "Leave that layer 'whole', or repair the model"
    )


def test_a_weight_too_small_to_save_anything() -> None:
    net = Net()
    model = net.output(net.matmul(net.input(shape=("batch", 7)), 7, 1, "layer")).model()
    assert refused(model, {"layer": RankScheme(method="svd", ratio=0)}) == (
        "layer 'layer' has 7 MACs, and still 8 when svd splits it at the smallest rank; a ratio of 0 allows 7. "
        "Choose another method or 'whole'"
    )
