"""Resumable uploads, and datasets and corpora made from them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from pydantic import ConfigDict, Field, StringConstraints

from services.api.auth import Tenant
from services.api.forms import by_field
from services.api.intake import PARTS, add_corpus, add_dataset
from services.api.parts import Parts, PartsDep, RequestBody, problems, request_body
from services.api.routes.corpora import CorpusBody
from services.api.routes.datasets import created
from services.api.views import load_view
from tlm_core.artifacts.hashing import digest_of
from tlm_core.errors import NotFound
from tlm_core.tasks.options import DatasetOptions
from tlm_core.wire import CorpusLoad, DatasetCreated, Upload

router = APIRouter(tags=["uploads"])

_PART = request_body("application/octet-stream", {"type": "string", "format": "binary"}, "bytes")


class UploadBody(RequestBody):
    """A file to upload. The extension of `name` determines the file type. size: in bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "train.csv.gz", "size": 83_886_080}]})

    name: str = Field(min_length=1, max_length=300)
    size: int = Field(ge=1)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="Verified when the upload is complete.")


class DatasetOfUploads(RequestBody):
    """A dataset to create from complete uploads. files: split → upload id. options: see POST /v1/datasets/hub."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "reviews", "files": {"train": "upl_1", "test": "upl_2"}}]}
    )

    name: str = Field(max_length=200)
    files: dict[Annotated[str, StringConstraints(pattern=rf"^({'|'.join(PARTS)})$")], str] = Field(min_length=1)
    options: DatasetOptions = DatasetOptions()


class CorpusOfUploads(CorpusBody):
    """A corpus, or its next version, to create from complete uploads."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "docs", "files": ["upl_1"]}]})

    files: tuple[str, ...] = Field(min_length=1, max_length=1000)


@router.post("/v1/uploads", status_code=201, summary="Create an upload", responses=problems(413, 415, 507))
def create(body: UploadBody, parts: PartsDep, tenant: Tenant) -> Upload:
    """Create a resumable upload for a large file. Then send its parts in order."""
    return parts.uploads.create(tenant, body.name, body.size, body.sha256)


@router.get("/v1/uploads/{upload}", summary="Get an upload", responses=problems(404))
def get(upload: str, parts: PartsDep, tenant: Tenant) -> Upload:
    """Return the progress of an upload. The next part begins at `offset`."""
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
    """Store a part durably. If the part does not begin at `offset`, return 409 with the expected `offset`."""
    return await parts.uploads.put(tenant, upload, content_range, request.stream())


@router.delete("/v1/uploads/{upload}", status_code=204, summary="Delete an upload", responses=problems(404))
def delete(upload: str, parts: PartsDep, tenant: Tenant) -> Response:
    """Delete an upload and the parts received so far."""
    parts.uploads.get(tenant, upload)
    parts.uploads.delete(tenant, upload)
    return Response(status_code=204)


@router.post(
    "/v1/datasets/from-uploads",
    status_code=201,
    summary="Create a dataset from uploads",
    responses=problems(404, 409, 413, 415, 507),
)
def dataset(body: DatasetOfUploads, parts: PartsDep, tenant: Tenant) -> DatasetCreated:
    """Validate complete uploads, store them as a dataset, and delete the uploads. After an error, the uploads stay.

    For seven days, an equal request returns the same dataset.
    """
    request = digest_of(body.model_dump(mode="json"))
    try:
        with parts.uploads.files(tenant, list(body.files.items())) as files:
            record = add_dataset(parts, tenant, body.name, by_field(files), body.options, request)
    except NotFound as error:
        record = parts.catalog.dataset(tenant, _created_before(parts, tenant, request, error))
    return created(parts, record)


@router.post(
    "/v1/corpora/from-uploads",
    status_code=202,
    summary="Create a corpus from uploads",
    responses=problems(404, 409, 413, 415, 507),
)
def corpus(body: CorpusOfUploads, parts: PartsDep, tenant: Tenant) -> CorpusLoad:
    """Create a corpus load from complete uploads and return it. The service then splits and indexes their texts.

    For seven days, an equal request returns the same load.
    """
    request = digest_of(body.model_dump(mode="json"))
    try:
        with parts.uploads.files(tenant, [("files", upload) for upload in body.files]) as files:
            load = add_corpus(parts, tenant, body.name, body.language, files, body.near_duplicates, request=request)
    except NotFound as error:
        load = parts.catalog.load(tenant, _created_before(parts, tenant, request, error))
    return load_view(load)


def _created_before(parts: Parts, tenant: str, request: str, error: NotFound) -> str:
    """Return the id of the dataset or load that an equal earlier request created, or raise `error`.

    error: states that an upload is unknown. An earlier request that succeeded has deleted the uploads.
    """
    created_id = parts.catalog.created_by(tenant, request)
    if created_id is None:
        raise error
    return created_id
