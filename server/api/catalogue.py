"""What this server can do, straight from the registries."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from search_spaces.capability import RuntimeTarget, known_targets, load_target
from search_spaces.presets import load_preset, preset_names
from search_spaces.schemes import Frozen
from search_spaces.space import SpaceSpec
from server.api.answers import json_of, matches, ready
from server.api.guards import Viewer
from server.api.passes import PassView, passes
from tuner.data.metrics import METRICS, top
from tuner.results import Direction
from tuner.search.base import STRATEGIES
from tuner.search.catalogue import load_strategies

router = APIRouter(tags=["catalogue"])


class StrategyView(Frozen):
    """A way to search, as `strategy` of a job names it."""

    name: str
    summary: str


class MetricView(Frozen):
    """A measure of how well a model does, as `metrics` and constraints name it. top<k> is known for every k."""

    name: str
    summary: str
    direction: Direction
    needs_labels: bool
    per_row: bool
    """A mean over rows: it has paired bounds, and its trials can end early."""
    lowest: float | None
    highest: float | None
    """What one row (or the split, for others) can score; null where there is no bound."""


@router.get("/spaces", responses=json_of(list[SpaceSpec], "The presets; a job may also write a space out."))
def list_spaces(request: Request, _: Viewer) -> Response:
    """The search spaces that have a name."""
    return _cached(request, spaces)


@router.get("/strategies", responses=json_of(list[StrategyView], "All strategies."))
def list_strategies(request: Request, _: Viewer) -> Response:
    """The strategies of search."""
    return _cached(request, strategies)


@router.get("/metrics", responses=json_of(list[MetricView], "All metrics."))
def list_metrics(request: Request, _: Viewer) -> Response:
    """The metrics that a job can measure and limit."""
    return _cached(request, metrics)


@router.get("/passes", responses=json_of(list[PassView], "All passes."))
def list_passes(request: Request, _: Viewer) -> Response:
    """The steps that plans are made of."""
    return _cached(request, passes)


@router.get("/capabilities", responses=json_of(list[RuntimeTarget], "All runtimes."))
def list_capabilities(request: Request, _: Viewer) -> Response:
    """What each runtime executes on quantized data, and why the rest is never offered."""
    return _cached(request, capabilities)


def spaces() -> list[SpaceSpec]:
    return [load_preset(name) for name in preset_names()]


def strategies() -> list[StrategyView]:
    load_strategies()
    return [StrategyView(name=name, summary=_summary(STRATEGIES[name])) for name in STRATEGIES]


def metrics() -> list[MetricView]:
    return [_metric(name) for name in METRICS]


def capabilities() -> list[RuntimeTarget]:
    return [load_target(runtime) for runtime in known_targets()]


def _metric(name: str) -> MetricView:
    metric = METRICS[name]
    low, high = metric.bounds or (None, None)
    return MetricView(
        name=name,
        summary=_summary(top if isinstance(metric.score, partial) else metric.score or metric.summary),
        direction=metric.direction,
        needs_labels=metric.needs_labels,
        per_row=metric.score is not None,
        lowest=low,
        highest=high,
    )


def _summary(function: object) -> str:
    """The first paragraph of what a function says about itself; empty where it says nothing."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


@cache
def _answer(build: Callable[[], list[Any]]) -> tuple[bytes, str]:
    """The answer and its ETag; registries do not change while the server runs."""
    body = TypeAdapter(list[Any]).dump_json(build())
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _cached(request: Request, build: Callable[[], list[Any]]) -> Response:
    body, etag = _answer(build)
    headers = {"ETag": etag, "Cache-Control": "private, max-age=60"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return ready(body, headers=headers)
