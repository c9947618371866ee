"""One door for everything that can be named: built-ins and third-party plug-ins register the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from tuner.errors import InputError, UnknownName

ENTRY_POINT_GROUP = "accutune.plugins"

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things of one kind. Registration is a decorator; looking up an unknown name suggests the nearest."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters a thing under `name`. ValueError if the name is taken by something else."""

        def enter(item: T) -> T:
            if name in self._items and self._items[name] is not item:
                raise ValueError(f"{self.kind} '{name}' is registered twice; give one of them another name")
            self._items[name] = item
            return item

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            load_plugins()
        if name not in self._items:
            raise UnknownName(self.kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._items:
            load_plugins()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(list(iter(self)))


_loaded = False


def load_plugins() -> None:
    """Import every module that an installed distribution names in the group `accutune.plugins`, once.

    InputError names a plug-in that cannot be imported: without it, what it registers would only seem to be misspelt."""
    global _loaded
    if _loaded:
        return
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            source = f" of {point.dist.name}" if point.dist else ""
            raise InputError(
                f"the plug-in '{point.name}'{source} ({point.value}) cannot be loaded: {type(error).__name__}: {error}. "
                "Repair that package or uninstall it."
            ) from error
    _loaded = True
