from __future__ import annotations

import random
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from tuner.job import Constraint, DataRef, DataSpec, JobSpec
from tuner.report.figures import NARROW, WIDE
from tuner.report.page import render_report, verdict_mark
from tuner.report.wording import number
from tuner.results import (
    Baseline,
    Drop,
    Interval,
    JobResult,
    Measurement,
    Outcome,
    SensitivityRow,
    TrialFailure,
    TrialResult,
    TrialState,
    Verdict,
)

SCHEMES = ("u8-asym-minmax/s8-sym-channel", "u8-asym-mse/s8-sym-channel", "u8-asym-p99.99/s8-sym-channel", "u8-asym-kl/s8-sym-tensor")
EVIL = "<script>alert('x')</script>&\""


class Case(NamedTuple):
    """The arguments of render_report."""

    job: JobSpec
    result: JobResult
    trials: list[TrialResult]
    sensitivity: list[SensitivityRow]
    names: list[str]

    def with_job(self, **fields: Any) -> Case:
        return self._replace(job=self.job.model_copy(update=fields))

    def with_result(self, **fields: Any) -> Case:
        return self._replace(result=self.result.model_copy(update=fields))

    def with_best(self, **fields: Any) -> Case:
        return self.with_result(best=self.result.best.model_copy(update=fields))


def measurements(top1: float, rows: int, latency_ms: float, size: float) -> dict[str, Measurement]:
    found = [
        Measurement(metric="top1", value=top1, stderr=(top1 * (1 - top1) / rows) ** 0.5, samples=rows),
        Measurement(metric="latency_ms", value=latency_ms, unit="ms", direction="lower", samples=41),
        *(
            Measurement(metric=name, value=value, direction="lower")
            for name, value in {"size_bytes": size, "macs": 40_551_424, "params": 272_474, "peak_memory_bytes": 8.5 * size}.items()
        ),
    ]
    return {m.metric: m for m in found}


def make_case(trials: int = 12, layers: int = 6, outcome: str = "met", seed: int = 0) -> Case:
    """A job as it could have been. outcome: met, missed, undecided or nothing."""
    rng = random.Random(seed)
    names = [f"node_conv2d_{i}" if i else "node_conv2d" for i in range(layers - 2)] + ["node_linear", "op:Add"]
    job = JobSpec(
        name="resnet20-int8",
        model="/data/models/resnet 20.onnx",
        data=DataSpec(validation=DataRef(file="/data/test.npz", rows=(0, 5000))),
        metrics=("top1",),
        constraints=(Constraint(metric="top1", max_drop=0.01, relative=True, confidence=0.95),),
        seed=7,
    )
    rows = [_sensitivity(name, rng) for name in names]
    history = [_trial(number, names, rows, outcome, rng) for number in range(trials)]
    best = _best(history, names, outcome)
    result = JobResult(
        job_id="20261121-031500-4f1c",
        name=job.name,
        state="succeeded",
        feasible=outcome in ("met", "nothing"),
        seconds=412.7,
        summary=_summary(outcome),
        stop_reason=f"the budget of {trials} trials is spent",
        trials={"total": trials, **Counter(t.state.value for t in history)},
        finalists_tried=2,
        baseline=Baseline(measurements=measurements(0.9183, 5000, 0.6124, 1_106_201)),
        best=best,
        rows={"calibration": 512, "validation": 5000, "holdout": 4988},
        rows_needed=12_400 if outcome == "undecided" else None,
        notes=("12 rows of the holdout also occur in validation and were taken out", "node_conv2d_3: the runtime runs it in float"),
        blame=("node_conv2d: 41% of the predicted harm (u8-asym-minmax/s8-sym-channel)",) if outcome == "missed" else (),
        advice=("allow a larger drop: this model needs max_drop 0.034",) if outcome == "missed" else (),
        phases={"check": 4.1, "survey": 38.2, "search": 331.0, "certify": 38.9, "export": 0.5},
        environment={"processor": "Intel Xeon Platinum 8481C", "cores": "2", "onnxruntime": "1.31.1", "target": job.target.name},
    )
    return Case(job, result, history, rows, names)


def _summary(outcome: str) -> str:
    return {
        "met": "Target met: the best model is 1.53× faster and 3.6× smaller; its drop in top1 on 4,988 unseen rows is 0.39%.",
        "missed": "Target missed (top1 by 2.41%): the nearest model is 1.53× faster and 3.6× smaller.",
        "undecided": "Undecided: the best model is 1.53× faster; its drop is 0.62%, which 4,988 rows can neither certify nor refute.",
        "nothing": "Nothing was gained: no compressed model was both faster and within the target, so the original is returned.",
    }[outcome]


def _sensitivity(name: str, rng: random.Random) -> SensitivityRow:
    float_ms = rng.uniform(0.01, 0.045)
    return SensitivityRow(
        layer=name,
        op="Add" if name == "op:Add" else "Gemm" if name == "node_linear" else "Conv",
        scheme="u8-asym-minmax" if name == "op:Add" else SCHEMES[0],
        divergence=10 ** rng.uniform(-5, -1.2),
        params=0 if name == "op:Add" else rng.randrange(2_000, 37_000),
        macs=None if name == "op:Add" else rng.randrange(400_000, 2_400_000),
        float_ms=float_ms,
        scheme_ms=float_ms * rng.uniform(0.4, 0.8),
    )


def _verdict(drop: float, doubt: float, confidence: float, decision: Any) -> Verdict:
    low, high = drop - doubt, drop + doubt
    return Verdict(metric="top1", drop=drop, lower=low, upper=high, confidence=confidence, decision=decision, violation=high - 0.01)


def _trial(number: int, names: list[str], rows: list[SensitivityRow], outcome: str, rng: random.Random) -> TrialResult:
    share = rng.uniform(0.3, 1.0) if number else 0.0
    assignment: dict[str, Any] = {name: rng.choice(SCHEMES) if rng.random() < share else "float" for name in names}
    if "op:Add" in assignment and assignment["op:Add"] != "float":
        assignment["op:Add"] = "u8-asym-minmax"
    digest = f"{rng.getrandbits(256):064x}"
    timings = {"build": 0.2, "accuracy": rng.uniform(1, 5)}
    if number % 15 == 5:
        error = TrialFailure(type="TrialError", message="the session did not load: bad_alloc", step="session")
        return TrialResult(number=number, state=TrialState.FAILED, assignment=assignment, plan_digest=digest, error=error, timings=timings)
    harm = sum(r.divergence for r in rows if assignment[r.layer] != "float") / sum(r.divergence for r in rows)
    drop = 0.0 if not number else max(-0.002, harm * 0.02 + rng.gauss(0, 0.001)) + (0.009 if outcome == "missed" else 0)
    drop = 0.61 if number == 9 else drop + (0.009 if outcome == "nothing" and number else 0)
    stopped = drop > (0.022 if outcome == "missed" else 0.018) and number != 9
    doubt = (0.004 if stopped else 0.0022) if number else 0.0
    verdict = _verdict(drop, doubt, 0.95, "met" if drop + doubt <= 0.01 else "missed")
    speed = 1 + 0.6 * sum(choice != "float" for choice in assignment.values()) / len(names)
    size = 1_106_201 * (1 - 0.72 * sum(choice != "float" for choice in assignment.values()) / len(names))
    return TrialResult(
        number=number,
        state=TrialState.STOPPED if stopped else TrialState.COMPLETE,
        assignment=assignment,
        plan_digest=digest,
        measurements={"size_bytes": Measurement(metric="size_bytes", value=size, unit="bytes", direction="lower")},
        verdicts=(verdict,),
        speedup=Interval(value=speed, lower=speed * 0.98, upper=speed * 1.02) if verdict.violation <= 0 else None,
        timings=timings,
    )


def _best(history: list[TrialResult], names: list[str], outcome: str) -> Outcome:
    compressed = [t for t in history if t.number and t.state == TrialState.COMPLETE and t.number != 9]
    fair = [t for t in compressed if t.feasible] or compressed
    chosen = history[0] if outcome == "nothing" else max(fair, key=lambda t: (t.speedup.value if t.speedup else 0, t.number))
    drop = {"met": 0.0039, "missed": 0.0341, "undecided": 0.0082, "nothing": 0.0}[outcome]
    doubt = 0.0 if outcome == "nothing" else 0.0041
    verdict = _verdict(drop, doubt, 0.975, "met" if outcome == "nothing" else outcome)
    same = outcome == "nothing"
    found = measurements(0.9183 * (1 - drop), 4988, 0.6124 if same else 0.4002, 1_106_201 if same else 305_118)
    return Outcome(
        measurements=found,
        trial=chosen.number,
        plan_digest=chosen.plan_digest,
        drop=Drop(value=verdict.drop, lower=verdict.lower, upper=verdict.upper, confidence=0.975),
        speedup=Interval(value=1, lower=1, upper=1) if same else Interval(value=1.53, lower=1.49, upper=1.57),
        size_ratio=1.0 if same else 305_118 / 1_106_201,
        verdict=verdict.decision,
        verdicts=(verdict,),
        layers={n: str(chosen.assignment[n]) for n in names if chosen.assignment[n] != "float" and not n.startswith("op:")},
        file="best.onnx",
    )


class Page(HTMLParser):
    """Tags with their attributes, headings, and the text outside the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def count(self, tag: str, name: str) -> int:
        return sum(t == tag and name in (attrs.get("class") or "").split() for t, attrs in self.tags)


def page(case: Case) -> Page:
    return Page(render_report(*case))


def test_the_page_is_well_formed_has_a_policy_and_loads_nothing() -> None:
    html = render_report(*make_case())
    parsed = Page(html)
    assert parsed.open == []
    policy = next(attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object"} == set()
    attributes = {name for _, attrs in parsed.tags for name in attrs}
    assert not {name for name in attributes if name in ("src", "href", "srcset", "style") or name.startswith("on")}
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html


def test_headings_come_in_order_and_drawings_have_names() -> None:
    parsed = page(make_case())
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    drawings = [attrs for tag, attrs in parsed.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(drawings) >= 8
    assert all(attrs["aria-label"] and attrs["viewbox"] for attrs in drawings)
    assert {attrs["width"] for attrs in drawings} >= {f"{WIDE:g}", f"{NARROW:g}"}


def test_text_from_users_is_escaped() -> None:
    job, result, trials, sensitivity, names = make_case(outcome="missed")
    evil = {name: f"{name}{EVIL}" for name in names}
    failed = next(t for t in trials if t.error)
    trials[failed.number] = failed.model_copy(update={"error": TrialFailure(type=EVIL, message=EVIL, step=EVIL)})
    best = result.best.model_copy(update={"notes": (EVIL,), "layers": {evil[k]: EVIL for k in result.best.layers}})
    fields = {"name": EVIL, "notes": (EVIL,), "blame": (EVIL,), "advice": (EVIL,), "summary": EVIL, "best": best}
    fields |= {"job_id": EVIL, "stop_reason": EVIL, "phases": {EVIL: 1.0}, "rows": {EVIL: 1}, "environment": {EVIL: EVIL}}
    sensitivity = [row.model_copy(update={"layer": evil[row.layer], "op": EVIL, "scheme": EVIL}) for row in sensitivity]
    job = job.model_copy(update={"name": EVIL, "model": EVIL})
    html = render_report(job, result.model_copy(update=fields), trials, sensitivity, list(evil.values()))
    assert "<script" not in html
    assert Page(html).text.count("<script>alert(") >= 20


@pytest.mark.parametrize(
    ("outcome", "sign", "words"),
    [("met", "✓", "Target met"), ("missed", "✗", "Target missed"), ("undecided", "?", "Undecided"), ("nothing", "=", "Nothing gained")],
)
def test_the_verdict_stands_first(outcome: str, sign: str, words: str) -> None:
    case = make_case(outcome=outcome)
    parsed = page(case)
    assert verdict_mark(case.result) == outcome
    assert f"{sign} {words} {case.result.summary}" in parsed.text
    assert parsed.count("div", outcome) == 1
    assert ("takes about 12,400 holdout rows; there are 4,988." in parsed.text) == (outcome == "undecided")
    assert "top1 may get worse by at most 0.01 of its value, with 95% confidence" in parsed.text


def test_original_and_best_are_compared_in_units() -> None:
    text = page(make_case()).text
    for words in (
        "top1 higher is better, 5,000 holdout rows 91.83 % ± 0.39 % 91.47 % ± 0.40 % 0.36 points worse",
        "0.612 ms 0.400 ms 1.53× faster (1.49× to 1.57×, 95 % interval)",
        "File size 1.05 MiB 298 KiB 27.6 % of the original, 3.63× smaller",
        "Multiply-accumulates (MACs) 40.6 M 40.6 M unchanged",
        "Parameters 272 k 272 k unchanged",
        "Peak memory 8.97 MiB 2.47 MiB 27.6 % of the original",
        "0.39 % worse at least −0.02 %, at most 0.80 % (each with 97.5 % confidence)",
    ):
        assert words in text


def test_a_speed_that_could_be_noise_is_not_claimed() -> None:
    text = page(make_case().with_best(speedup=Interval(value=1.02, lower=0.97, upper=1.06))).text
    assert "no measurable difference (0.97× to 1.06×, 95 % interval)" in text
    assert "1.02× faster" not in text


def test_every_trial_is_a_mark_of_its_kind() -> None:
    case = make_case(trials=40, layers=12)
    trials, chart = case.trials, render_report(*case).partition("What accuracy costs")[2].partition("</svg>")[0]
    expected = {
        "feasible": sum(t.feasible for t in trials),
        "stopped": sum(t.state == TrialState.STOPPED for t in trials),
        "failed": sum(t.state == TrialState.FAILED for t in trials),
    }
    assert min(expected.values()) > 0
    for kind, count in expected.items():
        assert len(re.findall(rf'class="mark {kind}\b', chart)) == count
    hollow = sum(t.speedup is None and t.state != TrialState.FAILED for t in trials)
    assert len(re.findall(r'class="mark \w+ hollow"', chart)) == hollow > 0
    assert chart.count('class="ring"') == 1
    assert "1 trial with a larger drop than the axis shows: drawn on its top edge." in page(case).text
    assert "target: at most 1.00\u00a0%" in chart


def test_latency_of_untimed_trials_is_predicted_from_the_layers() -> None:
    case = make_case()
    untimed = next(t for t in case.trials if t.speedup is None and t.state != TrialState.FAILED)
    compressed = [row for row in case.sensitivity if untimed.assignment[row.layer] != "float"]
    saved = sum((row.float_ms or 0) - (row.scheme_ms or 0) for row in compressed)
    assert saved > 0.01 and sum(row.float_ms or 0 for row in case.sensitivity) < 0.6124
    assert f"{number(0.6124 - saved)} ms (predicted)" in page(case).text
    assert f"~{number(0.6124 - saved)} ms" in page(case).text


def test_the_charts_follow_the_objective() -> None:
    case = make_case().with_job(objectives=("size",))
    html, text = render_report(*case), page(case).text
    assert "against file size for 11 trials" in html
    assert "Best file size: times smaller than the original so far" in text
    assert "Further down is more accurate; further left is smaller." in text
    assert "(predicted)" not in text


def test_the_strip_shows_every_layer_with_its_choice() -> None:
    case = make_case(layers=22)
    html = render_report(*case)
    strip = html.partition("The best plan, layer by layer")[2].partition("</svg>")[0]
    titles = re.findall(r"<title>(\d+)\. ([^:]+(?::Add)?): ([^<]+)</title>", strip)
    chosen = case.trials[case.result.best.trial].assignment
    assert [(name, scheme) for _, name, scheme in titles] == [(name, chosen[name]) for name in case.names]


def test_sensitivity_shows_the_worst_25_in_order_and_all_in_a_table() -> None:
    case = make_case(layers=60)
    html = render_report(*case).partition("How sensitive each layer is")[2]
    worst = sorted(case.sensitivity, key=lambda row: -row.divergence)
    drawn = re.findall(r"<title>(\S+) \(", html.partition("</svg>")[0])
    assert drawn == [row.layer for row in worst[:25]]
    assert re.findall(r'<th scope="row">(node\S*|op:Add)</th>', html) == [row.layer for row in worst]


def test_failed_trials_notes_blame_and_advice_are_listed() -> None:
    text = page(make_case(outcome="missed")).text
    for words in (
        "12 rows of the holdout also occur in validation and were taken out",
        "1 failed trial",
        "session TrialError: the session did not load: bad_alloc",
        "node_conv2d: 41% of the predicted harm",
        "allow a larger drop: this model needs max_drop 0.034",
        "2 candidates were shown to the holdout; the confidence is corrected for that number.",
        "Why the search stopped: the budget of 12 trials is spent.",
    ):
        assert words in text


def test_how_to_repeat_quotes_the_model_and_names_seed_and_digest() -> None:
    case = make_case()
    text = page(case).text
    assert "tuner run job.json --out again" in text
    assert "tuner apply best.plan.json '/data/models/resnet 20.onnx' -o best.onnx" in text
    assert f"Seed 7 Plan, SHA-256 {case.result.best.plan_digest}" in text
    assert "search 5 min 31 s 80 %" in text


def test_a_long_history_is_cut_and_says_where_the_rest_is() -> None:
    case = make_case(trials=230)
    html = render_report(*case)
    assert "The other 30 trials are in trials.csv" in Page(html).text
    assert len(re.findall(r"<tr><td class=\"n\">\d+</td><td>(?:met|missed|stopped|failed)<", html)) == 200


def test_a_job_without_trials_rows_or_layers_still_has_a_report() -> None:
    bare = make_case(outcome="nothing").with_result(phases={}, environment={}, rows={}, notes=(), trials={"total": 0})
    text = page(bare._replace(trials=[], sensitivity=[], names=[])).text
    assert text.count("Nothing to draw") == 8
    assert "Nothing fell back to anything else." in text


def test_a_limit_draws_its_target_where_the_verdicts_put_it() -> None:
    limit = Constraint(metric="top1", at_least=0.909, confidence=0.95)
    html = render_report(*make_case().with_job(constraints=(limit,)))  # upper - violation is 0.01 in every trial
    assert "target: at most 1.00\u00a0points" in html
    assert "top1 must be at least 0.909" in html


def test_several_targets_each_have_a_row() -> None:
    case = make_case()
    over = Verdict(metric="size_bytes", drop=5118, lower=5118, upper=5118, confidence=1, decision="missed", violation=0.017)
    case = case.with_job(constraints=(*case.job.constraints, Constraint(metric="size_bytes", at_most=300_000)))
    text = page(case.with_best(verdicts=(*case.result.best.verdicts, over))).text
    assert "size_bytes must be at most 300000 5.00 KiB over the limit ✗ missed" in text
    assert "✓ met size_bytes" in text


def test_verdicts_on_one_metric_belong_to_its_constraints_in_order() -> None:
    case = make_case()
    limit = Constraint(metric="top1", at_least=0.93)
    missed = case.result.best.verdicts[0].model_copy(update={"decision": "missed"})
    case = case.with_job(constraints=(*case.job.constraints, limit)).with_best(verdicts=(*case.result.best.verdicts, missed))
    assert re.search(r"✓ met top1 must be at least 0.93 .{60,90} ✗ missed", page(case).text)
