from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from builders import Net, run, small_cnn
from numpy.typing import NDArray

from tuner.compress.pruning.norms import Moments, recalibrate_norms
from tuner.errors import DataError, ModelError
from tuner.model.graph import Model
from tuner.model.torch_view import torch_view

STATISTICS = ("norm1.m", "norm1.v", "norm2.m", "norm2.v")


def network() -> Model:
    """norm1 on the input, then conv → Relu → norm2 → Relu → mean → fc."""
    net = Net(2)
    x = net.norm(net.input(shape=("batch", 3, 4, 4)), 3, "norm1")
    x = net.norm(net.op("Relu", net.conv(x, 3, 6, "conv")), 6, "norm2")
    return net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", x))), 6, 4, "fc")).model()


def data(count: int = 60) -> NDArray[np.float32]:
    """Channels with means and deviations of their own."""
    x = np.random.default_rng(0).normal(size=(count, 3, 4, 4)) * [[[1.0]], [[3.0]], [[0.2]]] + [[[5.0]], [[-2.0]], [[0.0]]]
    return x.astype(np.float32)


def batches(x: NDArray[np.float32], size: int) -> list[Mapping[str, NDArray[Any]]]:
    return [{"x": x[first : first + size]} for first in range(0, len(x), size)]


def moments(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wide = x.astype(np.float64)
    return wide.mean((0, 2, 3)), wide.var((0, 2, 3))


def reads(model: Model, x: NDArray[np.float32]) -> NDArray[Any]:
    """What norm2 reads, computed by the runtime."""
    proto = model.copy()
    proto.graph.output.extend([type(proto.graph.output[0])(name=model.nodes["norm2"].input[0])])
    return run(proto.SerializeToString(), {"x": x}, [model.nodes["norm2"].input[0]], optimize=False)[0]


@pytest.mark.parametrize("size", [1, 7, 60])
def test_streamed_moments_are_those_of_numpy(size: int) -> None:
    x, found = data(), Moments()
    for feed in batches(x, size):
        found.add(torch.from_numpy(feed["x"]))
    mean, variance = moments(x)
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(found.variance.numpy(), variance, rtol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_layer_that_reads_the_data_gets_the_population_statistics(size: int, exact: bool) -> None:
    x = data()
    view = torch_view(network())
    assert recalibrate_norms(view, batches(x, size), exact=exact) == ("norm1", "norm2")
    mean, variance = moments(x)
    np.testing.assert_allclose(view.value("norm1.m").numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(view.value("norm1.v").numpy(), variance, rtol=1e-5)


@pytest.mark.parametrize(("exact", "size"), [(True, 7), (True, 60), (False, 60)])
def test_a_later_layer_has_the_moments_of_what_it_reads_in_the_finished_model(exact: bool, size: int) -> None:
    """One pass does so with a single batch."""
    x = data()
    view = torch_view(network())
    recalibrate_norms(view, batches(x, size), exact=exact)
    model = view.write_back()
    mean, variance = moments(reads(model, x))
    np.testing.assert_allclose(model.array("norm2.m"), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.array("norm2.v"), variance, rtol=1e-4)


def test_one_pass_pools_what_batches_show_by_their_own_statistics() -> None:
    """Every batch of 20 normalized by itself, then all inputs of norm2 together."""
    x, model = data(), network()
    seen = []
    for feed in batches(x, 20):
        view = torch_view(model)
        for name, values in zip(("norm1.m", "norm1.v"), moments(feed["x"]), strict=True):
            view.value(name).copy_(torch.from_numpy(values))
        seen.append(reads(view.write_back(), feed["x"]))
    mean, variance = moments(np.concatenate(seen))
    view = torch_view(model)
    recalibrate_norms(view, batches(x, 20))
    np.testing.assert_allclose(view.value("norm2.m").numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(view.value("norm2.v").numpy(), variance, rtol=1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_a_network_with_wrong_statistics_comes_back_and_nothing_else_changes(exact: bool) -> None:
    x = data()
    right = torch_view(network())
    recalibrate_norms(right, batches(x, 20), exact=exact)
    expected = right.write_back()
    wrong = torch_view(expected)
    for name in STATISTICS:
        wrong.value(name).mul_(7).add_(3)
    assert np.abs(run(wrong.write_back(), {"x": x})[0] - run(expected, {"x": x})[0]).max() > 0.1
    wrong.train()
    wrong.modules_by_node["norm1"].eval()
    before = {key: values.clone() for key, values in wrong.state_dict().items()}
    recalibrate_norms(wrong, batches(x, 20), exact=exact)
    assert wrong.training and not wrong.modules_by_node["norm1"].training
    changed = [key for key, values in wrong.state_dict().items() if not torch.equal(values, before[key])]
    assert len(changed) == len(STATISTICS)
    np.testing.assert_allclose(run(wrong.write_back(), {"x": x})[0], run(expected, {"x": x})[0], rtol=1e-5, atol=1e-6)
    assert all(not module._forward_pre_hooks for module in wrong.modules())


def test_a_model_without_batch_normalization_reads_no_row() -> None:
    assert recalibrate_norms(torch_view(small_cnn()), iter([])) == ()


@pytest.mark.parametrize("exact", [False, True])
def test_rows_are_needed_and_for_the_exact_way_again_and_again(exact: bool) -> None:
    with pytest.raises(DataError, match="need rows to be computed from, got none"):
        recalibrate_norms(torch_view(network()), [], exact=exact)
    once: Iterator[Mapping[str, NDArray[Any]]] = iter(batches(data(), 20))
    if exact:
        with pytest.raises(DataError, match="the exact way reads them once for each layer"):
            recalibrate_norms(torch_view(network()), once, exact=True)
    else:
        recalibrate_norms(torch_view(network()), once)


def test_what_is_not_finite_is_named() -> None:
    x = data()
    x[3, 1] = np.inf
    with pytest.raises(ModelError, match="the BatchNormalization 'norm1' reads holds NaN or infinity"):
        recalibrate_norms(torch_view(network()), batches(x, 20))


def test_between_is_called_after_every_batch() -> None:
    calls: list[int] = []
    recalibrate_norms(torch_view(network()), batches(data(), 20), between=lambda: calls.append(1))
    assert len(calls) == 3
    recalibrate_norms(torch_view(network()), batches(data(), 20), exact=True, between=lambda: calls.append(1))
    assert len(calls) == 9
