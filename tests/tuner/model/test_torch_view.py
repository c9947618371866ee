"""The torch view: equal to onnxruntime, trained, observed and written back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch_zoo_more  # noqa: F401 - it adds its networks to the zoo
from builders import Array, Net, resnet20, run, small_cnn
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch_zoo import ZOO

from tuner.errors import DataError, ModelError
from tuner.model.graph import Model, seal
from tuner.model.torch_modules import BatchNormAnyRank
from tuner.model.torch_ops import operator
from tuner.model.torch_view import TorchView, UnsupportedOperators, missing_operators, torch_view

zoo = pytest.mark.parametrize("name", ZOO)


def fed(model: Model, count: int, seed: int = 0) -> dict[str, Array]:
    """A batch; dimensions other than the batch that are open are 6, masks leave at least the first step."""
    random = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for value in model.inputs:
        shape = tuple(6 if size is None else size for size in value.shape)
        shape = (count, *shape[1:])
        if value.name == "mask":
            feed[value.name] = np.maximum(random.integers(0, 2, shape), np.arange(shape[1]) == 0)
        elif value.dtype == "int64":
            feed[value.name] = random.integers(0, 9, shape)
        else:
            feed[value.name] = random.normal(size=shape).astype(value.dtype)
    return feed


def tensors(feed: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def assert_equal(view: TorchView, model: Model, feed: dict[str, Array], tolerance: float = 1e-4) -> None:
    with torch.no_grad():
        found = view(tensors(feed))
    for value, expected in zip(model.outputs, run(model, feed, optimize=False), strict=True):
        result = found[value.name].numpy()
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def loss_of(view: TorchView, feed: dict[str, Array]) -> Tensor:
    """How far from 0.5 the view's outputs of real numbers are, in the mean square."""
    found = view(tensors(feed)).values()
    return torch.stack([(tensor - 0.5).square().mean() for tensor in found if tensor.is_floating_point()]).sum()


def train(view: TorchView, feed: dict[str, Array], steps: int = 2) -> None:
    view.train()
    for _ in range(steps):
        view.zero_grad()
        loss_of(view, feed).backward()  # type: ignore[no-untyped-call]
        for name in view.trainable:
            gradient = view.grad(name)
            assert gradient is not None, name
            view.value(name).sub_(0.01 * gradient)
    view.eval()


@zoo
def test_a_view_equals_onnxruntime_for_two_sizes_of_batch(name: str) -> None:
    model = ZOO[name]()
    view = torch_view(model)
    for count in (2, 5):
        assert_equal(view, model, fed(model, count))


@zoo
def test_an_untouched_view_writes_back_the_same_bytes(name: str) -> None:
    model = ZOO[name]()
    view = torch_view(model)
    view(tensors(fed(model, 2)))
    assert view.write_back().data == model.data


@zoo
def test_a_trained_view_is_written_back_and_equals_onnxruntime(name: str) -> None:
    model = ZOO[name]()
    view = torch_view(model)
    feed = fed(model, 4)
    train(view, feed)
    written = view.write_back()
    assert [node.SerializeToString() for node in written.proto.graph.node] == [node.SerializeToString() for node in model.proto.graph.node]
    assert {n: (t.dims, t.data_type) for n, t in written.initializers.items()} == {
        n: (t.dims, t.data_type) for n, t in model.initializers.items()
    }
    assert written.data == view.write_back().data
    if view.trainable:
        assert written.data != model.data
    assert_equal(view, written, fed(model, 3, seed=1))


@zoo
def test_every_tensor_can_be_observed(name: str) -> None:
    model = ZOO[name]()
    feed = fed(model, 2)
    names = [output for node in model.nodes.values() if node.op_type != "Constant" for output in node.output if output]
    proto = model.copy()
    given = {value.name for value in proto.graph.output}
    proto.graph.output.extend(helper.make_empty_tensor_value_info(tensor) for tensor in names if tensor not in given)
    expected = dict(zip([value.name for value in proto.graph.output], run(seal(proto), feed, optimize=False), strict=True))
    found = torch_view(model)(tensors(feed), observe=names)
    assert set(found) == set(names) | given
    for tensor, array in expected.items():
        np.testing.assert_allclose(
            found[tensor].detach().numpy(),
            array,
            rtol=1e-4,
            atol=1e-5 * max(10, np.abs(array[np.isfinite(array)]).max(initial=0)),
            err_msg=tensor,
        )


@zoo
def test_a_view_on_another_device_keeps_only_shapes_on_the_cpu(name: str) -> None:
    """On the device without numbers any tensor that is left behind on the CPU is an error, as on an accelerator."""
    model = ZOO[name]()
    feed = fed(model, 3)
    with torch.no_grad():
        found = torch_view(model).to("meta")({name: torch.from_numpy(array).to("meta") for name, array in feed.items()})
    for value, expected in zip(model.outputs, run(model, feed), strict=True):
        assert found[value.name].device.type == "meta"
        assert tuple(found[value.name].shape) == expected.shape


def test_modules_are_named_after_nodes() -> None:
    modules = torch_view(ZOO["squeeze_excite"]()).modules_by_node
    assert {name: type(module) for name, module in modules.items()} == {
        "expand": nn.Conv2d,
        "bn": nn.BatchNorm2d,
        "depthwise": nn.Conv2d,
        "down": nn.Conv2d,
        "up": nn.Conv2d,
    }
    assert modules["depthwise"].groups == 6
    kinds = {
        type(module)
        for name in ("norms", "volume", "sound", "decoder_of_images", "encoder", "dropped", "perceptron")
        for module in torch_view(ZOO[name]()).modules_by_node.values()
    }
    assert kinds >= {
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose2d,
        nn.BatchNorm1d,
        nn.BatchNorm3d,
        nn.Linear,
        nn.Embedding,
        nn.Dropout,
    }
    assert kinds >= {BatchNormAnyRank, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm, nn.RMSNorm}


def test_a_node_may_be_called_anything() -> None:
    net = Net()
    x = net.op("Flatten", net.conv(net.input(), 3, 2, "train"))
    names = ("forward", "class", "/layer1/conv.1", "layer1_conv_1", "0", "values", "held")
    for name in names:
        x = net.gemm(x, 128, 128, name)
    model = net.output(x).model()
    view = torch_view(model)
    assert set(view.modules_by_node) == {"train", *names}
    assert_equal(view, model, fed(model, 3))


def test_an_initializer_is_shown_in_its_own_layout_and_shares_its_storage() -> None:
    model = ZOO["perceptron"]()
    view = torch_view(model)
    assert view.transposed("fc3.w") and not view.transposed("fc1.w")
    assert view.parameter("fc3.w").shape == (4, 6)
    assert view.parameter("fc3.w") is view.modules_by_node["fc3"].weight
    for name in view.trainable:
        np.testing.assert_array_equal(view.value(name).numpy(), model.array(name), err_msg=name)
        view.value(name).mul_(0.5)
    written = view.write_back()
    for name in view.trainable:
        np.testing.assert_array_equal(written.array(name), model.array(name) * np.float32(0.5), err_msg=name)
    assert_equal(view, written, fed(model, 2))
    loss_of(view, fed(model, 2)).backward()  # type: ignore[no-untyped-call]
    for name in view.trainable:
        gradient = view.grad(name)
        assert gradient is not None and gradient.shape == model.array(name).shape


def test_what_is_trained() -> None:
    assert set(torch_view(ZOO["encoder"]()).trainable) == {
        *("words", "places", "head.w", "head.b", "up.w", "up.b", "down.w"),
        *(f"att.{part}" for part in ("q.w", "q.b", "k.w", "k.b", "v.w", "v.b", "o.w")),
        *(f"ln{index}.{part}" for index in range(3) for part in "gb"),
    }
    assert set(torch_view(ZOO["decoder"]()).trainable).isdisjoint({"low", "nothing", "self.root"})
    assert {"cos", "sin"}.isdisjoint(torch_view(ZOO["modern_decoder"]()).trainable)
    assert "places" in torch_view(ZOO["vision_transformer"]()).trainable
    assert set(torch_view(ZOO["scaled_sizes"]()).trainable) == {"c.w", "c.b"}


def test_shared_initializers_are_one_parameter() -> None:
    view = torch_view(ZOO["twins"]())
    modules = view.modules_by_node
    assert modules["first"].weight is modules["second"].weight
    assert modules["first"].bias is modules["second"].bias
    assert sum(1 for _ in view.parameters()) == len(view.trainable) == 3
    tied = torch_view(ZOO["tied_embedding"]())
    assert sum(1 for _ in tied.parameters()) == len(tied.trainable) == 2


def test_statistics_that_two_normalizations_share_stay_one_when_the_view_is_converted() -> None:
    net = Net()
    first = net.norm(net.input(), 3, "bn")
    both = net.op("BatchNormalization", first, "bn.g", "bn.b", "bn.m", "bn.v", name="again")
    model = net.output(both).model()
    view = torch_view(model).double()
    one, other = view.modules_by_node.values()
    assert one.running_mean is other.running_mean and one.running_mean.dtype == torch.float64
    view.float()
    train(view, fed(model, 4))
    assert_equal(view, view.write_back(), fed(model, 3))


def test_training_moves_the_statistics_of_normalizations() -> None:
    model = resnet20()
    view = torch_view(model)
    train(view, fed(model, 4), steps=1)
    written = view.write_back()
    assert not np.array_equal(written.array("stem_bn.m"), model.array("stem_bn.m"))
    x = fed(model, 4)
    with torch.no_grad():
        found = torch_view(model)(tensors(x), observe=["stem_out"])["stem_out"].numpy()
    np.testing.assert_allclose(
        written.array("stem_bn.m"), 0.9 * model.array("stem_bn.m") + 0.1 * found.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_dropout_drops_in_training_alone() -> None:
    model = ZOO["dropped"]()
    view, feed = torch_view(model).train(), tensors(fed(model, 64))
    share = (view(feed, observe=["drop_out"])["drop_out"] == 0).float().mean().item()
    assert 0.3 < share < 0.7
    view.eval()
    assert_equal(view, model, fed(model, 3))


@pytest.mark.parametrize("name", ["small_cnn_11", "encoder", "lstm_tagger", "gru_classifier", "modern_decoder", "unet", "twins", "norms"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model = ZOO[name]()
    view, feed = torch_view(model).double(), fed(model, 2)
    feed = {key: array.astype(np.float64) if array.dtype == np.float32 else array for key, array in feed.items()}
    loss_of(view, feed).backward()  # type: ignore[no-untyped-call]
    random = np.random.default_rng(0)
    step = 1e-6
    for initializer in view.trainable:
        values, gradient = view.value(initializer), view.grad(initializer)
        assert gradient is not None
        place = tuple(int(random.integers(size)) for size in values.shape)
        before = values[place].item()
        losses = []
        for sign in (1, -1):
            values[place] = before + sign * step
            with torch.no_grad():
                losses.append(loss_of(view, feed).item())
        values[place] = before
        difference = (losses[0] - losses[1]) / (2 * step)
        assert gradient[place].item() == pytest.approx(difference, rel=1e-4, abs=1e-7), initializer


def test_a_copy_of_a_view_is_on_its_own() -> None:
    model = small_cnn()
    view = torch_view(model)
    other = copy.deepcopy(view)
    other.value("conv1.w").zero_()
    assert other.model is model
    assert view.write_back().data == model.data
    assert not other.write_back().array("conv1.w").any()
    feed = fed(model, 2)
    seen = other(tensors(feed), observe=["conv1_out"])["conv1_out"]
    np.testing.assert_allclose(seen.detach().numpy()[0, :, 0, 0], model.array("conv1.b"), rtol=1e-6)


def test_building_a_view_leaves_the_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    torch_view(ZOO["encoder"]())
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_of_half_precision() -> None:
    net = Net()
    x = net.op("Cast", net.input(shape=("batch", 4)), to=TensorProto.FLOAT16)
    y = net.op("Cast", net.op("MatMul", x, net.constant("w", net.random.normal(size=(4, 3)), np.float16)), to=TensorProto.FLOAT)
    model = net.output(y).model()
    view = torch_view(model)
    assert view.write_back().data == model.data
    assert_equal(view, model, fed(model, 3), tolerance=1e-2)
    view.value("w").add_(0.25)
    np.testing.assert_array_equal(view.float().write_back().array("w"), model.array("w") + np.float16(0.25))


def test_weights_in_bfloat16_are_kept_bit_for_bit() -> None:
    net = Net(opset=18)
    w = helper.make_tensor("w", TensorProto.BFLOAT16, [2, 2], [1.0, -0.5, 3.0, 0.25])
    net.initializers.append(w)
    x = net.op("Cast", net.input(shape=("batch", 2)), to=TensorProto.BFLOAT16)
    model = net.output(net.op("Cast", net.op("MatMul", x, "w"), to=TensorProto.FLOAT)).model()
    view = torch_view(model)
    np.testing.assert_array_equal(view.value("w").float().numpy(), [[1.0, -0.5], [3.0, 0.25]])
    assert view.write_back().data == model.data
    view.value("w")[0, 0] = 2.0
    assert numpy_helper.to_array(view.write_back().initializers["w"]).astype(np.float32)[0, 0] == 2


def unsupported() -> Model:
    net = Net(opset=18)
    x = net.input(shape=("batch", 4))
    x = net.op("Relu", net.op("Bernoulli", x, name="dice"))
    x = net.op("FusedMatMul", x, net.weight("w", (4, 4), 4), name="fused", domain="com.microsoft")
    branch = helper.make_graph(
        [helper.make_node("Identity", [x], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    )
    condition = net.constant("yes", True, np.bool_)
    x = net.op("If", condition, name="choice", then_branch=branch, else_branch=branch)
    return net.output(net.op("Bernoulli", x, name="dice2"), shape=("batch", 4)).model()


def test_all_missing_operators_are_listed_at_once() -> None:
    model = unsupported()
    listed = ["Bernoulli (node 'dice')", "com.microsoft.FusedMatMul (node 'fused')", "If (node 'choice')"]
    assert missing_operators(model) == listed
    with pytest.raises(UnsupportedOperators) as caught:
        torch_view(model)
    assert str(caught.value) == (
        f"the model has operators that training cannot follow: {', '.join(listed)}. Leave out the steps that train, "
        "export the model without these operators, or add them in a plug-in with @operator of tuner.model.torch_ops"
    )
    assert caught.value.operators == tuple(listed)
    assert isinstance(caught.value, ModelError)
    assert missing_operators(small_cnn()) == []


def test_an_attribute_that_a_function_does_not_know_counts_as_missing() -> None:
    net = Net()
    x = net.op(
        "LSTM",
        net.input(shape=(5, "batch", 4)),
        net.weight("w", (1, 12, 4), 4),
        net.weight("r", (1, 12, 3), 3),
        name="l",
        hidden_size=3,
        clip=1.0,
    )
    assert missing_operators(net.output(x, shape=(5, 1, "batch", 3)).model()) == ["LSTM with the attribute 'clip' (node 'l')"]


def test_an_operator_is_added_by_one_decorator() -> None:
    net = Net(opset=18)
    model = net.output(net.op("Det", net.input(shape=("batch", 3, 3)), name="det")).model()
    assert missing_operators(model) == ["Det (node 'det')"]
    operator("Det")(determinant)
    assert_equal(torch_view(model), model, fed(model, 3))
    with pytest.raises(ValueError, match="operator 'Det' from opset 1 is registered twice; give one of them another opset"):
        operator("Det")(lambda x: x)


def determinant(x: Tensor) -> Tensor:
    return torch.linalg.det(x)


def test_errors_name_what_is_wrong() -> None:
    view = torch_view(small_cnn())
    with pytest.raises(DataError, match="the model's inputs x are not fed; give an array for each of x"):
        view({})
    with pytest.raises(ModelError, match=r"unknown tensor 'conv1_ou'\. Did you mean 'conv1_out'\?"):
        view(tensors(fed(view.model, 1)), observe=["conv1_ou"])
    with pytest.raises(ModelError, match=r"unknown initializer of the torch view 'conv1\.ww'\. Did you mean 'conv1\.w'\?"):
        view.value("conv1.ww")
    with pytest.raises(ModelError, match=r"initializer 'stem_bn\.m' is not trained; trained are stem\.w, "):
        torch_view(resnet20()).parameter("stem_bn.m")
