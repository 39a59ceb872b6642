"""What a job leaves: checkpoints, the model, the report, the selection, predictions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from services.api.archive import archive_of
from services.api.auth import Tenant
from services.api.parts import FILE_ANSWERS, PartsDep, problems
from services.api.results import (
    artifact_of,
    checkpoint_views,
    checkpoints_of,
    json_of,
    open_file,
    refs_of,
    selection_page,
)
from tlm_core.errors import NotFound
from tlm_core.wire import Checkpoint, Items, Model, Page, Prediction, Selection

router = APIRouter(prefix="/v1/jobs", tags=["results"])

TAR: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a tar archive",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    },
    **problems(404, 409),
}


class PredictBody(BaseModel):
    """Texts to classify. pairs: the second texts, for a model that reads pairs."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"texts": ["We evaluate on SciERC."]}]}
    )

    texts: tuple[str, ...] = Field(min_length=1, max_length=256)
    pairs: tuple[str, ...] | None = Field(None, max_length=256)


@router.get("/{job}/checkpoints", summary="Its checkpoints", responses=problems(404))
def checkpoints(job: str, parts: PartsDep, tenant: Tenant) -> Page[Checkpoint]:
    """Those that exist now, by stage and step; a stage keeps only its newest ones."""
    found = checkpoints_of(parts.jobs, parts.jobs.get(tenant, job))
    return Page(data=tuple(checkpoint_views(parts.artifacts, found)), has_more=False)


@router.get(
    "/{job}/checkpoints/{node}/{step}/{name:path}",
    summary="A file of a checkpoint",
    response_class=FileResponse,
    responses=FILE_ANSWERS,
)
def checkpoint_file(job: str, node: str, step: int, name: str, parts: PartsDep, tenant: Tenant) -> FileResponse:
    """With Range, If-Range and ETag; X-Checksum-SHA256 is of the whole file."""
    for one in checkpoints_of(parts.jobs, parts.jobs.get(tenant, job)):
        if (one.node, one.step) == (node, step):
            return open_file(parts.artifacts, one.ref, name)
    raise NotFound(f"{job} has no checkpoint of '{node}' at step {step}; list its checkpoints")


@router.get(
    "/{job}/checkpoints/{node}/{step}", summary="A whole checkpoint", response_class=StreamingResponse, responses=TAR
)
def checkpoint_archive(job: str, node: str, step: int, parts: PartsDep, tenant: Tenant) -> StreamingResponse:
    """All its files as one tar stream."""
    for one in checkpoints_of(parts.jobs, parts.jobs.get(tenant, job)):
        if (one.node, one.step) == (node, step):
            return archive_of(parts.artifacts, one.ref, f"{job}-{node}-{step}")
    raise NotFound(f"{job} has no checkpoint of '{node}' at step {step}; list its checkpoints")


@router.get("/{job}/model/archive", summary="The whole model", response_class=StreamingResponse, responses=TAR)
def model_archive(job: str, parts: PartsDep, tenant: Tenant) -> StreamingResponse:
    """All its files as one tar stream. Cut, it begins anew: for what goes on, and is checked, fetch file by file."""
    return archive_of(parts.artifacts, artifact_of(parts.jobs, parts.jobs.get(tenant, job), "export"), job)


@router.get("/{job}/model", summary="The model's files", responses=problems(404, 409))
def model(job: str, parts: PartsDep, tenant: Tenant) -> Model:
    """Every file of the exported model with size and SHA-256."""
    ref = artifact_of(parts.jobs, parts.jobs.get(tenant, job), "export")
    files = parts.artifacts.manifest(ref).files
    return Model(digest=ref.digest, size=sum(file.size for file in files), files=files)


@router.get(
    "/{job}/model/files/{name:path}", summary="A file of the model", response_class=FileResponse, responses=FILE_ANSWERS
)
def model_file(job: str, name: str, parts: PartsDep, tenant: Tenant) -> FileResponse:
    """With Range, If-Range and ETag; X-Checksum-SHA256 is of the whole file."""
    return open_file(parts.artifacts, artifact_of(parts.jobs, parts.jobs.get(tenant, job), "export"), name)


@router.get("/{job}/report", summary="How good the model is and what it cost", responses=problems(404, 409))
def report(job: str, parts: PartsDep, tenant: Tenant) -> dict[str, Any]:
    """Scores on the test split, per class and per seed, with the cost of each stage."""
    ref = artifact_of(parts.jobs, parts.jobs.get(tenant, job), "evaluate")
    return json_of(parts.artifacts, ref, "report.json")


@router.get("/{job}/selection", summary="The passages that were selected", responses=problems(404, 409))
def selection(
    job: str,
    parts: PartsDep,
    tenant: Tenant,
    q: Annotated[str, Query(max_length=500, description="words that a passage must hold, in any case")] = "",
    train_row: Annotated[int | None, Query(ge=1, lt=2**63, description="only what this train row asked for")] = None,
    after: Annotated[int, Query(ge=0, lt=2**40, description="how many to pass over")] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Selection:
    """Why is this passage in my model's diet? Best rank first, each with the train rows that asked for it."""
    record = parts.jobs.get(tenant, job)
    ref = artifact_of(parts.jobs, record, "select")
    task = refs_of(parts.jobs, record).get("validate")
    return selection_page(
        parts.artifacts, ref, after=after, limit=limit, words=q.split()[:20], train_row=train_row, task=task
    )


@router.post("/{job}/predict", summary="Classify texts", responses=problems(404, 409, 413))
def predict(job: str, body: PredictBody, parts: PartsDep, tenant: Tenant) -> Items[Prediction]:
    """The exported model on your texts; texts longer than its limit are cut."""
    ref = artifact_of(parts.jobs, parts.jobs.get(tenant, job), "export")
    labels, probabilities = parts.predictor.predict(ref, body.texts, body.pairs)
    if len(labels) == 1:
        values = tuple(Prediction(label=labels[0], value=row[0]) for row in probabilities.tolist())
        return Items[Prediction](data=values)
    found = []
    for row in probabilities.tolist():
        best = max(range(len(labels)), key=row.__getitem__)
        found.append(
            Prediction(label=labels[best], probability=row[best], probabilities=dict(zip(labels, row, strict=True)))
        )
    return Items[Prediction](data=tuple(found))
