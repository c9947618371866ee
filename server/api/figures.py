"""Figures of a job's history, drawn by Optuna, as Plotly's JSON: whatever shows Plotly figures can show them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import TypeAdapter

from server.api.answers import file_of, json_of, problems, ready, slowly
from server.api.drawings import FIGURES, drawing
from server.api.guards import Viewer
from server.api.paths import ID, JobId
from server.api.services import ServicesDep
from tuner.wire import FigureView

LIST = TypeAdapter(tuple[FigureView, ...]).dump_json(FIGURES)
FigureName = Annotated[str, Path(pattern=f"^{ID}$", description="A name from the list of figures.", examples=["history"])]

router = APIRouter(tags=["results"], prefix="/jobs/{job_id:id}")


@router.get("/figures", responses={**json_of(list[FigureView], "All figures."), **problems(404)})
def list_figures(job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """The figures that can be drawn of a job's trials. Which of them it has enough trials for is told by each."""
    services.jobs.row_state(job_id)
    return ready(LIST)


@router.get("/figures/{name:id}", responses={**file_of("Plotly's `data` and `layout`.", "application/json"), **problems(404, 409)})
async def show_figure(job_id: JobId, name: FigureName, services: ServicesDep, _: Viewer) -> Response:
    """One figure, without fixed colours for paper and text. It shows at most 600 trials: the best, and others evenly spread."""
    return ready(await slowly(drawing, services, job_id, name))
