"""Recurrent layers. X [steps, n, inputs] (layout 1: [n, steps, inputs]), weights [directions, gates·hidden, …],
Y [steps, directions, n, hidden].

Where torch has the same layer, its kernel computes it; otherwise every step is written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tuner.model.torch_table import operator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
    "Softsign": F.softsign,
    "Softplus": F.softplus,
}
LAYOUTS = (0, 1)
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]


class _Activations:
    """The lists of activations that can be computed, for `only`."""

    def __contains__(self, names: object) -> bool:
        return isinstance(names, list) and all(name in ACTIVATIONS for name in names)


def _sides(direction: str) -> list[bool]:
    """For each direction: does it run backwards?"""
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]


def _chosen(activations: Sequence[str] | None, defaults: Sequence[str], side: int) -> list[Callable[[Tensor], Tensor]]:
    names = activations or list(defaults) * 2
    return [ACTIVATIONS[name] for name in names[side * len(defaults) : (side + 1) * len(defaults)]]


def _run(x: Tensor, cell: Cell, state: State, lengths: Tensor | None, backwards: bool) -> tuple[Tensor, State]:
    """All steps of one direction: outputs [steps, n, hidden] and the last state. Beyond a row's length outputs are 0 and states stay."""
    outputs: list[Tensor] = []
    steps = range(x.shape[0] - 1, -1, -1) if backwards else range(x.shape[0])
    for step in steps:
        fresh = cell(x[step], state)
        if lengths is not None:
            inside = (lengths > step).unsqueeze(1)
            state = tuple(torch.where(inside, new, old) for new, old in zip(fresh, state, strict=True))
            outputs.append(torch.where(inside, fresh[0], 0.0))
        else:
            state = fresh
            outputs.append(fresh[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _start(x: Tensor, given: Tensor | None, side: int, hidden: int) -> Tensor:
    return x.new_zeros(x.shape[1], hidden) if given is None else given[side]


def _joined(parts: list[tuple[Tensor, State]], layout: int) -> tuple[Tensor, ...]:
    """(Y, Y_h, …) of all directions."""
    y = torch.stack([outputs for outputs, _ in parts], 1)
    states = [torch.stack(list(each)) for each in zip(*(state for _, state in parts), strict=True)]
    if layout:
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
    return y, *states


def _bias(b: Tensor | None, side: int, gates: int, hidden: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The biases of the input's and of the state's product, each [gates·hidden]."""
    if b is None:
        zeros = like.new_zeros(gates * hidden)
        return zeros, zeros
    return b[side, : gates * hidden], b[side, gates * hidden :]


@operator("RNN", many=True, only={"activations": _Activations(), "layout": LAYOUTS})
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Hₜ = f(xₜ Wᵀ + Hₜ₋₁ Rᵀ + b)."""
    x, initial_h = _time_first(layout, x, initial_h)
    parts = []
    for side, backwards in enumerate(_sides(direction)):
        (f,) = _chosen(activations, ("Tanh",), side)
        wb, rb = _bias(b, side, 1, hidden_size, x)

        def cell(xw: Tensor, state: State, f: Any = f, rb: Tensor = rb, side: int = side) -> State:
            return (f(xw + F.linear(state[0], r[side], rb)),)

        start = (_start(x, initial_h, side, hidden_size),)
        parts.append(_run(F.linear(x, w[side], wb), cell, start, sequence_lens, backwards))
    return _joined(parts, layout)


@operator("GRU", many=True, only={"activations": _Activations(), "layout": LAYOUTS})
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """Gates z, r, h in this order. linear_before_reset: the reset gate scales the state's product (as in torch), else the state."""
    x, initial_h = _time_first(layout, x, initial_h)
    plain = activations is None and sequence_lens is None and linear_before_reset
    parts = []
    for side, backwards in enumerate(_sides(direction)):
        f, g = _chosen(activations, ("Sigmoid", "Tanh"), side)
        biases = _bias(b, side, 3, hidden_size, x)
        start = _start(x, initial_h, side, hidden_size)
        if plain:
            parts.append(_torch_gru(x, start, (w[side], r[side], *biases), backwards))
            continue
        cell = _gru_cell(r[side], biases[1], f, g, hidden_size, bool(linear_before_reset))
        parts.append(_run(F.linear(x, w[side], biases[0]), cell, (start,), sequence_lens, backwards))
    return _joined(parts, layout)


def _gru_cell(r: Tensor, rb: Tensor, f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], hidden: int, linear: bool) -> Cell:
    def cell(xw: Tensor, state: State) -> State:
        h = state[0]
        gates = F.linear(h, r[: 2 * hidden], rb[: 2 * hidden])
        z, reset = f(xw[:, : 2 * hidden] + gates).chunk(2, 1)
        if linear:
            new = g(xw[:, 2 * hidden :] + reset * F.linear(h, r[2 * hidden :], rb[2 * hidden :]))
        else:
            new = g(xw[:, 2 * hidden :] + F.linear(reset * h, r[2 * hidden :], rb[2 * hidden :]))
        return ((1 - z) * new + z * h,)

    return cell


def _torch_gru(x: Tensor, start: Tensor, weights: tuple[Tensor, ...], backwards: bool) -> tuple[Tensor, State]:
    # ONNX has the gates z, r, h; torch r, z, n.
    turned = [torch.cat([z_r_h[1], z_r_h[0], z_r_h[2]]) for z_r_h in (weight.chunk(3) for weight in weights)]
    y, last = torch.gru(x.flip(0) if backwards else x, start.unsqueeze(0), turned, True, 1, 0.0, False, False, False)
    return y.flip(0) if backwards else y, (last[0],)


@operator("LSTM", many=True, only={"activations": _Activations(), "layout": LAYOUTS, "input_forget": (0,)})
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Gates i, o, f, c in this order; p: peepholes [directions, 3·hidden] of i, o and f."""
    del input_forget
    x, initial_h, initial_c = _time_first(layout, x, initial_h, initial_c)
    plain = activations is None and sequence_lens is None and p is None
    parts = []
    for side, backwards in enumerate(_sides(direction)):
        functions = _chosen(activations, ("Sigmoid", "Tanh", "Tanh"), side)
        biases = _bias(b, side, 4, hidden_size, x)
        start = _start(x, initial_h, side, hidden_size), _start(x, initial_c, side, hidden_size)
        if plain:
            parts.append(_torch_lstm(x, start, (w[side], r[side], *biases), backwards))
            continue
        cell = _lstm_cell(r[side], biases[1], functions, None if p is None else p[side].chunk(3))
        parts.append(_run(F.linear(x, w[side], biases[0]), cell, start, sequence_lens, backwards))
    return _joined(parts, layout)


def _lstm_cell(r: Tensor, rb: Tensor, functions: Sequence[Callable[[Tensor], Tensor]], peepholes: Sequence[Tensor] | None) -> Cell:
    f, g, out = functions

    def cell(xw: Tensor, state: State) -> State:
        h, c = state
        i, o, forget, new = (xw + F.linear(h, r, rb)).chunk(4, 1)
        if peepholes is not None:
            i, forget = i + peepholes[0] * c, forget + peepholes[2] * c
        fresh = f(forget) * c + f(i) * g(new)
        o = o if peepholes is None else o + peepholes[1] * fresh
        return f(o) * out(fresh), fresh

    return cell


def _torch_lstm(x: Tensor, start: State, weights: tuple[Tensor, ...], backwards: bool) -> tuple[Tensor, State]:
    # ONNX has the gates i, o, f, c; torch i, f, c, o.
    turned = [torch.cat([parts[0], parts[2], parts[3], parts[1]]) for parts in (weight.chunk(4) for weight in weights)]
    first = [state.unsqueeze(0) for state in start]
    y, h, c = torch.lstm(x.flip(0) if backwards else x, first, turned, True, 1, 0.0, False, False, False)
    return y.flip(0) if backwards else y, (h[0], c[0])


def _time_first(layout: int, *tensors: Tensor | None) -> Any:
    """Every tensor with time or direction first, as layout 0 has it."""
    if not layout:
        return tensors
    return tuple(None if tensor is None else tensor.transpose(0, 1) for tensor in tensors)
