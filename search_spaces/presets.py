"""Spaces that have a name: presets/*.yaml. A file name cannot hold a colon everywhere, so an underscore stands for it."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import files

import yaml

from search_spaces.space import SpaceSpec


@cache
def preset_names() -> tuple[str, ...]:
    folder = files("search_spaces").joinpath("presets")
    return tuple(sorted(entry.name.removesuffix(".yaml").replace("_", ":") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


@cache
def load_preset(name: str) -> SpaceSpec:
    """The preset called `name`. ValueError suggests the nearest name where there is none."""
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown space '{name}'.{hint} Known: {', '.join(preset_names())}.")
    text = files("search_spaces").joinpath("presets", f"{name.replace(':', '_')}.yaml").read_text(encoding="utf-8")
    return SpaceSpec.model_validate({"name": name} | yaml.safe_load(text))
