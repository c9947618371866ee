"""Evidence against plain torch and numpy over all rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from builders import Net
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tuner.compress.pruning.criteria import CRITERIA
from tuner.compress.pruning.evidence import COLLECTORS, Batch, collect, parts_within
from tuner.compress.pruning.layout import canonical, restore, site_of
from tuner.errors import DataError, PlanError
from tuner.model.graph import Model
from tuner.model.torch_view import TorchView, torch_view

ROWS = 12
LAYERS = ["stem", "grouped", "hidden", "left", "out"]


def network(seed: int = 0) -> Model:
    """stem (3×3, stride 2) → BatchNormalization → Relu → grouped (3×3) → Relu → Flatten → hidden → Relu → left → out."""
    net = Net(seed)
    x = net.op("Relu", net.norm(net.conv(net.input(shape=("batch", 3, 6, 6)), 3, 8, "stem", stride=2), 8, "norm"), name="relu")
    x = net.op("Relu", net.conv(x, 8, 6, "grouped", group=2), name="relu2")
    x = net.op("Relu", net.gemm(net.op("Flatten", x, name="flatten"), 54, 7, "hidden"), name="relu3")
    x = net.gemm(x, 7, 6, "left", transposed=False, alpha=0.5)
    return net.output(net.matmul(x, 6, 4, "out")).model()


def tokens(seed: int = 0) -> Model:
    """Positions in a row: first → bias → Relu → second, mean over positions."""
    net = Net(seed)
    net.constant("b", np.linspace(-1, 1, 6))
    x = net.op("Relu", net.op("Add", net.matmul(net.input(shape=("batch", 5, 4)), 4, 6, "first"), "b", name="bias"), name="relu")
    x = net.matmul(x, 6, 3, "second")
    return net.output(net.op("ReduceMean", x, name="mean", axes=[1], keepdims=0)).model()


def loss(outputs: dict[str, Tensor], labels: Tensor | None) -> Tensor:
    assert labels is not None
    (logits,) = outputs.values()
    return functional.cross_entropy(logits, labels)


def data(model: Model, rows: int = ROWS, classes: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(3)
    shape = tuple(size or rows for size in model.inputs[0].shape)
    return random.normal(size=shape).astype(np.float32), random.integers(0, classes, rows)


def batches(model: Model, sizes: Sequence[int] = (ROWS,)) -> list[Batch]:
    x, labels = data(model)
    ends = np.cumsum(sizes)
    return [({"x": x[end - size : end]}, labels[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def view_of(model: Model) -> TorchView:
    return torch_view(model).eval()


def everything(model: Model, nodes: Sequence[str], sizes: Sequence[int] = (ROWS,)) -> dict[str, dict[str, Tensor]]:
    return collect(view_of(model), model, nodes, COLLECTORS, batches(model, sizes), loss)


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, dict[str, Tensor]]]:
    yield everything(network(), LAYERS)


def array(model: Model, name: str) -> Tensor:
    return torch.tensor(model.array(name))


def test_streaming_equals_one_batch(found: dict[str, dict[str, Tensor]]) -> None:
    streamed = everything(network(), LAYERS, (5, 1, 4, 2))
    for layer, kinds in found.items():
        assert set(streamed[layer]) == set(kinds)
        for kind, whole in kinds.items():
            assert torch.allclose(streamed[layer][kind], whole, rtol=1e-4, atol=1e-5), (layer, kind)


def test_every_layer_has_the_evidence_that_it_can_have(found: dict[str, dict[str, Tensor]]) -> None:
    every = set(COLLECTORS) | {"weight"}
    of_norm = {"gamma", "beta", "gamma_grad", "beta_grad"}
    assert set(found["stem"]) == every | of_norm
    assert set(found["grouped"]) == every - of_norm - {"input_taylor"}
    assert set(found["out"]) == every - of_norm
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for kinds in found.values() for tensor in kinds.values())


def plain(model: Model) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network in plain torch: (parameters in canonical layout, intermediate tensors and the rows' losses), differentiable."""
    p = {name: canonical(array(model, f"{name}.w"), model.nodes[name]).clone().requires_grad_() for name in LAYERS}
    p |= {f"norm.{part}": array(model, f"norm.{part}").requires_grad_(part in "gb") for part in "gbmv"}
    bias = {name: array(model, f"{name}.b") for name in LAYERS[:4]}
    x, labels = (torch.tensor(part) for part in data(model))
    t = {"x": x, "stem": functional.conv2d(x, p["stem"], bias["stem"], stride=2, padding=1)}
    normed = functional.batch_norm(t["stem"], p["norm.m"], p["norm.v"], p["norm.g"], p["norm.b"])
    t["relu"] = normed.relu()
    t["grouped"] = functional.conv2d(t["relu"], p["grouped"], bias["grouped"], padding=1, groups=2)
    t["relu2"] = t["grouped"].relu()
    t["flat"] = t["relu2"].flatten(1)
    t["relu3"] = functional.linear(t["flat"], p["hidden"], bias["hidden"]).relu()
    t["left"] = 0.5 * t["relu3"] @ p["left"].T + bias["left"]
    t["logits"] = t["left"] @ p["out"].T
    t["losses"] = functional.cross_entropy(t["logits"], labels, reduction="none")
    return p, t


def test_gradients_equal_autograd_over_all_rows(found: dict[str, dict[str, Tensor]]) -> None:
    p, t = plain(network())
    t["losses"].mean().backward()
    for name in LAYERS:
        assert torch.allclose(found[name]["grad"], p[name].grad, rtol=1e-4, atol=1e-6), name
        assert torch.allclose(found[name]["movement"], -p[name].detach() * p[name].grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found["stem"]["gamma_grad"], p["norm.g"].grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found["stem"]["beta_grad"], p["norm.b"].grad, rtol=1e-4, atol=1e-6)


def test_squared_gradients_are_those_of_single_rows(found: dict[str, dict[str, Tensor]]) -> None:
    p, t = plain(network())
    weights = [p[name] for name in LAYERS]
    by_row = [torch.autograd.grad(one, weights, retain_graph=True) for one in t["losses"]]
    for name, *gradients in zip(LAYERS, *by_row, strict=True):
        expected = torch.stack(gradients).square().mean(dim=0)
        assert torch.allclose(found[name]["grad_squared"], expected, rtol=1e-3, atol=1e-7), name


def test_activations_are_seen_after_what_follows_a_layer(found: dict[str, dict[str, Tensor]]) -> None:
    _, t = plain(network())
    for name, tensor in [("stem", t["relu"]), ("grouped", t["relu2"]), ("hidden", t["relu3"]), ("left", t["left"]), ("out", t["logits"])]:
        across = [0, *range(2, tensor.ndim)]
        assert torch.allclose(found[name]["activation_mean"], tensor.abs().mean(dim=across), atol=1e-6), name
        assert torch.allclose(found[name]["activation_zeros"], (tensor == 0).float().mean(dim=across), atol=1e-6), name


def test_activation_times_gradient_is_taken_by_row(found: dict[str, dict[str, Tensor]]) -> None:
    _, t = plain(network())
    names = ["relu", "relu2", "relu3", "left"]
    slopes = torch.autograd.grad(t["losses"].sum(), [t[name] for name in names])
    by_row = {
        name: (t[name] * slope).flatten(2).sum(2) if slope.ndim > 2 else t[name] * slope for name, slope in zip(names, slopes, strict=True)
    }
    expected = {name: value.abs().mean(dim=0) for name, value in by_row.items()}
    for layer, name in [("stem", "relu"), ("grouped", "relu2"), ("hidden", "relu3")]:
        assert torch.allclose(found[layer]["output_taylor"], expected[name], rtol=1e-4, atol=1e-6), layer
    assert torch.allclose(found["left"]["input_taylor"], expected["relu3"], rtol=1e-4, atol=1e-6)
    assert torch.allclose(found["out"]["input_taylor"], expected["left"], rtol=1e-4, atol=1e-6)


def im2col(x: NDArray[Any], kernel: int, stride: int, groups: int) -> list[NDArray[Any]]:
    """[rows·positions, in·kernel²] for each group, with padding kernel // 2, by loops."""
    pad = kernel // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    steps = range(0, padded.shape[2] - kernel + 1, stride)
    width = x.shape[1] // groups
    return [
        np.concatenate(
            [padded[:, g * width : (g + 1) * width, i : i + kernel, j : j + kernel].reshape(len(x), -1) for i, j in product(steps, steps)]
        )
        for g in range(groups)
    ]


def test_hessians_and_norms_equal_those_of_numpy(found: dict[str, dict[str, Tensor]]) -> None:
    _, t = plain(network())
    values = {name: tensor.detach().numpy() for name, tensor in t.items()}
    columns = {"stem": im2col(values["x"], 3, 2, 1), "grouped": im2col(values["relu"], 3, 1, 2)}
    columns |= {"hidden": [values["flat"]], "left": [0.5 * values["relu3"]], "out": [values["left"]]}
    for name, parts in columns.items():
        hessian = np.stack([part.T @ part for part in parts]).squeeze()
        assert np.allclose(found[name]["hessian"].numpy(), hessian, rtol=1e-4, atol=1e-4), name
        assert np.allclose(
            found[name]["input_norm"].numpy(), np.stack([np.linalg.norm(part, axis=0) for part in parts]).squeeze(), rtol=1e-5
        )


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 1], "pads": [1, 0, 2, 3], "dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
        {"auto_pad": "VALID"},
        {"group": 3, "pads": [1, 1, 1, 1]},
    ],
    ids=str,
)
def test_a_hessian_predicts_the_error_of_any_convolution(attributes: dict[str, Any]) -> None:
    """Σ‖(w − 0)·X‖² is the sum of the squared outputs of a layer without a bias."""
    net = Net()
    shape = (6, 3 // attributes.get("group", 1), 3, 2)
    model = net.output(net.op("Conv", net.input(shape=("batch", 3, 7, 6)), net.weight("w", shape, 18), name="c", **attributes)).model()
    x = data(model)[0]
    (found,) = collect(view_of(model), model, ["c"], ["hessian"], [({"x": x}, None)]).values()
    weight = found["weight"].flatten(1)
    hessian = found["hessian"] if found["hessian"].ndim == 3 else found["hessian"][None]
    rows = weight.reshape(len(hessian), -1, weight.shape[1])
    predicted = sum(float(torch.einsum("od,de,oe->", part, h, part)) for part, h in zip(rows, hessian, strict=True))
    with torch.no_grad():
        (out,) = view_of(model)({"x": torch.tensor(x)}).values()
    assert predicted == pytest.approx(float(out.square().sum()), rel=1e-4)


@pytest.mark.parametrize("space", [(9,), (4, 5, 3)])
def test_one_and_three_dimensional_convolutions(space: tuple[int, ...]) -> None:
    net = Net()
    weight = net.weight("w", (4, 2, *[2] * len(space)), 8)
    model = net.output(net.op("Conv", net.input(shape=("batch", 2, *space)), weight, name="c")).model()
    x = torch.tensor(data(model)[0])
    (found,) = collect(
        view_of(model),
        model,
        ["c"],
        ["hessian", "grad_squared"],
        [({"x": x.numpy()}, None)],
        lambda o, _: o[model.outputs[0].name].square().sum() / ROWS,
    ).values()
    convolve = functional.conv1d if len(space) == 1 else functional.conv3d
    flat = found["weight"].flatten(1)
    assert float((flat @ found["hessian"] * flat).sum()) == pytest.approx(float(convolve(x, found["weight"]).square().sum()), rel=1e-4)
    w = found["weight"].clone().requires_grad_()
    by_row = torch.stack([torch.autograd.grad(convolve(row[None], w).square().sum(), w)[0] for row in x])
    assert torch.allclose(found["grad_squared"], by_row.square().mean(dim=0), rtol=1e-3)


def test_positions_of_a_row_belong_together() -> None:
    model = tokens()
    found = everything(model, ["first", "second"])
    x, labels = (torch.tensor(part) for part in data(model))
    first, second = (array(model, f"{name}.w").requires_grad_() for name in ("first", "second"))
    hidden = (x @ first + array(model, "b")).relu()
    losses = functional.cross_entropy((hidden @ second).mean(dim=1), labels, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), hidden, retain_graph=True)
    by_row = (hidden * slope).sum(dim=1)
    assert torch.allclose(found["second"]["input_taylor"], by_row.abs().mean(dim=0), rtol=1e-4, atol=1e-7)
    assert torch.allclose(found["first"]["output_taylor"], by_row.abs().mean(dim=0), rtol=1e-4, atol=1e-7)
    squared = torch.stack([torch.autograd.grad(one, first, retain_graph=True)[0].T for one in losses]).square().mean(dim=0)
    assert torch.allclose(found["first"]["grad_squared"], squared, rtol=1e-3, atol=1e-8)
    flat = x.reshape(-1, 4)
    assert torch.allclose(found["first"]["hessian"], flat.T @ flat, rtol=1e-4)


def test_a_head_is_masked_as_a_whole() -> None:
    """Michel et al.: the derivative of the loss by a mask on a unit, against autograd on the mask itself."""
    model = tokens()
    units = {"second": [(0, 3), (1, 2)]}
    (found,) = collect(view_of(model), model, ["second"], ["input_taylor"], batches(model, (7, 5)), loss, units=units).values()
    x, labels = (torch.tensor(part) for part in data(model))
    mask = torch.ones(ROWS, 2, requires_grad=True)
    hidden = (x @ array(model, "first.w") + array(model, "b")).relu()
    spread = torch.stack([mask[:, 0], mask[:, 1], mask[:, 1], mask[:, 0], torch.ones(ROWS), torch.ones(ROWS)], dim=1)
    losses = functional.cross_entropy(((hidden * spread[:, None]) @ array(model, "second.w")).mean(dim=1), labels, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), mask)
    scores = CRITERIA["mask-gradient"].score("second", found)
    assert [float(scores[[0, 3]].sum()), float(scores[[1, 2]].sum())] == pytest.approx(slope.abs().mean(dim=0).tolist(), rel=1e-4)


def test_apoz_on_known_zeros() -> None:
    """Biases that open a channel for all inputs, for none, and for those above 0.5."""
    net = Net()
    net.constant("w", np.ones((3, 1, 1)))
    net.constant("b", [10.0, -10.0, -0.5])
    made = net.op("Conv", net.input(shape=("batch", 1, 4)), "w", "b", name="c")
    model = net.output(net.op("Relu", made, name="relu")).model()
    feed = {"x": np.array([[[0.0, 0.1, 0.6, 0.7]], [[0.9, 0.2, 0.3, 0.4]]], np.float32)}
    (found,) = collect(view_of(model), model, ["c"], CRITERIA["apoz"].needs, [(feed, None)]).values()
    assert CRITERIA["apoz"].score("c", found).tolist() == pytest.approx([1, 0, 3 / 8])


def test_taylor_predicts_the_loss_without_a_filter() -> None:
    """For filters that were scaled down, the score is the squared change of the loss when one is left out."""
    model = network()
    view = view_of(model)
    view.value("stem.w").mul_(1e-3)
    view.value("stem.b").zero_()
    view.value("norm.m").zero_()
    (found,) = collect(view, model, ["stem"], CRITERIA["taylor"].needs, batches(model), loss).values()
    scores = CRITERIA["taylor"].score("stem", found)

    def loss_now() -> float:
        ((feed, labels),) = batches(model)
        with torch.no_grad():
            outputs = view({name: torch.tensor(values).double() for name, values in feed.items()})
        return float(loss(outputs, torch.tensor(labels)))

    view.double()
    before, changes = loss_now(), []
    for channel in range(8):
        kept = view.value("stem.w")[channel].clone()
        view.value("stem.w")[channel] = 0
        changes.append((loss_now() - before) ** 2)
        view.value("stem.w")[channel] = kept
    assert scores.tolist() == pytest.approx(changes, rel=0.05, abs=1e-13)


def test_the_view_is_left_as_it_was() -> None:
    model = network()
    view = torch_view(model).train()
    before = {name: tensor.clone() for name, tensor in view.state_dict().items()}
    collect(view, model, LAYERS, COLLECTORS, batches(model), loss)
    assert view.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in view.state_dict().items())
    assert all(parameter.grad is None for parameter in view.parameters())


def test_frozen_parameters_do_not_hinder_activations() -> None:
    model = network()
    view = view_of(model).requires_grad_(False)
    frozen = collect(view, model, ["stem"], ["output_taylor", "grad_squared"], batches(model), loss)["stem"]
    for kind in ("output_taylor", "grad_squared"):
        assert torch.allclose(frozen[kind], everything(model, ["stem"])["stem"][kind], rtol=1e-4)


def test_nothing_is_run_for_weights_alone() -> None:
    model = network()
    found = collect(view_of(model), model, ["left"], CRITERIA["l1"].needs, [])
    assert torch.equal(found["left"]["weight"], array(model, "left.w").T)


@pytest.mark.parametrize("name", LAYERS)
def test_the_canonical_layout_and_back(name: str) -> None:
    model = network()
    node, weight = model.nodes[name], array(model, f"{name}.w")
    rows = {"stem": 8, "grouped": 6, "hidden": 7, "left": 6, "out": 4}
    assert canonical(weight, node).shape[0] == rows[name]
    assert torch.equal(restore(canonical(weight, node), node), weight)


def test_the_canonical_layout_of_a_grouped_transposed_convolution() -> None:
    net = Net()
    made = net.op("ConvTranspose", net.input(shape=("batch", 4, 5)), net.weight("w", (4, 3, 2), 8), name="up", group=2)
    model = net.output(made).model()
    weight = array(model, "w")
    rows = canonical(weight, model.nodes["up"])
    assert rows.shape == (6, 2, 2)
    # Output 4 is the second of the second group, which reads the inputs 2 and 3.
    assert torch.equal(rows[4], weight[2:, 1])
    assert torch.equal(restore(rows, model.nodes["up"]), weight)
    with pytest.raises(PlanError, match=r"not for the ConvTranspose 'up'"):
        collect(view_of(model), model, ["up"], ["hessian"], [({"x": data(model)[0]}, None)])


def test_where_a_layer_is_activated() -> None:
    net = Net()
    x = net.conv(net.input(), 3, 4, "a")
    gate = net.op("Sigmoid", x, name="sigmoid")
    silu = net.op("Mul", x, gate, name="silu")
    b = net.norm(net.conv(silu, 4, 4, "b"), 4, "bn")
    total = net.op("Relu", net.op("Add", b, silu, name="add"), name="relu")
    c = net.conv(total, 4, 4, "c")
    model = net.output(net.op("Add", c, total, name="end")).model()
    sites = {name: site_of(model, name) for name in "abc"}
    assert (sites["a"].activated, sites["a"].gamma) == ("silu_out", None)
    assert (sites["b"].activated, sites["b"].gamma) == ("relu_out", "bn.g")
    # A sum without an activation after it is not the layer's own.
    assert sites["c"].activated == sites["c"].writes


def test_hessians_are_asked_for_in_parts_that_fit() -> None:
    sizes = {"stem": 4 * 27**2, "grouped": 4 * 2 * 36**2, "hidden": 4 * 54**2, "left": 4 * 7**2, "out": 4 * 6**2}
    model = network()
    assert parts_within(model, LAYERS, 10**9) == [LAYERS]
    assert parts_within(model, LAYERS, sizes["stem"] + sizes["grouped"]) == [["stem", "grouped"], ["hidden", "left", "out"]]
    assert parts_within(model, LAYERS, 1) == [[name] for name in LAYERS]


def test_what_cannot_be_collected_is_refused() -> None:
    model = network()
    view = view_of(model)
    with pytest.raises(PlanError, match=r"evidence 'colour' cannot be collected. Known: activation_mean"):
        collect(view, model, ["stem"], ["colour"], batches(model))
    with pytest.raises(PlanError, match=r"evidence 'grad' is made of gradients and needs a loss, got none"):
        collect(view, model, ["stem"], ["grad"], batches(model))
    with pytest.raises(DataError, match=r"needs rows to look at, got none"):
        collect(view, model, ["stem"], ["hessian"], [])
    with pytest.raises(PlanError, match=r"'relu' is no Conv, ConvTranspose, Gemm or MatMul"):
        collect(view, model, ["relu"], [], [])
