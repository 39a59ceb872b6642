"""Data sets: upload with a full check, versions by name, report, preview."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from services.api.auth import Tenant
from services.api.datasets import PARTS, Intake, check_dataset_name, report_of
from services.api.parts import FILE_ANSWERS, AfterId, Limit, Parts, PartsDep, problems
from services.api.removal import delete_dataset
from services.api.results import open_file
from services.api.uploads import received, single
from services.api.views import dataset_view
from services.common.bodies import UnsupportedJSON, check_json
from services.common.catalog_records import DatasetRecord
from services.common.problem import validation_problem
from tlm_core.artifacts import FileEntry
from tlm_core.errors import InvalidRequest
from tlm_core.tasks.metrics import METRICS
from tlm_core.tasks.options import DatasetOptions
from tlm_core.wire import Dataset, DatasetCreated, Items, JsonObject, Page

router = APIRouter(prefix="/v1/datasets", tags=["data sets"])

_FILE = {"type": "string", "format": "binary"}
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string"},
                        "options": {"type": "string", "description": "JSON, as `options` of POST /v1/datasets/hub"},
                        "train": _FILE, "validation": _FILE, "test": _FILE,
                        "test_other": {**_FILE, "description": "a further test set, beside test: test_ and letters"},
                        "selection": {**_FILE, "description": "passages (text, rank) for the selector 'given'"},
                        "file": {**_FILE, "description": "instead of train: all rows in one file, splits are cut"},
                    },
                },
                "example": {"name": "reviews", "options": '{"label_column": "stars"}', "train": "@train.csv",
                            "test": "@test.csv"},
            }
        },
    }
}  # fmt: skip


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"Unknown metric '{name}'. Valid metrics: {', '.join(METRICS)}.")
    return name


MetricName = Annotated[
    str, AfterValidator(_known_metric), Field(json_schema_extra=lambda schema: schema.update(enum=list(METRICS)))
]


class OptionsBody(BaseModel):
    """How to read a dataset. The gateway infers what is missing and gives the reason in the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_column: str | None = Field(None, max_length=200)
    text_pair_column: str | None = Field(None, max_length=200, description='column of second texts; "" for none')
    label_column: str | None = Field(None, max_length=200)
    delimiter: str | None = Field(None, description="one character, for CSV files")
    metric: MetricName | None = Field(None, description="pearson and spearman select regression")
    positive_label: str | None = Field(None, max_length=1000, description="the positive label of the metric f1")
    language: str | None = Field(None, pattern=r"^[a-z]{2,3}$", description="ISO 639 code")
    name: str | None = Field(None, max_length=200, description="name of the task in reports and on the model card")
    split_seed: int = Field(0, ge=0, lt=2**32, description="random seed of the splits that the gateway cuts")

    def options(self) -> DatasetOptions:
        return DatasetOptions(**self.model_dump())


class HubBody(BaseModel):
    """A dataset of the Hugging Face hub."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"name": "sciie", "hub": "yxchar/sciie-tlm", "options": {}}]},
    )

    name: str
    hub: str = Field(description="OWNER/NAME, optionally with @REVISION and :CONFIG", max_length=300)
    options: OptionsBody = OptionsBody()
    selection: str | None = Field(
        None, max_length=300, description="a file of the dataset with passages for the selector `given`"
    )


@router.post(
    "",
    status_code=201,
    summary="Upload a data set",
    openapi_extra=_FORM,
    responses=problems(400, 413, 415, 507),
)
async def create(request: Request, parts: PartsDep, tenant: Tenant) -> DatasetCreated:
    """Files go to disk as they come, are checked whole, and every fault is named; on a fault nothing is kept.

    The same name again makes a new version, which the name then means.
    """
    async with received(
        request,
        parts.settings.scratch,
        max_bytes=parts.settings.max_upload_bytes,
        fields=("name", "options"),
        files=PARTS,
    ) as upload:
        name = upload.field("name")
        check_dataset_name(name)
        options = parse_options(upload.field("options", "{}")).options()
        record = await run_in_threadpool(intake(parts).files, tenant, name, single(upload.files), options)
    return await run_in_threadpool(created, parts, record)


@router.post("/hub", status_code=201, summary="Take a data set from the hub", responses=problems(404, 413, 507))
def create_from_hub(body: HubBody, parts: PartsDep, tenant: Tenant) -> DatasetCreated:
    """Loads the data set (data files only; no code of it is run), checks it and keeps its texts and labels."""
    return created(parts, intake(parts).hub(tenant, body.name, body.hub, body.options.options(), body.selection))


@router.get("", summary="List data sets", responses=problems())
def list_all(parts: PartsDep, tenant: Tenant, after: AfterId = None, limit: Limit = 20) -> Page[Dataset]:
    """Every version of every data set, newest first."""
    records, more = parts.catalog.datasets(tenant, after=after, limit=limit)
    return Page(data=tuple(map(dataset_view, records)), has_more=more)


@router.get("/{dataset}", summary="One data set", responses=problems(404))
def get(dataset: str, parts: PartsDep, tenant: Tenant) -> Dataset:
    """By id, by name for its newest version, by `NAME@vNUMBER`, or by `NAME@` and 8 or more digits of its digest."""
    return dataset_view(parts.catalog.dataset(tenant, dataset))


@router.get("/{dataset}/report", summary="Its validation report", responses=problems(404))
def report(dataset: str, parts: PartsDep, tenant: Tenant) -> dict[str, Any]:
    """Guesses with their reasons, warnings, labels, lengths, duplicates, overlap of the splits."""
    return report_of(parts.artifacts, parts.catalog.dataset(tenant, dataset))


@router.get("/{dataset}/preview", summary="Its first rows", responses=problems(404))
def preview(dataset: str, parts: PartsDep, tenant: Tenant) -> Items[JsonObject]:
    """The first rows of train, as they were understood."""
    found = report_of(parts.artifacts, parts.catalog.dataset(tenant, dataset))
    return Items[JsonObject](data=tuple(found.get("preview", ())))


@router.get("/{dataset}/files", summary="Its files", responses=problems(404))
def files(dataset: str, parts: PartsDep, tenant: Tenant) -> Page[FileEntry]:
    """The files as they were uploaded, named by their split, with size and SHA-256."""
    record = parts.catalog.dataset(tenant, dataset)
    return Page(data=parts.artifacts.manifest(record.raw).files, has_more=False)


@router.get(
    "/{dataset}/files/{name:path}", summary="One of its files", response_class=FileResponse, responses=FILE_ANSWERS
)
def file(dataset: str, name: str, parts: PartsDep, tenant: Tenant) -> FileResponse:
    """With Range, If-Range and ETag; X-Checksum-SHA256 is of the whole file."""
    return open_file(parts.artifacts, parts.catalog.dataset(tenant, dataset).raw, name)


@router.delete("/{dataset}", status_code=204, summary="Delete it", responses=problems(404, 409))
def delete(
    dataset: str,
    parts: PartsDep,
    tenant: Tenant,
    with_jobs: Annotated[bool, Query(description="its jobs and their models too; else those stay")] = False,
) -> Response:
    """Deletes one version (by id, or the newest of a name). Not while a job that is not over needs it."""
    delete_dataset(parts.jobs, parts.artifacts, parts.catalog.dataset(tenant, dataset), with_jobs=with_jobs)
    return Response(status_code=204)


def parse_options(text: str) -> OptionsBody:
    """The options of an upload, which come as JSON text. Raises InvalidRequest."""
    try:
        check_json(text.encode())
        return OptionsBody.model_validate_json(text)
    except UnsupportedJSON as error:
        raise InvalidRequest(f"options: {error}") from error
    except ValidationError as error:
        raise InvalidRequest(f"options: {validation_problem(_placed(error))['detail']}") from error


def _placed(error: ValidationError) -> list[dict[str, Any]]:
    return [{**one, "loc": ("options", *one["loc"])} for one in error.errors()]


def intake(parts: Parts) -> Intake:
    """What takes data sets in."""
    return Intake(parts.catalog, parts.artifacts, parts.settings.scratch, parts.load_task)


def created(parts: Parts, record: DatasetRecord) -> DatasetCreated:
    """The answer to an upload that was taken in."""
    return DatasetCreated(**dataset_view(record).model_dump(), report=report_of(parts.artifacts, record))
