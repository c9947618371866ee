from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from tuner.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Bar,
    Cell,
    Point,
    bars,
    log_ticks,
    mark,
    nice_ticks,
    plain,
    power,
    scatter,
    steps,
    strip,
)

SVG = "{http://www.w3.org/2000/svg}"


def tree(svg: str) -> ET.Element:
    """The parsed drawing: malformed markup fails here."""
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def of_class(svg: str, name: str) -> list[ET.Element]:
    return [node for node in tree(svg).iter() if name in node.get("class", "").split()]


def middle(node: ET.Element) -> tuple[float, float]:
    return float(node.get("cx", "nan")), float(node.get("cy", "nan"))


def words(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in tree(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (-0.013, 0.021, 5, [-0.01, 0, 0.01, 0.02]),
        (0.31, 0.62, 3, [0.4, 0.6]),
        (980, 1020, 4, [980, 990, 1000, 1010, 1020]),
        (3, 3, 5, [3]),
    ],
)
def test_nice_ticks_are_round_and_inside(low: float, high: float, count: int, expected: list[float]) -> None:
    assert nice_ticks(low, high, count) == expected


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (1e-5, 1e-1, 5, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]),
        (1e-8, 1e1, 4, [1e-8, 1e-5, 1e-2, 1e1]),
        (2.0, 9.0, 4, [2, 4, 6, 8]),
    ],
)
def test_log_ticks(low: float, high: float, count: int, expected: list[float]) -> None:
    assert log_ticks(low, high, count) == expected


def test_axis_places_linear_and_log_values() -> None:
    assert Axis("", 10, 30).place(20) == 0.5
    assert Axis("", 1e-4, 1e0, log=True).place(1e-3) == pytest.approx(0.25)
    assert Axis("", 10, 30).place(99) == 1
    assert Axis("", 1e-4, 1e0, log=True).place(-1) == 0


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[7.0], [7.0, 7.0, 7.0]])
def test_a_single_value_lands_in_the_middle(values: list[float], log: bool) -> None:
    assert Axis.around("", values, log=log).place(7.0) == pytest.approx(0.5)


def test_axis_around_leaves_room_and_skips_what_is_not_finite() -> None:
    axis = Axis.around("", [0.0, None, math.nan, 10.0, math.inf])
    assert (axis.low, axis.high) == (-0.5, 10.5)
    assert (Axis.around("", []).low, Axis.around("", [-3.0, 0.0], log=True).low) == (0.0, 1.0)


def test_tick_labels() -> None:
    assert [plain(v) for v in (-0.5, 1e-17, 12000)] == ["\u22120.5", "0", "12,000"]
    assert power(1e-3) == "10⁻³"


def test_a_point_in_the_middle_of_both_axes_is_drawn_in_the_middle_of_the_plot() -> None:
    svg = scatter([Point(5, 50, "feasible")], Axis("x", 0, 10), Axis("y", 0, 100), label="l", width=400)
    height = float(tree(svg).get("height", "nan"))
    assert middle(of_class(svg, "feasible")[0]) == ((LEFT + 400 - RIGHT) / 2, (TOP + height - BOTTOM) / 2)


def test_larger_values_lie_right_and_up_and_outliers_on_the_edge() -> None:
    points = [Point(1, 1, "feasible"), Point(2, 2, "feasible"), Point(2, 900, "feasible")]
    svg = scatter(points, Axis("x", 1, 2), Axis("y", 1, 2), label="l", width=400)
    first, second, third = (middle(node) for node in of_class(svg, "feasible"))
    height = float(tree(svg).get("height", "nan"))
    assert first == (LEFT, height - BOTTOM)
    assert second == third == (400 - RIGHT, TOP)


def test_error_bars_target_and_front_are_where_their_numbers_say() -> None:
    points = [Point(5, 50, "infeasible", low=25, high=75)]
    x, y = Axis("x", 0, 10), Axis("y", 0, 100)
    svg = scatter(points, x, y, label="l", width=400, target=(50, "target: 50"), front=[(0, 100), (5, 50), (10, 0)])
    bottom = float(tree(svg).get("height", "nan")) - BOTTOM
    span = bottom - TOP
    (error,), (line,), (front,) = (of_class(svg, name) for name in ("error", "target", "front"))
    assert [float(error.get(k, "nan")) for k in ("y1", "y2")] == pytest.approx([bottom - span / 4, TOP + span / 4], abs=0.1)
    assert float(line.get("y1", "nan")) == pytest.approx((TOP + bottom) / 2, abs=0.1)
    assert front.get("d", "").startswith(f"M{LEFT:g} {TOP:g}H")
    assert front.get("d", "").endswith(f"H{400 - RIGHT:g}V{bottom:g}")
    assert "target: 50" in words(svg)


def test_points_without_both_coordinates_are_left_out() -> None:
    points = [Point(None, 1, "feasible"), Point(1, math.nan, "feasible"), Point(1, 1, "feasible", low=math.nan, high=2)]
    svg = scatter(points, Axis("x", 0, 2), Axis("y", 0, 2), label="l")
    assert len(of_class(svg, "feasible")) == 1
    assert of_class(svg, "error") == []


@pytest.mark.parametrize(
    "svg",
    [
        scatter([], Axis("x", 0, 1), Axis("y", 0, 1), label="none"),
        steps([], Axis("x", 0, 1), Axis("y", 0, 1), label="none"),
        bars([Bar("a", None, "–")], label="none", axis="x"),
        strip([], label="none"),
    ],
)
def test_nothing_to_draw_is_said(svg: str) -> None:
    assert words(svg) == ["Nothing to draw"]
    assert tree(svg).get("aria-label") == "none"
    assert tree(svg).get("role") == "img"


def test_steps_hold_each_value_until_the_next_and_to_the_right_end() -> None:
    svg = steps([(0, 1), (5, 2), (7, None)], Axis("x", 0, 10), Axis("y", 1, 2), label="l", width=474, failed=[10])
    floor = float(tree(svg).get("height", "nan")) - BOTTOM
    assert of_class(svg, "best-line")[0].get("d") == f"M58 {floor:g}H258V{TOP:g}H458V{TOP:g}"
    assert of_class(svg, "failed")[0].get("d", "").startswith(f"M458 {floor - 8:g}")


def test_bars_are_as_long_as_their_logarithm() -> None:
    rows = [Bar("a", 1e-1, "a"), Bar("b", 1e-2, "b"), Bar("c", 1e-3, "c"), Bar("d", 0.0, "none"), Bar("e", math.nan, "-")]
    lengths = [float(node.get("width", "nan")) for node in of_class(bars(rows, label="l", axis="x"), "bar")]
    assert lengths == pytest.approx([lengths[0], lengths[0] * 2 / 3, lengths[0] / 3, 0], abs=0.1)
    assert lengths[0] == pytest.approx(860 * 0.68 - 76, abs=0.1)


def test_a_range_too_wide_for_the_paper_is_cut_at_its_low_end() -> None:
    svg = bars([Bar("a", 1.0, ""), Bar("b", 1e-30, "")], label="l", axis="x")
    lengths = [float(node.get("width", "nan")) for node in of_class(svg, "bar")]
    assert lengths[0] > 400
    assert lengths[1] == 0


def test_a_long_name_keeps_its_end_and_its_title_the_whole() -> None:
    name = "/model/" + "x" * 100 + "/q_proj/MatMul"
    svg = bars([Bar(name, 1.0, "1")], label="l", axis="x")
    assert any(text.startswith("…") and text.endswith("/q_proj/MatMul") for text in words(svg))
    assert [node.text for node in tree(svg).iter(f"{SVG}title")] == [f"{name}: 1"]


@pytest.mark.parametrize(("width", "columns"), [(34 + 10 * 30, 10), (34 + 10 * 30 + 29, 10), (20, 1)])
def test_a_strip_wraps_at_its_width(width: float, columns: int) -> None:
    svg = strip([Cell("A", 0, f"layer {i}") for i in range(23)], label="l", width=width)
    cells = of_class(svg, "cell")
    assert [float(cells[columns].get(k, "nan")) for k in ("x", "y")] == [34, 31]
    assert float(cells[columns - 1].get("y", "nan")) == 1
    assert float(tree(svg).get("height", "nan")) == math.ceil(23 / columns) * 30 + 1
    assert words(svg)[:2] == ["1", "A"]


def test_cells_of_a_strip_differ_by_fill_and_an_empty_one_has_none() -> None:
    svg = strip([Cell("A", 0, "a"), Cell("B", 8, "b"), Cell("·", None, "c")], label="l")
    assert [node.get("class") for node in of_class(svg, "cell")] == ["cell k0", "cell k1", "cell empty"]


def test_kinds_of_marks_have_different_shapes() -> None:
    marks = [mark(kind, 0, 0) for kind in ("feasible", "infeasible", "stopped", "failed", "original")]
    shapes = {(tree(f"<svg >{svg}</svg>")[0].tag, tree(f"<svg >{svg}</svg>")[0].get("d")) for svg in marks}
    assert len(shapes) == 5
    assert 'class="mark stopped hollow"' in mark("stopped hollow", 0, 0)


def test_every_text_is_escaped() -> None:
    evil = "</title><script>alert('1')</script>\"&"
    x, y = Axis(evil, 0, 1, show=lambda _: evil), Axis(evil, 0, 1, show=lambda _: evil)
    drawings = [
        scatter([Point(0.5, 0.5, "feasible", evil, label=evil)], x, y, label=evil, target=(0.5, evil)),
        steps([(0, 1)], x, y, label=evil, points=[Point(0, 0, "feasible", evil)]),
        bars([Bar(evil, 1.0, evil)], label=evil, axis=evil),
        strip([Cell(evil, 0, evil)], label=evil),
    ]
    for svg in drawings:
        assert "<script" not in svg
        assert tree(svg).get("aria-label") == evil
        assert evil in words(svg)
