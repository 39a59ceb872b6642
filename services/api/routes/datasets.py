"""Datasets: upload with validation, versions by name, report, preview."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from services.api.auth import Tenant
from services.api.forms import by_field, receive_form
from services.api.intake import PARTS, add_dataset, add_hub_dataset, parse_options
from services.api.job_artifacts import file_response
from services.api.parts import FILE_ANSWERS, AfterId, Limit, Parts, PartsDep, RequestBody, form_body, problems
from services.api.removal import delete_dataset
from services.api.views import dataset_view
from services.common.catalog_records import DatasetRecord
from tlm_core.artifacts import FileEntry
from tlm_core.tasks.options import DatasetOptions
from tlm_core.wire import Dataset, DatasetCreated, Items, JsonObject, Page

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_FILE = {"type": "string", "format": "binary"}
_FORM = form_body(
    {
        "name": {"type": "string"},
        "options": {"type": "string", "description": "JSON, like `options` of POST /v1/datasets/hub."},
        **dict.fromkeys(("train", "validation", "test"), _FILE),
        "test_other": {**_FILE, "description": "Additional test set: `test_` and a suffix of letters."},
        "selection": {**_FILE, "description": "Passages (text, rank) for the selector `given`."},
        "file": {**_FILE, "description": "Instead of `train`: all rows. The service splits them."},
    },
    ["name"],
    {"name": "reviews", "options": '{"label_column": "stars"}', "train": "@train.csv", "test": "@test.csv"},
)


class HubBody(RequestBody):
    """A dataset of the Hugging Face hub."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "sciie", "hub": "yxchar/sciie-tlm", "options": {}}]}
    )

    name: str
    hub: str = Field(description="OWNER/NAME, optionally with @REVISION and :CONFIG", max_length=300)
    options: DatasetOptions = DatasetOptions()
    selection: str | None = Field(
        None, max_length=300, description="a file of the dataset with passages for the selector `given`"
    )


@router.post(
    "", status_code=201, summary="Upload a dataset", openapi_extra=_FORM, responses=problems(400, 413, 415, 507)
)
async def create(request: Request, parts: PartsDep, tenant: Tenant) -> DatasetCreated:
    """Validate and store a dataset. For an existing name, the dataset becomes the newest version of this name.

    If the validation fails, nothing is stored. The response then lists the first 100 errors of each code, and `detail`
    counts all errors.
    """
    async with receive_form(parts, request, fields=("name", "options"), files=PARTS) as form:
        name, options = form.field("name"), parse_options(form.field("options", "{}"))
        record = await run_in_threadpool(add_dataset, parts, tenant, name, by_field(form.files), options)
    return await run_in_threadpool(created, parts, record)


@router.post("/hub", status_code=201, summary="Import a dataset from the hub", responses=problems(404, 413, 415, 507))
def create_from_hub(body: HubBody, parts: PartsDep, tenant: Tenant) -> DatasetCreated:
    """Download a dataset, validate it, and store its texts and labels. The service does not run code of the dataset."""
    record = add_hub_dataset(parts, tenant, body.name, body.hub, body.options, body.selection)
    return created(parts, record)


@router.get("", summary="List datasets", responses=problems())
def list_all(parts: PartsDep, tenant: Tenant, after: AfterId = None, limit: Limit = 20) -> Page[Dataset]:
    """Return every version of every dataset, newest first."""
    records, has_more = parts.catalog.datasets(tenant, after=after, limit=limit)
    return Page(data=tuple(map(dataset_view, records)), has_more=has_more)


@router.get("/{dataset}", summary="Get a dataset", responses=problems(404))
def get(dataset: str, parts: PartsDep, tenant: Tenant) -> Dataset:
    """Return a dataset by id, name (newest version), `NAME@vNUMBER`, or `NAME@` and 8 or more digits of its digest."""
    return dataset_view(parts.catalog.dataset(tenant, dataset))


@router.get("/{dataset}/report", summary="Get the validation report", responses=problems(404))
def report(dataset: str, parts: PartsDep, tenant: Tenant) -> dict[str, object]:
    """Return warnings, labels, text lengths, duplicates, overlap of the splits, and inferred settings with reasons."""
    return parts.artifacts.read_json(parts.catalog.dataset(tenant, dataset).report, "report.json")


@router.get("/{dataset}/preview", summary="Preview the rows", responses=problems(404))
def preview(dataset: str, parts: PartsDep, tenant: Tenant) -> Items[JsonObject]:
    """Return the first rows of train, as the service read them."""
    content = parts.artifacts.read_json(parts.catalog.dataset(tenant, dataset).report, "report.json")
    return Items[JsonObject](data=tuple(content.get("preview", ())))


@router.get("/{dataset}/files", summary="List the files of a dataset", responses=problems(404))
def files(dataset: str, parts: PartsDep, tenant: Tenant) -> Page[FileEntry]:
    """Return the uploaded files, named by their split, with size and SHA-256."""
    record = parts.catalog.dataset(tenant, dataset)
    return Page(data=parts.artifacts.manifest(record.raw).files, has_more=False)


@router.get(
    "/{dataset}/files/{name:path}",
    summary="Download a file of a dataset",
    response_class=FileResponse,
    responses=FILE_ANSWERS,
)
def file(dataset: str, name: str, parts: PartsDep, tenant: Tenant) -> FileResponse:
    """Return a file. Supports Range, If-Range and ETag. X-Checksum-SHA256 is the digest of the whole file."""
    return file_response(parts.artifacts, parts.catalog.dataset(tenant, dataset).raw, name)


@router.delete("/{dataset}", status_code=204, summary="Delete a dataset", responses=problems(404, 409))
def delete(
    dataset: str,
    parts: PartsDep,
    tenant: Tenant,
    with_jobs: Annotated[bool, Query(description="Delete its jobs and models too; 409 if a job has an alias.")] = False,
) -> Response:
    """Delete one version by id, `NAME@vNUMBER`, or name (newest version). Return 409 if an unfinished job uses it."""
    delete_dataset(parts, parts.catalog.dataset(tenant, dataset), with_jobs=with_jobs)
    return Response(status_code=204)


def created(parts: Parts, record: DatasetRecord) -> DatasetCreated:
    """Return a new dataset with its validation report."""
    content = parts.artifacts.read_json(record.report, "report.json")
    return DatasetCreated(**dataset_view(record).model_dump(), report=content)
