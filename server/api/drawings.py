"""A job's figures as JSON: which there are, and how each is drawn."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from server.api.quantities import history_of
from server.store.database import Conflict, NotFound
from tuner.errors import unknown_name
from tuner.verdict import spelled_out
from tuner.wire import SETTLED, FigureView

if TYPE_CHECKING:
    from server.api.services import Services

FEWEST = 10
"""Trials below which it is chance which layers seem to decide."""
FIGURES = (
    FigureView(
        name="history",
        title="Progress of the search",
        caption="The first objective of every trial, and the best among those that met the target so far.",
    ),
    FigureView(
        name="importances",
        fewest=FEWEST,
        title="Layers that decide the accuracy",
        caption="How much the choice for each layer decided whether a trial was in the half that lost less accuracy (PED-ANOVA).",
    ),
    FigureView(
        name="slice",
        fewest=FEWEST,
        title="What each option costs",
        caption="The accuracy that each trial lost by its choice for the most important layers, at most six; open marks missed the target.",
    ),
    FigureView(
        name="contour",
        fewest=FEWEST,
        title="The two most important layers together",
        caption="The least accuracy lost with each pair of choices; between the marks it is interpolated.",
    ),
    FigureView(
        name="parallel",
        fewest=FEWEST,
        title="Choices side by side",
        caption="One line per trial through the accuracy it lost and its choices for the most important layers; up to 200 trials.",
    ),
    FigureView(
        name="front",
        title="Accuracy against cost",
        caption="Every trial's loss of accuracy against its cost, and the front of those that no other beats in both.",
    ),
    FigureView(
        name="timeline",
        title="When each trial ran",
        caption="One bar per trial; a finalist that was scored again on all rows stands where that was done.",
    ),
)


def drawing(services: Services, job_id: str, name: str) -> str:
    """A figure as JSON. NotFound: job or figure is not known; Conflict: the job has not found out enough."""
    if name not in {figure.name for figure in FIGURES}:
        raise NotFound(unknown_name("figure", name, [figure.name for figure in FIGURES]))
    key = (job_id, name, services.jobs.row_state(job_id), services.trials.finished(job_id))
    text = services.drawn.get(key)
    if text is None:
        text = _drawn(services, job_id, name)
        services.drawn.put(key, text)
    return text


def _drawn(services: Services, job_id: str, name: str) -> str:
    # Not above: Optuna and Plotly are slow to load, and most servers are never asked for a figure.
    from tuner.search.figures import MOST_TRIALS, NothingToDraw, draw

    job = services.jobs.view(job_id)
    recorded = services.trials.recorded(job_id, MOST_TRIALS)
    history = history_of(spelled_out(job.spec, job.progress.metrics), recorded, services.database.now())
    try:
        return json.dumps(draw(name, history), separators=(",", ":"), allow_nan=False)
    except NothingToDraw as reason:
        way_out = "Look at another one" if job.state in SETTLED else "Ask again once more trials are finished, or look at another one"
        others = f"{way_out}: GET /api/v1/jobs/{job_id}/figures"
        raise Conflict(f"figure '{name}' of job '{job_id}' cannot be drawn: {reason}. {others}") from None
