"""Small networks with more than they need, and jobs that take it away: half of the channels hardly matter, layers are nearly of low rank.

Nothing is trained: what can go without harm is built in, so that a cut of half of a layer keeps nearly every answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from builders import Net, run
from numpy.typing import NDArray
from tiny_jobs import CLASSES, FEATURES, reference, tiny_job

from search_spaces.space import SpaceSpec
from tuner.compress.fusion import unfold
from tuner.compress.restructure import Material, Restructurer
from tuner.data.dataset import Dataset, InputInfo, open_dataset
from tuner.job import Budget, Constraint, DataRef, JobSpec
from tuner.measure.runtime import Session
from tuner.model.graph import Model

FAINT = 0.02
"""What a channel that hardly matters is multiplied by on its way out."""
RANK = 4


def spare_dense(seed: int = 0, hidden: int = 16, batch: int | str = "batch") -> Model:
    """fc1 → Relu → fc2 → Relu → fc3: [batch, 16] to [batch, 5]. The second half of each hidden layer is faint; fc2 is nearly of rank 4."""
    net = Net(seed)
    x = net.input(shape=(batch, FEATURES))
    x = net.op("Relu", _gemm(net, x, FEATURES, hidden, "fc1"), name="relu1")
    x = net.op("Relu", _gemm(net, x, hidden, hidden, "fc2", rank=RANK, faint=True), name="relu2")
    return net.output(_gemm(net, x, hidden, CLASSES, "fc3", faint=True)).model()


def spare_cnn(seed: int = 0, channels: int = 8, norm: bool = True) -> Model:
    """conv1 → norm1 → Relu → conv2 → norm2 → Relu → mean → fc: [batch, 16] as images of 4 × 4, to [batch, 5]. conv2 and fc hardly read the
    second half of what they are given. The statistics of the norms are those of normally distributed rows."""
    net = Net(seed)
    image = net.op("Reshape", net.input(shape=("batch", FEATURES)), net.constant("shape", [-1, 1, 4, 4], np.int64), name="reshape")
    rows = {"x": np.random.default_rng(9).standard_normal((256, FEATURES)).astype(np.float32)}
    x = image
    for index, width in enumerate((1, channels), start=1):
        x = _conv(net, x, width, channels, f"conv{index}")
        if norm:
            x = _norm(net, x, channels, f"norm{index}", rows)
        x = net.op("Relu", x, name=f"relu{index}")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x, name="pool"), name="flatten")
    return net.output(_gemm(net, pooled, channels, CLASSES, "fc", faint=True)).model()


def _gemm(net: Net, x: str, i: int, o: int, name: str, *, rank: int | None = None, faint: bool = False) -> str:
    weight = net.random.standard_normal((o, i)) * np.sqrt(2 / i)
    if rank is not None:
        u, s, v = np.linalg.svd(weight)
        weight = (u * np.where(np.arange(len(s)) < rank, s, FAINT * s)) @ v[: len(s)]
    parameters = [net.constant(f"{name}.w", _fading(weight, faint)), net.constant(f"{name}.b", net.random.standard_normal(o) * 0.1)]
    return net.op("Gemm", x, *parameters, name=name, transB=1)


def _conv(net: Net, x: str, i: int, o: int, name: str) -> str:
    weight = _fading(net.random.standard_normal((o, i, 3, 3)) * np.sqrt(2 / (9 * i)), i > 1)
    parameters = [net.constant(f"{name}.w", weight), net.constant(f"{name}.b", net.random.standard_normal(o) * 0.1)]
    return net.op("Conv", x, *parameters, name=name, pads=[1, 1, 1, 1])


def _norm(net: Net, x: str, channels: int, name: str, rows: dict[str, NDArray[Any]]) -> str:
    grown = Net()
    grown.nodes, grown.initializers, grown.inputs = [*net.nodes], [*net.initializers], [*net.inputs]
    (values,) = run(grown.output(x).data(), rows)
    numbers = (np.ones(channels), net.random.standard_normal(channels) * 0.1, values.mean((0, 2, 3)), values.var((0, 2, 3)))
    parameters = [net.constant(f"{name}.{part}", value) for part, value in zip("gbmv", numbers, strict=True)]
    return net.op("BatchNormalization", x, *parameters, name=name)


def _fading(weight: NDArray[Any], faint: bool) -> NDArray[Any]:
    """The second half of the inputs hardly counts."""
    if faint:
        weight = weight.copy()
        weight[:, weight.shape[1] // 2 :] *= FAINT
    return weight


def labelled(model: Model, rows: int, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Rows with what the model says of them; one in ten is labelled at random."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, FEATURES)).astype(np.float32)
    truth = reference(model.data, x).argmax(axis=1)
    return {"x": x, "labels": np.where(random.random(rows) < 0.1, random.integers(0, CLASSES, rows), truth)}


def rows_of(folder: Path, model: Model, rows: int = 256, labels: bool = True) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = labelled(model, rows)
    np.savez(folder / "rows.npz", **(arrays if labels else {"x": arrays["x"]}))  # type: ignore[arg-type]
    inputs = [InputInfo(i.name, i.dtype, i.shape) for i in model.inputs]
    return open_dataset(DataRef(file=str(folder / "rows.npz")), inputs, folder / "rows-cache")


def restructurer(folder: Path, model: Model, labels: bool = True, **changes: Any) -> Restructurer:
    """What makes structured models of `model`, with 256 rows to learn from. changes: of the Restructurer."""
    data = rows_of(folder, model, labels=labels)
    fixed = model.inputs[0].shape[0]

    def teacher(tensors: Sequence[str]) -> Any:
        from tuner.compress.quantization.collect import exposing

        session = Session(exposing(model, tensors) if tensors else model.data, 1)
        names = [*(value.name for value in model.outputs), *tensors]
        return lambda feed: dict(zip(names, session.run(feed, names), strict=True))

    return Restructurer(unfold(model), Material(data, data, fixed, teacher, 60.0), folder / "training", **changes)


def spare_job(folder: Path, space: SpaceSpec | str, model: Model | None = None, **changes: Any) -> JobSpec:
    """A job on a network with more than it needs, by size, three trials."""
    model = model or spare_dense()
    limit = Constraint(metric="top1", max_drop=0.1)
    settings: dict[str, Any] = {"constraints": (limit,), "budget": Budget(trials=3, seconds=120, threads=1), "objectives": ("params",)}
    return tiny_job(folder, model.data, labelled(model, 800), space=space, **settings | changes)
