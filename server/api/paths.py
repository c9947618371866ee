"""What may stand in a path or a query: anything else is not found, or refused, before a handler sees it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query
from starlette.convertors import Convertor, register_url_convertor

ID = "[A-Za-z0-9-]{1,64}"
ARTIFACT = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,3}"
NUMBER = "[0-9]{1,9}"
JOB_NAME = "[A-Za-z0-9][A-Za-z0-9._ -]{0,99}"
MAX_PAGE = 200


class IdConvertor(Convertor[str]):
    """`{…:id}`: an id that this server could have made."""

    regex = ID

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class ArtifactConvertor(IdConvertor):
    """`{…:artifact}`: the name of a job's file."""

    regex = ARTIFACT


class NumberConvertor(Convertor[int]):
    """`{…:number}`: the number of a trial."""

    regex = NUMBER

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("id", IdConvertor())
register_url_convertor("artifact", ArtifactConvertor())
register_url_convertor("number", NumberConvertor())

JobId = Annotated[str, Path(pattern=f"^{ID}$", description="The id that `POST /jobs` answered.", examples=["20261121-101530-0a3f93fa9"])]
FileId = Annotated[str, Path(pattern=f"^{ID}$", description="The id that the upload answered.", examples=["mdl-0f3a9c1e77b24d58"])]
TrialNumber = Annotated[int, Path(ge=0, le=999_999_999, description="The trial's number, from 0.")]
ArtifactName = Annotated[str, Path(pattern=f"^{ARTIFACT}$", description="A name from the list of artefacts.", examples=["best.onnx"])]
Cursor = Annotated[
    str | None, Query(pattern=r"^[A-Za-z0-9_=-]{1,512}$", description="`next` of the page before; left out: the first page.")
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many items a page has at most.")]
Sha256 = Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="Only the file with these bytes.")]
Order = Literal["asc", "desc"]
