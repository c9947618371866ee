from __future__ import annotations

import pytest

from search_spaces.presets import load_preset, preset_names

NAMES = ("channels", "channels+int8", "int8", "int8-fast", "int8-full", "low-rank", "low-rank+int8", "nm-2:4", "unstructured")


def test_the_presets() -> None:
    assert preset_names() == NAMES
    for name in preset_names():
        preset = load_preset(name)
        assert preset.name == name
        assert len(preset.summary) > 20


@pytest.mark.parametrize(("asked", "near"), [("int8fast", "int8-fast"), ("int8-ful", "int8-full"), ("zz", "")])
def test_an_unknown_preset_suggests_the_nearest(asked: str, near: str) -> None:
    hint = f" Did you mean '{near}'?" if near else ""
    with pytest.raises(ValueError) as error:
        load_preset(asked)
    assert str(error.value) == f"unknown space '{asked}'.{hint} Known: {', '.join(NAMES)}."
