"""What the report says of a plan that took something away: what is left, and what is speed and what only zeros."""

from __future__ import annotations

import re

import pytest

from search_spaces.schemes import WHOLE
from tests.tuner.report.test_report import Case, make_case
from tuner.plan import Split, Structure
from tuner.report.page import render_report
from tuner.report.structure import FASTER, ZEROS, removals
from tuner.report.wording import NBSP, choice_words
from tuner.results import SensitivityRow

STRUCTURE = Structure(
    removed={"conv1": (0, 3, 5, 6), "conv2": ()},
    kept={"conv1": 12, "conv2": 8},
    splits={"conv3": Split(method="tucker2", rank=(5, 8))},
    zeros={"fc": 0.8},
)


def structured() -> Case:
    """A job whose best plan took channels, a rank and weights away."""
    case = make_case(trials=3)
    chosen = {"channels:conv1": "keep-12", "factorize:conv3": "tucker2-0.5", "sparsify:fc": "0.8-any"}
    names = [*chosen, "channels:conv2", *case.names]
    rows = [SensitivityRow(layer=name, op="Conv", scheme=chosen.get(name, WHOLE), divergence=0.1) for name in names[:4]]
    return case.with_best(layers=chosen | case.result.best.layers)._replace(names=names, sensitivity=[*rows, *case.sensitivity])


def test_removals_say_what_is_left_and_what_it_is_good_for() -> None:
    found = [(row.what, row.kept.replace(NBSP, " "), row.effect) for row in removals(STRUCTURE)]
    assert found == [
        ("channels of conv1", "12 of 16 (75 %)", FASTER),
        ("layer conv3", "split by tucker2, rank 5 and 8", FASTER),
        ("weights of fc", "20 %; 80 % are zero", ZEROS),
    ]
    assert removals(None) == []


@pytest.mark.parametrize(
    ("parameter", "choice", "words"),
    [
        ("channels:a", "keep-1200", "1,200 kept"),
        ("channels:*", "cut-0.3", "30 % of all channels gone"),
        ("factorize:a", "svd-0.5", "svd, 50 % fewer MACs"),
        ("sparsify:a", "0.8-any", "80 % zeros"),
        ("sparsify:a", "0.5-2:4", "50 % zeros, 2:4 stay"),
        ("sparsify:a", "0.5-4x1", "50 % zeros in blocks of 4 × 1"),
        ("channels:a", "whole", "whole"),
        ("conv1", "u8-asym-mse/s8-sym-channel", "u8-asym-mse/s8-sym-channel"),
        ("op:Add", "float", "float"),
    ],
)
def test_choices_in_words(parameter: str, choice: str, words: str) -> None:
    assert choice_words(parameter, choice).replace(NBSP, " ") == words


def test_the_page_lists_what_was_taken_away_and_tells_speed_from_zeros() -> None:
    html = render_report(*structured(), STRUCTURE).replace(NBSP, " ")
    part = html.partition("What was taken away</h2>")[2].partition("</section>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td></tr>', part)
    assert rows == [(row.what, row.kept.replace(NBSP, " "), row.effect) for row in removals(STRUCTURE)]
    assert "Zeros are stored and multiplied like other numbers" in part
    assert "<code>best.tensors.safetensors</code> holds them and must lie beside it" in html
    strip = html.partition("The best plan, layer by layer")[2].partition("</svg>")[0]
    assert "<title>1. channels:conv1: 12 kept</title>" in strip
    assert "<title>4. channels:conv2: whole</title>" in strip
    for name in ("Multiply-accumulates (MACs)", "Parameters"):
        assert name in html.partition("Original against best")[2].partition("</section>")[0]


def test_a_plan_that_only_quantizes_has_no_such_part() -> None:
    html = render_report(*make_case(trials=3))
    assert "What was taken away</h2>" not in html
    assert "best.tensors.safetensors" not in html
