"""The page of a job's labels: suspect labels, and the n-grams with the highest weights for each label."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from services.api.dashboard.progress import selects
from services.api.dashboard.web import SignedIn, page
from services.api.job_artifacts import artifact_of, artifacts_by_node
from services.api.parts import PartsDep
from services.api.suspects import suspect_labels

router = APIRouter(prefix="/jobs")

_SUSPECTS = 50


@router.get("/{job}/labels")
def labels(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    limit: Annotated[int, Query(ge=1, le=200)] = _SUSPECTS,
) -> Response:
    """The most suspect labels with their texts, and the words with the highest weights for each label."""
    record = parts.jobs.get(tenant, job)
    ref = artifact_of(parts.jobs, record, "evaluate")
    task = artifacts_by_node(parts.jobs, record).get("validate")
    ranking = suspect_labels(parts.artifacts, ref, task, limit=limit)
    top_ngrams = parts.artifacts.read_json(ref, "report.json")["linear"]["top_ngrams"]
    return page(
        request, "labels.html", job=record, selects=selects(record), tab="results", ranking=ranking, limit=limit,
        top_ngrams=top_ngrams,
    )  # fmt: skip
