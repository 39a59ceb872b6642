"""The page that compares jobs: their scores, costs, recipes and curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from services.api.compare import compare
from services.api.dashboard.curves import STAGES, curves, rates_of, stages_of
from services.api.dashboard.present import scores_of
from services.api.dashboard.web import SignedIn, page
from services.api.parts import Parts, PartsDep
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.wire import ModelScores, Outcome

router = APIRouter(prefix="/compare")

_LETTERS = "ABCDEF"  # labels of the columns and the curves, one for each job
Ids = Annotated[list[str], Query(alias="id", max_length=50)]


@router.get("")
def compare_page(
    request: Request,
    parts: PartsDep,
    tenant: SignedIn,
    ids: Ids = [],  # noqa: B006
    stage: Annotated[str | None, Query(max_length=40)] = None,
) -> Response:
    jobs = _jobs(parts, tenant, ids)
    comparison = compare(parts.catalog, parts.jobs, parts.artifacts, jobs)  # The page loads its curves later.
    scores = dict.fromkeys(
        name for outcome in comparison.outcomes if outcome.metric for name in scores_of(outcome.metric)
    )
    charted = [name for name in STAGES if any(name in stages_of(plan_of(job)) for job in jobs)]
    return page(
        request, "compare.html", jobs=jobs, names=_LETTERS, differences=comparison.differences,
        outcomes=comparison.outcomes, verdicts=comparison.verdicts, models=_models(comparison.outcomes),
        scores=[*(scores or scores_of("macro_f1")), "deduplicated"],
        charted=charted, shown=stage if stage in charted else (charted[-1] if charted else None),
    )  # fmt: skip


@router.get("/points")
def points(
    parts: PartsDep,
    tenant: SignedIn,
    stage: Annotated[str, Query(max_length=40)],
    ids: Ids = [],  # noqa: B006
) -> Response:
    """Return the curves of a stage for the first seed of each job, as JSON: one curve for each tried learning rate.

    `column` of a curve is the index of the curve's job in `ids`.
    """
    jobs = _jobs(parts, tenant, ids)
    lines = [
        {**line, "name": _LETTERS[column] + line["tried"], "column": column}
        for column, job in enumerate(jobs)
        for line in curves(parts.jobs, parts.artifacts, job, stage, most=max(1, len(rates_of(job, stage))))
    ]
    return JSONResponse({"curves": lines, "live": False})


def _jobs(parts: Parts, tenant: str, ids: list[str]) -> list[JobRecord]:
    ids = list(dict.fromkeys(ids))
    if len(ids) > len(_LETTERS):
        raise InvalidRequest(f"{len(ids)} jobs are selected. Select at most {len(_LETTERS)}.")
    return [parts.jobs.get(tenant, job) for job in ids]


def _models(outcomes: Sequence[Outcome]) -> dict[str, list[ModelScores | None]]:
    """Return model name → one entry for each job: the scores of the model, or None if the job lacks the model."""
    names = dict.fromkeys(model.name for outcome in outcomes for model in outcome.models)
    by_name = [{model.name: model for model in outcome.models} for outcome in outcomes]
    return {name: [models.get(name) for models in by_name] for name in names}
