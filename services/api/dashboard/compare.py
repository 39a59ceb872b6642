"""The page that sets jobs side by side: what differs in their recipes, their curves, scores and costs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from services.api.dashboard.curves import STAGES, curves, stages_of, told_points
from services.api.dashboard.web import SignedIn, page
from services.api.parts import Parts, PartsDep
from services.api.results import artifact_of, json_of, refs_of
from tlm_core.errors import Conflict, InvalidRequest
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord

router = APIRouter(prefix="/compare")

_MOST = 6
Ids = Annotated[list[str], Query(alias="id", max_length=50)]


@router.get("")
def compare(
    request: Request,
    parts: PartsDep,
    tenant: SignedIn,
    ids: Ids = [],  # noqa: B006
    stage: Annotated[str | None, Query(max_length=40)] = None,
) -> Response:
    jobs = _jobs(parts, tenant, ids)
    charted = [name for name in STAGES if any(name in stages_of(plan_of(job)) for job in jobs)]
    return page(
        request, "compare.html", jobs=jobs, names=_names(jobs), differences=_differences(jobs),
        reports=[_report(parts, job) for job in jobs], charted=charted,
        shown=stage if stage in charted else (charted[-1] if charted else None),
    )  # fmt: skip


@router.get("/points")
def points(
    parts: PartsDep,
    tenant: SignedIn,
    stage: Annotated[str, Query(max_length=40)],
    ids: Ids = [],  # noqa: B006
) -> Response:
    """The curves of one stage of all the jobs, each job's first seed."""
    jobs = _jobs(parts, tenant, ids)
    found: list[dict[str, Any]] = []
    for job, name in zip(jobs, _names(jobs), strict=True):
        plan = plan_of(job)
        nodes = [node for node in plan.nodes if node.stage == stage][:1]
        told, _ = told_points(parts.jobs, job)
        lines = curves(parts.artifacts, job, nodes, told, refs_of(parts.jobs, job, plan))
        found.extend({**line, "name": name} for line in lines)
    return JSONResponse({"curves": found, "live": False})


def _jobs(parts: Parts, tenant: str, ids: list[str]) -> list[JobRecord]:
    ids = list(dict.fromkeys(ids))
    if len(ids) > _MOST:
        raise InvalidRequest(f"{len(ids)} jobs were chosen; at most {_MOST} fit side by side")
    return [parts.jobs.get(tenant, job) for job in ids]


def _names(jobs: list[JobRecord]) -> list[str]:
    """Letters, by which the columns and the curves are told apart."""
    return [chr(ord("A") + number) for number in range(len(jobs))]


def _report(parts: Parts, job: JobRecord) -> dict[str, Any] | None:
    try:
        return json_of(parts.artifacts, artifact_of(parts.jobs, job, "evaluate"), "report.json")
    except Conflict:
        return None


def _differences(jobs: list[JobRecord]) -> list[dict[str, Any]]:
    """What was asked for and settled in which the jobs are not all alike, by dotted key."""
    columns = [_settled(job) for job in jobs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [{"key": key, "cells": [column.get(key) for column in columns]} for key in keys]
    return [row for row in rows if any(value != row["cells"][0] for value in row["cells"])]


def _settled(job: JobRecord) -> dict[str, Any]:
    asked = {
        "data set": job.spec.dataset,
        "data set id": job.resolved.dataset_id,
        "corpus": job.resolved.corpus_name,
        "corpus version": job.resolved.corpus_version,
        "seeds": list(job.spec.seeds),
        "workers": job.spec.workers,
    }
    return asked | _flat(job.resolved.recipe.model_dump(mode="json"))


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
