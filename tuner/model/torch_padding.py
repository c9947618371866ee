"""Padding of windows: what `pads` and `auto_pad` of Conv, ConvTranspose and the pools mean for a size of input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """A sliding window over the last len(kernel) axes. begin, end: the padding before and after each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    same: str = ""
    """"SAME_UPPER" or "SAME_LOWER" where the padding depends on the input's size."""

    @property
    def spans(self) -> tuple[int, ...]:
        """How many places a window reaches over."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def symmetric(self) -> bool:
        return not self.same and self.begin == self.end


def window_of(
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Window:
    """The window that a node's attributes describe. SAME_* with stride 1 adds the same to every input."""
    rank = len(kernel)
    stride, dilation = tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
    zeros = (0,) * rank
    if not auto_pad.startswith("SAME"):
        amounts = tuple(pads or [0] * (2 * rank)) if auto_pad == "NOTSET" else zeros * 2
        return Window(tuple(kernel), stride, dilation, amounts[:rank], amounts[rank:])
    moving = Window(tuple(kernel), stride, dilation, zeros, zeros, auto_pad)
    return resolved(moving, kernel) if all(step == 1 for step in stride) else moving


def resolved(window: Window, sizes: Sequence[int]) -> Window:
    """The window with its padding told for an input whose last axes have these sizes."""
    if not window.same:
        return window
    totals = [
        max(0, (-(-size // step) - 1) * step + span - size) for size, step, span in zip(sizes, window.stride, window.spans, strict=True)
    ]
    halves = tuple(total // 2 for total in totals)
    rest = tuple(total - half for total, half in zip(totals, halves, strict=True))
    begin, end = (halves, rest) if window.same == "SAME_UPPER" else (rest, halves)
    return Window(window.kernel, window.stride, window.dilation, begin, end)


def pad_last(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last len(begin) axes; negative amounts cut."""
    amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return F.pad(x, amounts, value=value) if any(amounts) else x


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], auto_pad: str) -> Tensor:
    """Pad so that a window gives ceil(size / stride) places: SAME_UPPER adds an odd place at the end, SAME_LOWER at the start."""
    window = window_of(kernel, stride, dilation, None, auto_pad)
    told = resolved(window, x.shape[-len(window.kernel) :])
    return pad_last(x, told.begin, told.end)
