"""Names on axes, and what a study holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.visualization import plot_slice

from search_spaces.schemes import FLOAT
from tests.store_samples import trial
from tuner.search.drawing import (
    PALE,
    STRONG,
    as_json,
    blue,
    layer_labels,
    layer_study,
    option_labels,
    option_of,
    shortened,
    shown,
    varied_layers,
)

TENSOR, CHANNEL, KL = "u8-asym-mse/s8-sym-tensor", "u8-asym-mse/s8-sym-channel", "u8-asym-kl/s8-sym-channel"


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ((TENSOR, CHANNEL, KL, FLOAT), {FLOAT: "float", KL: "kl channel", CHANNEL: "mse channel", TENSOR: "mse tensor"}),
        ((FLOAT, CHANNEL), {FLOAT: "float", CHANNEL: "mse channel"}),
        ((FLOAT, CHANNEL, TENSOR), {FLOAT: "float", CHANNEL: "channel", TENSOR: "tensor"}),
        ((CHANNEL, TENSOR, "u8-asym-kl"), {"u8-asym-kl": "kl", CHANNEL: "mse channel", TENSOR: "mse tensor"}),
        (("u16-asym-mse/s8-sym-channel", CHANNEL), {"u16-asym-mse/s8-sym-channel": "u16", CHANNEL: "u8"}),
        # Nothing but the missing weight tells these apart.
        (("u8-asym-mse", CHANNEL), {"u8-asym-mse": "mse", CHANNEL: "mse channel"}),
        (("float/s8-sym-tensor", "float/s8-sym-channel"), {"float/s8-sym-channel": "channel", "float/s8-sym-tensor": "tensor"}),
    ],
)
def test_options_are_told_by_what_differs(options: tuple[str, ...], labels: dict[str, str]) -> None:
    assert option_labels(options) == labels
    assert list(option_labels(options)) == list(labels)


def test_widths_zeros_and_ranks_are_spelt_out_in_the_order_of_their_numbers() -> None:
    names = ["keep-8", "tucker2-0.5", KL, "whole", "keep-12", "0.5-2:4", "0.5-any", "svd-0.25", FLOAT, CHANNEL, "cut-0.3", "0.75-4x1"]
    labels = option_labels(names)
    assert {label for name, label in labels.items() if name not in (KL, CHANNEL)} <= set(names)
    assert (labels[KL], labels[CHANNEL]) == ("kl", "mse")
    numbered = ["0.5-any", "0.5-2:4", "0.75-4x1", "cut-0.3", "keep-8", "keep-12", "svd-0.25", "tucker2-0.5"]
    assert list(labels) == [FLOAT, "whole", KL, CHANNEL, *numbered]


def test_labels_of_options_that_would_be_the_same_are_spelt_out() -> None:
    odd = ("u8-asym-mse/s8-sym-channel", "u8-asym-/mse-s8-sym-channel")
    assert len(set(option_labels((*odd, FLOAT)).values())) == 3


def test_layers_are_shortened_from_the_left_and_stay_different() -> None:
    assert shortened("/model/layer1/conv", 8) == "…r1/conv"
    assert layer_labels(["/model/layer1/conv", "fc"], 8) == {"/model/layer1/conv": "…r1/conv", "fc": "fc"}
    same = layer_labels(["/model/a/block1/conv", "/model/b/block1/conv"], 6)
    assert same == {"/model/a/block1/conv": "…a/block1/conv", "/model/b/block1/conv": "…b/block1/conv"}
    assert layer_labels([]) == {}


def test_names_are_no_markup() -> None:
    assert layer_labels(["<b>a</b>&amp;"]) == {"<b>a</b>&amp;": "&lt;b&gt;a&lt;/b&gt;&amp;amp;"}
    assert option_labels(["<i>"]) == {"<i>": "&lt;i&gt;"}


def test_a_layer_that_is_not_named_is_left_alone() -> None:
    trials = [trial(0, assignment={"a": CHANNEL, "b": KL}), trial(1, assignment={"a": CHANNEL}), trial(2, assignment={"a": CHANNEL})]
    assert varied_layers(trials) == ["b"]
    study = layer_study([(one, 1.0) for one in trials], {"b": "B"}, option_labels([FLOAT, KL]))
    assert [one.params for one in study.trials] == [{"B": "kl channel"}, {"B": "float"}, {"B": "float"}]


def test_a_parameter_that_is_not_named_is_at_its_own_rest() -> None:
    trials = [trial(0, assignment={"channels:a": "keep-8", "a": KL}), trial(1, assignment={})]
    assert varied_layers(trials) == ["channels:a", "a"]
    assert [option_of(trials[1], name) for name in ("channels:a", "sparsify:a", "factorize:a", "a", "op:Add")] == ["whole"] * 3 + [
        FLOAT
    ] * 2


def test_json_has_no_theme_and_no_numbers_that_json_lacks() -> None:
    trials = [(trial(0, assignment={"a": KL}), 1.0), (trial(1, assignment={"a": FLOAT}), 2.0)]
    figure = plot_slice(layer_study(trials, {"a": "a"}, option_labels([FLOAT, KL])), target_name="lost")
    made = as_json(figure, [{"x": np.array([1.0, math.nan]), "y": (np.int64(3), -math.inf)}], height=3)
    assert made["data"] == [{"x": [1.0, None], "y": [3, None]}]
    assert {"template", "title", "width"} & set(made["layout"]) == set()
    assert made["layout"]["height"] == 3
    assert made["layout"]["paper_bgcolor"] == made["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_blues_and_numbers() -> None:
    assert blue(0) == f"rgb({PALE[0]},{PALE[1]},{PALE[2]})"
    assert blue(1) == f"rgb({STRONG[0]},{STRONG[1]},{STRONG[2]})"
    assert blue(0.5) == "rgb(96,158,203)"
    assert (shown(-0.25), shown(12.34567)) == ("−0.25", "12.35")
