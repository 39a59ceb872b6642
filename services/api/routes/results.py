"""Results of jobs: checkpoints, model, report, selection."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, StreamingResponse

from services.api.auth import PathJob
from services.api.job_artifacts import (
    archive_response,
    artifact_of,
    checkpoint_at,
    checkpoint_views,
    checkpoints_of,
    file_response,
    model_file_response,
    report_of,
    served_model,
    situation_of,
)
from services.api.parts import FILE_ANSWERS, PartsDep, binary, problems
from services.api.selections import selection_page
from services.api.suspects import suspect_labels
from tlm_core.wire import Checkpoint, Model, Page, Selection, SuspectLabels

router = APIRouter(prefix="/v1/jobs", tags=["results"])

TAR: dict[int | str, dict[str, object]] = {
    200: {"description": "A tar archive.", "content": {"application/x-tar": binary("the bytes of the archive")}},
    **problems(404, 409),
}


@router.get("/{job}/checkpoints", summary="List checkpoints", responses=problems(404))
def checkpoints(job: PathJob, parts: PartsDep) -> Page[Checkpoint]:
    """Return the checkpoints that exist, ordered by node and step. The service deletes older checkpoints of a node."""
    current = checkpoints_of(parts.jobs, job)
    return Page(data=tuple(checkpoint_views(parts.artifacts, current)), has_more=False)


@router.get(
    "/{job}/checkpoints/{node}/{step}/{name:path}",
    summary="Download a file of a checkpoint",
    response_class=FileResponse,
    responses=FILE_ANSWERS,
)
def checkpoint_file(job: PathJob, node: str, step: int, name: str, parts: PartsDep) -> FileResponse:
    """Return a file. Supports Range, If-Range and ETag. X-Checksum-SHA256 is the digest of the whole file."""
    checkpoint = checkpoint_at(parts.jobs, job, node, step)
    return file_response(parts.artifacts, checkpoint.ref, name)


@router.get(
    "/{job}/checkpoints/{node}/{step}", summary="Download a checkpoint", response_class=StreamingResponse, responses=TAR
)
def checkpoint_archive(job: PathJob, node: str, step: int, parts: PartsDep) -> StreamingResponse:
    """Return all files of a checkpoint as a tar stream."""
    checkpoint = checkpoint_at(parts.jobs, job, node, step)
    return archive_response(parts.artifacts, checkpoint.ref, f"{job.id}-{node}-{step}")


@router.get("/{job}/model/archive", summary="Download the model", response_class=StreamingResponse, responses=TAR)
def model_archive(job: PathJob, parts: PartsDep) -> StreamingResponse:
    """Return the files of the model as a tar stream. To resume a download, request single files instead."""
    served = served_model(parts.jobs, job)
    return archive_response(parts.artifacts, served.ref, job.id, served.files(parts.artifacts))


@router.get("/{job}/model", summary="List the files of the model", responses=problems(404, 409))
def model(job: PathJob, parts: PartsDep) -> Model:
    """Return name, size and SHA-256 of the model's files. Until the final model exists, list the linear model."""
    served = served_model(parts.jobs, job)
    entries = served.files(parts.artifacts)
    files = tuple(file.model_copy(update={"name": name}) for name, file in entries.items())
    size = sum(file.size for file in files)
    return Model(digest=served.ref.digest, size=size, files=files, final=served.final, note=served.note)


@router.get(
    "/{job}/model/files/{name:path}",
    summary="Download a file of the model",
    response_class=FileResponse,
    responses=FILE_ANSWERS,
)
def model_file(job: PathJob, name: str, parts: PartsDep) -> FileResponse:
    """Return a file. Supports Range, If-Range and ETag. X-Checksum-SHA256 is the digest of the whole file."""
    return model_file_response(parts.jobs, parts.artifacts, job, name)


@router.get("/{job}/report", summary="Get the evaluation report", responses=problems(404, 409))
def report(job: PathJob, parts: PartsDep) -> dict[str, object]:
    """Return the test scores of each model, also per class and per seed, and the cost of each stage."""
    return report_of(parts.jobs, parts.artifacts, job)


@router.get("/{job}/suspects", summary="List suspect labels", responses=problems(404, 409))
def suspects(job: PathJob, parts: PartsDep, limit: Annotated[int, Query(ge=1, le=2_000)] = 50) -> SuspectLabels:
    """Return rows of train and validation whose label is probably wrong, most suspect first, with a suggested label."""
    return suspect_labels(parts.jobs, parts.artifacts, job, limit=limit)


@router.get("/{job}/selection", summary="List selected passages", responses=problems(404, 409))
def selection(
    job: PathJob,
    parts: PartsDep,
    q: Annotated[str, Query(max_length=500, description="Only passages with all these words, ignoring case.")] = "",
    train_row: Annotated[
        int | None, Query(ge=1, lt=2**63, description="Only passages that this training row retrieved.")
    ] = None,
    after: Annotated[int, Query(ge=0, lt=2**40, description="Number of passages to skip.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Selection:
    """Return the passages that the model trains on, best rank first, with the training rows that retrieved them."""
    ref = artifact_of(parts.jobs, job, "select")
    task = situation_of(parts.jobs, job).done.get("validate")
    return selection_page(
        parts.artifacts, ref, after=after, limit=limit, words=q.split()[:20], train_row=train_row, task=task
    )
