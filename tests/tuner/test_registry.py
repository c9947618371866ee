from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tuner import registry
from tuner.errors import InputError, UnknownName
from tuner.registry import Registry


@dataclass
class Distribution:
    name: str


@dataclass
class Point:
    """Stands in for an entry point."""

    name: str
    action: Callable[[], object]
    value: str = "plugin.module"
    dist: Distribution | None = None

    def load(self) -> object:
        return self.action()


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """The plug-ins that are installed; none has been loaded yet."""
    found: list[Point] = []

    def entry_points(*, group: str) -> list[Point]:
        assert group == "accutune.plugins"
        return found

    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "entry_points", entry_points)
    return found


@pytest.fixture
def shapes() -> Registry[str]:
    known: Registry[str] = Registry("shape")
    known.register("square")("□")
    known.register("circle")("○")
    return known


def test_registered_things_are_found_in_the_order_of_their_names(shapes: Registry[str]) -> None:
    assert shapes["circle"] == "○"
    assert list(shapes) == ["circle", "square"] and len(shapes) == 2
    assert "circle" in shapes and "oval" not in shapes and 3 not in shapes


def test_registering_is_a_decorator_that_gives_its_thing_back() -> None:
    known: Registry[Callable[[], int]] = Registry("number")

    @known.register("one")
    def one() -> int:
        return 1

    assert one() == known["one"]() == 1


def test_a_name_is_given_once(shapes: Registry[str]) -> None:
    shapes.register("circle")("○")
    with pytest.raises(ValueError) as error:
        shapes.register("circle")("●")
    assert str(error.value) == "shape 'circle' is registered twice; give one of them another name"
    assert shapes["circle"] == "○"


@pytest.mark.parametrize(("asked", "hint"), [("circel", " Did you mean 'circle'?"), ("xyz", "")])
def test_an_unknown_name_suggests_the_nearest(shapes: Registry[str], asked: str, hint: str) -> None:
    with pytest.raises(UnknownName) as error:
        shapes[asked]
    assert str(error.value) == f"unknown shape '{asked}'.{hint} Known: circle, square."


def test_plug_ins_are_loaded_once_when_a_name_is_not_built_in(points: list[Point], shapes: Registry[str]) -> None:
    loads: list[str] = []

    def load() -> None:
        loads.append("oval")
        shapes.register("oval")("⬭")

    points.append(Point("ovals", load))
    assert shapes["circle"] == "○" and loads == []
    assert shapes["oval"] == "⬭"
    assert list(shapes) == ["circle", "oval", "square"] and "oval" in shapes
    assert loads == ["oval"]


def test_a_plug_in_that_cannot_be_loaded_is_named_every_time(points: list[Point], shapes: Registry[str]) -> None:
    def load() -> None:
        raise ImportError("No module named 'absent'")

    points.append(Point("ovals", load, value="ovals.main", dist=Distribution("ovals-kit")))
    assert shapes["circle"] == "○"
    text = (
        "the plug-in 'ovals' of ovals-kit (ovals.main) cannot be loaded: ImportError: No module named 'absent'. "
        "Repair that package or uninstall it."
    )
    for _ in range(2):
        with pytest.raises(InputError) as error:
            shapes["oval"]
        assert str(error.value) == text
    points[0].action = lambda: shapes.register("oval")("⬭")
    assert shapes["oval"] == "⬭"
