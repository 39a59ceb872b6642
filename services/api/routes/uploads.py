"""Uploads in parts, and data sets and corpora made of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.api.auth import Tenant
from services.api.datasets import PARTS
from services.api.parts import PartsDep, problems
from services.api.routes.corpora import CorpusBody, take_in
from services.api.routes.datasets import OptionsBody, created, intake
from services.api.uploads import single
from services.api.views import load_view
from tlm_core.wire import CorpusLoad, DatasetCreated, Upload

router = APIRouter(tags=["uploads"])

_PART: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}, "example": "bytes"}},
    }
}


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UploadBody(_Body):
    """A file that will be sent. name: its ending tells the type."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "train.csv.gz", "size": 83_886_080}]})

    name: str = Field(min_length=1, max_length=300)
    size: int = Field(ge=1)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="checked when all has arrived")


class DatasetOfUploads(_Body):
    """A data set of uploads that have arrived whole; options as for POST /v1/datasets/hub."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "reviews", "files": {"train": "upl_1", "test": "upl_2"}}]}
    )

    name: str = Field(max_length=200)
    files: dict[Annotated[str, StringConstraints(pattern=rf"^({'|'.join(PARTS)})$")], str] = Field(min_length=1)
    options: OptionsBody = OptionsBody()


class CorpusOfUploads(CorpusBody):
    """A corpus, or its next version, of uploads that have arrived whole."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "docs", "files": ["upl_1"]}]})

    files: tuple[str, ...] = Field(min_length=1, max_length=1000)


@router.post("/v1/uploads", status_code=201, summary="Begin an upload", responses=problems(413, 507))
def create(body: UploadBody, parts: PartsDep, tenant: Tenant) -> Upload:
    """For files too large to be sent again when the connection breaks. Then put its parts."""
    return parts.uploads.create(tenant, body.name, body.size, body.sha256)


@router.get("/v1/uploads/{upload}", summary="How far an upload is", responses=problems(404))
def get(upload: str, parts: PartsDep, tenant: Tenant) -> Upload:
    """`offset` is where the next part begins."""
    return parts.uploads.get(tenant, upload)


@router.put(
    "/v1/uploads/{upload}",
    summary="Send the next part",
    openapi_extra=_PART,
    responses=problems(400, 404, 409, 413, 507),
)
async def put(
    upload: str,
    request: Request,
    parts: PartsDep,
    tenant: Tenant,
    content_range: Annotated[str | None, Header(description="bytes FIRST-LAST/SIZE")] = None,
) -> Upload:
    """Durable when it is answered. A part that begins elsewhere than at `offset` is a 409 that tells the offset."""
    return await parts.uploads.put(tenant, upload, content_range, request.stream())


@router.delete("/v1/uploads/{upload}", status_code=204, summary="Give an upload up", responses=problems(404))
def delete(upload: str, parts: PartsDep, tenant: Tenant) -> Response:
    """Forget it and what has arrived of it."""
    parts.uploads.get(tenant, upload)
    parts.uploads.delete(tenant, upload)
    return Response(status_code=204)


@router.post(
    "/v1/datasets/from-uploads",
    status_code=201,
    summary="Make a data set of uploads",
    responses=problems(404, 409, 413, 507),
)
def dataset(body: DatasetOfUploads, parts: PartsDep, tenant: Tenant) -> DatasetCreated:
    """Checked as an upload in one piece is. The uploads are over when it is made, and stay if it is refused."""
    with parts.uploads.files(tenant, list(body.files.items())) as files:
        record = intake(parts).files(tenant, body.name, single(files), body.options.options())
    return created(parts, record)


@router.post(
    "/v1/corpora/from-uploads",
    status_code=202,
    summary="Make a corpus of uploads",
    responses=problems(404, 409, 413, 507),
)
def corpus(body: CorpusOfUploads, parts: PartsDep, tenant: Tenant) -> CorpusLoad:
    """Cutting and indexing follow, as after an upload in one piece."""
    with parts.uploads.files(tenant, [("files", one) for one in body.files]) as files:
        load = take_in(parts, tenant, body.name, body.language, tuple(files), body.near_duplicates)
    parts.loads.wake()
    return load_view(load)
