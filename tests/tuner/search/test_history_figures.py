"""Figures against the trials that they were drawn from."""

from __future__ import annotations

import itertools
import json
import logging
import random
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from search_spaces.schemes import FLOAT
from tests.store_samples import trial
from tuner.errors import UnknownName
from tuner.results import TrialResult, TrialState, Verdict
from tuner.search.figures import History, NothingToDraw, Quantity, draw, figure_names
from tuner.search.layer_figures import BARS, COLUMNS, LINES, SHOWN

OPTIONS = (FLOAT, "u8-asym-kl/s8-sym-channel", "u8-asym-mse/s8-sym-channel", "u8-asym-mse/s8-sym-tensor")
LABELS = dict(zip(OPTIONS, ("float", "kl channel", "mse channel", "mse tensor"), strict=True))
LAYERS = tuple(f"/model/blocks.{index}/a/long/way/down/conv" for index in range(8))
DECIDES = LAYERS[5]
LOST, SPEED, SIZE = "accuracy lost (top1), percentage points", "speed-up over the original, ×", "file size, KiB"
DROP = Quantity(LOST, lambda one: 100 * one.verdicts[0].drop if one.verdicts else None)
FASTER = Quantity(SPEED, lambda one: one.speedup.value if one.speedup else None, higher=True)
SMALLER = Quantity(SIZE, lambda one: one.value("size_bytes"))
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def lossy(number: int, drop: float, **fields: Any) -> TrialResult:
    """Feasible where it loses at most 0.02."""
    judged = {"metric": "top1", "lower": 0.0, "upper": 0.0, "confidence": 0.95, "decision": "met"}
    return trial(number, **{"verdicts": (Verdict(**judged, drop=drop, violation=drop - 0.02),)} | fields)


def history(trials: Sequence[TrialResult], objective: Quantity = FASTER, cost: Quantity = FASTER, **ran: Any) -> History:
    return History(tuple(trials), DROP, objective, cost, **ran)


def searched(count: int = 60, layers: Sequence[str] = LAYERS) -> list[TrialResult]:
    """Trials, every second number, whose drop is decided by one layer; the others add what nobody would see."""
    source = random.Random(1)
    trials = []
    for number in range(0, 2 * count, 2):
        chosen = {layer: source.choice(OPTIONS) for layer in layers}
        drop = 0.01 * OPTIONS.index(chosen[layers[min(5, len(layers) - 1)]]) + 1e-6 * source.random()
        trials.append(lossy(number, drop, assignment=dict(chosen), speedup=1 + source.random(), size=1024.0 * number))
    return trials


SEARCHED = searched()


def find(figure: dict[str, Any], name: str) -> dict[str, Any]:
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def test_the_best_so_far_is_a_staircase_over_what_met_the_target() -> None:
    speeds = {3: 1.1, 5: 1.9, 8: 1.05, 9: 1.4, 12: None, 20: 1.6, 21: 1.2}
    trials = [lossy(number, 0.5 if number == 5 else 0.01, speedup=speed) for number, speed in speeds.items()]
    drawn = draw("history", history([*trials, trial(22, state=TrialState.RUNNING)]))
    best = find(drawn, "best so far")
    assert best["x"] == [3, 5, 8, 9, 20, 21, 22]
    assert best["y"] == [1.1, 1.1, 1.1, 1.4, 1.6, 1.6, 1.6]
    assert best["line"]["shape"] == "hv"
    met, missed = find(drawn, "meets the target"), find(drawn, "misses the target")
    assert (met["x"], met["y"]) == ([3, 8, 9, 20, 21], [1.1, 1.05, 1.4, 1.6, 1.2])
    assert (missed["x"], missed["y"]) == ([5], [1.9])
    assert drawn["layout"]["xaxis"]["title"]["text"] == "trial"
    assert drawn["layout"]["yaxis"]["title"]["text"] == SPEED


def test_before_the_target_is_met_there_is_no_best() -> None:
    trials = [lossy(0, 0.5, size=9.0), lossy(1, 0.4, size=7.0), lossy(2, 0.0, size=8.0), lossy(3, 0.0, size=6.0)]
    assert find(draw("history", history(trials, SMALLER)), "best so far")["y"] == [None, None, 8.0, 6.0, 6.0]
    nobody = draw("history", history(trials[:2], SMALLER))
    assert find(nobody, "best so far")["y"] == [None, None, None]
    assert [trace["name"] for trace in nobody["data"]] == ["best so far", "misses the target"]


def test_where_no_trial_has_the_objective_the_drop_is_drawn() -> None:
    drawn = draw("history", history([lossy(0, 0.015), lossy(1, 0.25), lossy(2, 0.01)]))
    assert find(drawn, "best so far")["y"] == pytest.approx([1.5, 1.5, 1.0, 1.0])
    assert drawn["layout"]["yaxis"]["title"]["text"] == LOST


def test_the_layer_that_decides_alone_is_the_most_important() -> None:
    (bars,) = draw("importances", history(SEARCHED))["data"]
    assert bars["customdata"][-1] == DECIDES
    assert bars["x"] == sorted(bars["x"])
    assert sum(bars["x"]) == pytest.approx(1)
    assert bars["x"][-1] > 0.5
    assert bars["text"] == [f"{share:.1%}" for share in bars["x"]]
    assert bars["y"][-1].startswith("…")
    assert DECIDES.endswith(bars["y"][-1][1:])
    assert set(bars["customdata"]) == set(LAYERS)


def test_of_many_layers_the_most_important_have_bars() -> None:
    layers = [f"layer{index}" for index in range(30)]
    (bars,) = draw("importances", history(searched(60, layers)))["data"]
    assert (len(bars["x"]), bars["customdata"][-1]) == (BARS, "layer5")
    assert sum(bars["x"]) < 1


def test_a_slice_holds_every_trial_under_its_choice() -> None:
    drawn = draw("slice", history(SEARCHED))
    assert len(drawn["data"]) == SHOWN
    first = drawn["data"][0]
    assert drawn["layout"]["xaxis"]["title"]["text"].startswith("1. …")
    assert DECIDES.endswith(drawn["layout"]["xaxis"]["title"]["text"].removeprefix("1. …"))
    known = {one.number: one for one in SEARCHED}
    assert sorted(first["marker"]["color"]) == sorted(known)
    for number, label, lost, said in zip(first["marker"]["color"], first["x"], first["y"], first["customdata"], strict=True):
        one = known[number]
        assert LABELS[str(one.assignment[DECIDES])] == label
        assert said == [one.assignment[DECIDES], number, "meets the target" if one.feasible else "misses the target"]
        assert lost == pytest.approx(100 * one.verdicts[0].drop)
    shapes = dict(zip(first["marker"]["color"], first["marker"]["symbol"], strict=True))
    assert shapes == {number: "circle" if one.feasible else "circle-open" for number, one in known.items()}
    assert len(set(shapes.values())) == 2


def test_slices_stand_in_rows_of_three() -> None:
    layout = draw("slice", history(SEARCHED))["layout"]
    axes = [layout[f"xaxis{index or ''}"] for index in (0, *range(2, SHOWN + 1))]
    assert [axis["domain"] for axis in axes[:COLUMNS]] == [axis["domain"] for axis in axes[COLUMNS:]]
    assert all(before["domain"][1] < after["domain"][0] for before, after in itertools.pairwise(axes[:COLUMNS]))
    assert layout["yaxis4"]["domain"][1] < layout["yaxis"]["domain"][0]
    assert [axis["title"]["text"][:3] for axis in axes] == [f"{rank}. " for rank in range(1, SHOWN + 1)]
    assert layout["yaxis"]["title"]["text"] == layout["yaxis4"]["title"]["text"] == LOST.replace(", ", ",<br>")
    assert axes[0]["categoryarray"] == ["float", "kl channel", "mse channel", "mse tensor"]


def test_one_layer_is_enough_for_a_slice() -> None:
    (only,) = draw("slice", history(searched(20, ["only"])))["data"]
    assert len(only["x"]) == 20


def test_a_contour_holds_the_least_drop_of_each_pair() -> None:
    drawn = draw("contour", history(SEARCHED))
    field, layout = drawn["data"][0], drawn["layout"]
    second = next(layer for layer in LAYERS if layer.endswith(layout["yaxis"]["title"]["text"].removeprefix("2. …")))
    least: dict[tuple[str, str], float] = {}
    for one in SEARCHED:
        pair = LABELS[str(one.assignment[DECIDES])], LABELS[str(one.assignment[second])]
        least[pair] = min(least.get(pair, 1e9), 100 * one.verdicts[0].drop)
    cells = {(x, y): z for y, row in zip(field["y"], field["z"], strict=True) for x, z in zip(field["x"], row, strict=True)}
    assert {pair: z for pair, z in cells.items() if z is not None} == pytest.approx(least)
    assert field["colorbar"]["title"]["text"] == LOST.replace(", ", ",<br>")
    points = find(drawn, "meets the target")
    assert len(points["x"]) == sum(one.feasible for one in SEARCHED)
    assert {LABELS[x]: x for x, _ in points["customdata"]} == {label: x for x, label in LABELS.items() if label in points["x"]}


def test_parallel_lines_pass_through_the_choices_of_their_trial() -> None:
    drawn = draw("parallel", history(SEARCHED))
    lines = [trace for trace in drawn["data"] if trace["mode"] == "lines" and "customdata" in trace]
    assert len(lines) == len(SEARCHED)
    for line, one in zip(lines, SEARCHED, strict=True):
        lost, *chosen = line["customdata"]
        assert (lost[0], float(lost[1])) == (LOST, pytest.approx(100 * one.verdicts[0].drop, rel=0.01))
        assert len(chosen) == SHOWN
        assert chosen[0][0] == DECIDES
        assert all(one.assignment[layer] == option for layer, option in chosen)
        assert line["hovertemplate"].startswith(f"trial {one.number}<br>")
        assert line["line"]["dash"] == ("solid" if one.feasible else "dot")
    assert drawn["layout"]["xaxis"]["ticktext"][0] == LOST.replace(", ", ",<br>")
    assert all("color" not in annotation["font"] for annotation in drawn["layout"]["annotations"])
    many = draw("parallel", history(searched(450)))
    assert sum("customdata" in trace for trace in many["data"]) == 150 <= LINES


def test_the_front_is_what_no_other_beats_in_both() -> None:
    points = {4: (1.2, 0.002), 6: (1.5, 0.010), 7: (1.4, 0.012), 8: (1.1, 0.004), 9: (1.9, 0.300)}
    trials = [lossy(number, drop, speedup=speed) for number, (speed, drop) in points.items()]
    drawn = draw("front", history([*trials, lossy(10, 0.001)]))
    best, met, missed = (find(drawn, name) for name in ("on the front", "meets the target", "misses the target"))
    assert sorted(zip(best["x"], best["y"], strict=True)) == [(1.2, pytest.approx(0.2)), (1.5, pytest.approx(1.0))]
    assert sorted(met["x"]) == [1.1, 1.4]
    assert missed["x"] == [1.9]
    assert missed["text"] == [f"trial 9<br>{SPEED}: 1.9<br>{LOST}: 30"]
    titles = drawn["layout"]["xaxis"]["title"]["text"], drawn["layout"]["yaxis"]["title"]["text"]
    assert titles == (SPEED, LOST)


def test_a_front_of_misses_alone_is_drawn_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    trials = [lossy(0, 0.5, size=9.0), lossy(1, 0.4, size=7.0)]
    logging.getLogger("optuna").addHandler(caplog.handler)
    try:
        drawn = draw("front", history(trials, cost=SMALLER))
    finally:
        logging.getLogger("optuna").removeHandler(caplog.handler)
    assert [trace["name"] for trace in drawn["data"]] == ["misses the target"]
    assert caplog.text == ""


def test_a_bar_reaches_from_begin_to_end_in_utc() -> None:
    states = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED, TrialState.RUNNING, TrialState.QUEUED)
    trials = [lossy(10 + index, 0.01 if index else 0.5, state=state) for index, state in enumerate(states)]
    ran = {one.number: (START + timedelta(seconds=2 * one.number), START + timedelta(seconds=3 * one.number)) for one in trials}
    drawn = draw("timeline", history(trials, ran=ran))
    words = {11: "meets the target", 10: "misses the target", 12: "stopped early", 13: "failed", 14: "running"}
    assert {trace["y"][0]: trace["name"] for trace in drawn["data"]} == words
    for trace in drawn["data"]:
        number = trace["y"][0]
        assert trace["x"] == [1000.0 * number]
        assert trace["base"] == [(START + timedelta(seconds=2 * number)).isoformat().removesuffix("+00:00")]
        assert trace["text"] == [f"trial {number}: {number:.1f} s"]
    assert drawn["layout"]["xaxis"]["title"]["text"] == "time (UTC)"


def test_bars_of_a_sample_are_as_high_as_the_gaps() -> None:
    trials = [lossy(number, 0.0) for number in range(0, 1000, 100)]
    drawn = draw("timeline", history(trials, ran={one.number: (START, START + timedelta(seconds=1)) for one in trials}))
    assert drawn["data"][0]["width"] == pytest.approx(0.8 * 90.1)


@pytest.mark.parametrize(
    ("name", "trials", "reason"),
    [
        ("history", SEARCHED[:1], f"it needs at least 2 finished trials whose {SPEED} is known, and there is 1"),
        ("history", [], f"it needs at least 2 finished trials whose {LOST} is known, and there are none"),
        ("front", [lossy(0, 0.1), lossy(1, 0.2)], f"at least 2 finished trials whose {LOST} and {SPEED} is known, and there are none"),
        ("timeline", SEARCHED, "it needs at least one trial that runs or is finished, and there are none"),
        *(
            (name, SEARCHED[:9], "it needs at least 10 finished trials whose accuracy lost (top1) is known, and there are 9")
            for name in ("importances", "slice", "contour", "parallel")
        ),
        *(
            (name, searched(20, ["only"]), "it needs at least 2 layers for which trials chose differently, and there is 1")
            for name in ("importances", "contour", "parallel")
        ),
        (
            "slice",
            [lossy(n, n / 100) for n in range(20)],
            "it needs at least 1 layer for which trials chose differently, and there are none",
        ),
        (
            "importances",
            [lossy(n, 0.0, assignment={"a": OPTIONS[n % 2], "b": OPTIONS[n % 3]}) for n in range(20)],
            "all 20 trials have the same accuracy lost (top1), so no layer decides it",
        ),
    ],
)
def test_too_little_is_refused_with_the_reason(name: str, trials: list[TrialResult], reason: str) -> None:
    with pytest.raises(NothingToDraw) as caught:
        draw(name, history(trials))
    assert reason in str(caught.value)


def test_an_unknown_figure_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown figure 'slices'\. Did you mean 'slice'"):
        draw("slices", history(SEARCHED))


def test_every_figure_has_our_words_and_the_pages_colours_and_no_warning() -> None:
    ran = {one.number: (START, START + timedelta(seconds=1)) for one in SEARCHED}
    for name in figure_names():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = draw(name, history(SEARCHED, ran=ran))
        text = json.dumps(drawn, allow_nan=False)
        for theirs in ("Objective", "Hyperparameter", "Plot", "Feasible", "Infeasible", "Trial", "Best Value", "Datetime", "COMPLETE"):
            assert theirs not in text, (name, theirs)
        assert {"template", "title", "width", "font"} & set(drawn["layout"]) == set()
        assert drawn["layout"]["plot_bgcolor"] == drawn["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"


def test_names_in_a_figure_are_no_markup() -> None:
    layers = ["<b>fc</b>", "<a href='https://x'>y</a>"]
    for name in ("importances", "slice", "contour", "parallel"):
        assert "<b>fc" not in json.dumps(draw(name, history(searched(20, layers))))
        assert "<a href" not in json.dumps(draw(name, history(searched(20, layers))))


def test_every_figure_of_layers_takes_widths_zeros_and_ranks() -> None:
    options = {
        "channels:/model/conv": ("whole", "keep-12", "keep-8"),
        "/model/conv": OPTIONS,
        "sparsify:/model/fc": ("whole", "0.5-any", "0.5-2:4"),
        "factorize:/model/fc": ("whole", "tucker2-0.5", "svd-0.25"),
    }
    source = random.Random(2)
    trials = []
    for number in range(40):
        chosen = {name: source.choice(own) for name, own in options.items()}
        drop = 0.01 * options["channels:/model/conv"].index(chosen["channels:/model/conv"]) + 1e-6 * source.random()
        trials.append(lossy(number, drop, assignment=dict(chosen), speedup=1 + source.random()))
    for name in ("importances", "slice", "contour", "parallel"):
        assert json.loads(json.dumps(draw(name, history(trials))))["data"]
    first = draw("slice", history(trials))["layout"]["xaxis"]
    assert first["title"]["text"] == "1. channels:/model/conv"
    assert first["categoryarray"] == ["whole", "keep-8", "keep-12"]
