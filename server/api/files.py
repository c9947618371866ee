"""Models and data sets: upload, list, look at, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from server.api.answers import json_of, located, problems, ready
from server.api.guards import Submitter, Viewer, may_change
from server.api.paths import Cursor, FileId, Limit, Sha256
from server.api.services import ServicesDep
from server.api.uploads import DATASETS, MAX_NAME, MODELS, Kind, take
from server.auth import Caller
from tuner.wire import DatasetView, LayerView, ModelView, Page

router = APIRouter()
Name = Annotated[str, Query(max_length=4 * MAX_NAME, description="What people will see; it decides nothing.")]

LAYERS = TypeAdapter(tuple[LayerView, ...])
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
UPLOAD = problems(400, 408, 413, 415)


def body(*media_types: str) -> dict[str, Any]:
    """How OpenAPI shows a body that is read as a stream."""
    return {"requestBody": {"required": True, "content": dict.fromkeys(media_types, BINARY)}}


@router.post(
    "/models",
    tags=["models"],
    status_code=201,
    responses={**json_of(ModelView, "Stored.", 201), **json_of(ModelView, "These bytes were here already."), **UPLOAD},
    openapi_extra=body("application/octet-stream"),
)
async def upload_model(request: Request, services: ServicesDep, caller: Submitter, name: Name = "model.onnx") -> Response:
    """Send an ONNX model as the body. The same bytes always have the same id."""
    return await _upload(request, services, caller, MODELS, name)


@router.get("/models", tags=["models"], responses=json_of(Page[ModelView], "Newest first."))
def list_models(services: ServicesDep, _: Viewer, cursor: Cursor = None, limit: Limit = 50, sha256: Sha256 = None) -> Response:
    """The models that the server keeps."""
    return ready(services.files.models(cursor=cursor, limit=limit, sha256=sha256))


@router.get("/models/{model_id:id}", tags=["models"], responses={**json_of(ModelView, "The model."), **problems(404)})
def show_model(model_id: FileId, services: ServicesDep, _: Viewer) -> Response:
    """What is known of a model."""
    return ready(services.files.model(model_id))


@router.get(
    "/models/{model_id:id}/layers", tags=["models"], responses={**json_of(tuple[LayerView, ...], "In graph order."), **problems(404)}
)
def list_layers(model_id: FileId, services: ServicesDep, _: Viewer) -> Response:
    """A model's layers: parameters, MACs, and whether each can be quantized."""
    return ready(LAYERS.dump_json(services.files.layers(model_id)))


@router.delete("/models/{model_id:id}", tags=["models"], status_code=204, responses=problems(404, 409))
def delete_model(model_id: FileId, services: ServicesDep, caller: Submitter) -> Response:
    """Forget a model that no job needs any more."""
    may_change(caller, services.files.model(model_id).owner)
    services.files.delete(model_id)
    return Response(status_code=204)


@router.post(
    "/datasets",
    tags=["datasets"],
    status_code=201,
    responses={**json_of(DatasetView, "Stored.", 201), **json_of(DatasetView, "These bytes were here already."), **UPLOAD},
    openapi_extra=body("application/octet-stream", "application/zip", "application/vnd.apache.parquet"),
)
async def upload_dataset(request: Request, services: ServicesDep, caller: Submitter, name: Name = "data.npz") -> Response:
    """Send an .npz or .parquet file as the body. The same bytes always have the same id."""
    return await _upload(request, services, caller, DATASETS, name)


@router.get("/datasets", tags=["datasets"], responses=json_of(Page[DatasetView], "Newest first."))
def list_datasets(services: ServicesDep, _: Viewer, cursor: Cursor = None, limit: Limit = 50, sha256: Sha256 = None) -> Response:
    """The data that the server keeps."""
    return ready(services.files.datasets(cursor=cursor, limit=limit, sha256=sha256))


@router.get("/datasets/{dataset_id:id}", tags=["datasets"], responses={**json_of(DatasetView, "The data."), **problems(404)})
def show_dataset(dataset_id: FileId, services: ServicesDep, _: Viewer) -> Response:
    """What is known of a data file: its arrays, their dtypes and shapes."""
    return ready(services.files.dataset(dataset_id))


@router.delete("/datasets/{dataset_id:id}", tags=["datasets"], status_code=204, responses=problems(404, 409))
def delete_dataset(dataset_id: FileId, services: ServicesDep, caller: Submitter) -> Response:
    """Forget data that no job needs any more."""
    may_change(caller, services.files.dataset(dataset_id).owner)
    services.files.delete(dataset_id)
    return Response(status_code=204)


async def _upload(request: Request, services: ServicesDep, caller: Caller, kind: Kind, name: str) -> Response:
    view, created = await take(request, services, caller, kind, name)
    location = located(request, f"/{kind.path}/{view.id}")
    return ready(view, 201 if created else 200, {"Location": location})
