"""The form that submits a job, and a preview of the job and its cost."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, get_args

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from services.api.dashboard.job_form import PRESETS, FilledForm, JobForm
from services.api.dashboard.snippets import own_url, snippets
from services.api.dashboard.web import PREFIX, SignedIn, page, redirect
from services.api.estimate import proposed
from services.api.parts import Parts, PartsDep
from services.api.submission import resolve_job, submit_job
from tlm_core.errors import InvalidRequest, NotFound, TLMError
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import MAX_PRIORITY, JobRecord
from tlm_core.jobs.states import State
from tlm_core.kinds import KINDS
from tlm_core.training.recipe import RecipeName, Scale, resolve
from tlm_core.training.recipe_keys import recipe_keys

router = APIRouter(prefix="/submit")

_CHOICES = 100


@router.get("")
def show(
    request: Request,
    parts: PartsDep,
    tenant: SignedIn,
    dataset: Annotated[str, Query(max_length=200)] = "",
    corpus: Annotated[str, Query(max_length=200)] = "",
    preset: Annotated[str, Query(max_length=20)] = "instant",
) -> Response:
    if preset not in PRESETS:
        raise InvalidRequest(f"Unknown preset '{preset}'. Use one of these: {', '.join(PRESETS)}.")
    if dataset and not corpus:
        corpus = _last_corpus(parts, tenant, dataset)
    return _page(request, parts, tenant, JobForm.fresh(dataset, corpus, PRESETS[preset]), None)


@router.post("")
def submit(request: Request, parts: PartsDep, tenant: SignedIn, form: FilledForm) -> Response:
    """Submit the job. After an error, show the error and the values of the form. Repeated requests create one job."""
    try:
        spec = form.spec()
        job, _ = submit_job(parts, tenant, spec, f"dashboard {form.key}" if form.key else None)
    except TLMError as error:
        return _page(request, parts, tenant, form, error)
    return redirect(request, f"{PREFIX}/jobs/{job.id}")


@router.post("/preview")
def preview(request: Request, parts: PartsDep, tenant: SignedIn, form: FilledForm) -> Response:
    """Show the resolved job and its estimated cost, without submitting it. For an invalid form, show the reason."""
    try:
        request_spec = form.spec()
        spec, resolved = resolve_job(parts, tenant, request_spec)
        job = proposed(tenant, spec, resolved)
        estimate = parts.estimator.estimate(job)
    except TLMError as error:
        return page(request, "_no_preview.html", reason=error.message)
    return page(
        request, "_preview.html", spec=spec, resolved=resolved, recipe=resolved.recipe, estimate=estimate,
        stages=Counter(node.stage.name for node in plan_of(job).nodes),
        snippets=snippets(request_spec, own_url(request)),
    )  # fmt: skip


@router.post("/key")
def recipe_key(
    request: Request, _: SignedIn, form: FilledForm, pick: Annotated[str, Form(max_length=100)] = ""
) -> Response:
    """Return the field for one recipe key, with the meaning of the key and its value at the scale of the form."""
    keys = recipe_keys(resolve(form.recipe, form.scale)) if form.scale != "instant" else ()
    return page(request, "_key.html", entry=next((entry for entry in keys if entry.key == pick), None), form=form)


def _last_corpus(parts: Parts, tenant: str, dataset: str) -> str:
    """Return the corpus of the newest job that uses a corpus and any version of `dataset`, or "" without such a job."""
    try:
        ids = parts.catalog.dataset_ids(tenant, parts.catalog.dataset(tenant, dataset).name)
    except NotFound:
        return ""
    jobs, _ = parts.jobs.list_jobs(tenant, datasets=ids, limit=_CHOICES)
    return next((name for job in jobs if (name := job.resolved.corpus_name)), "")


def _sources(parts: Parts, tenant: str) -> list[JobRecord]:
    """Return the latest succeeded jobs that provide an encoder to prune."""
    jobs, _ = parts.jobs.list_jobs(tenant, state=State.SUCCEEDED, limit=_CHOICES)
    readable = (job for job in jobs if not job.unreadable)
    return [job for job in readable if job.spec.definition.extends_train and job.spec.scale != "instant"]


def _page(request: Request, parts: Parts, tenant: str, form: JobForm, error: TLMError | None) -> Response:
    records, _ = parts.catalog.datasets(tenant, limit=_CHOICES)
    corpora = [corpus for corpus in parts.catalog.corpora(tenant, limit=_CHOICES)[0] if corpus.ready()]
    if error is None and not form.corpus and len(corpora) == 1:
        form = form.model_copy(update={"corpus": corpora[0].name})
    names = list(dict.fromkeys(record.name for record in records if not record.error))
    if form.dataset and form.dataset not in names:
        names.insert(0, form.dataset)
    return page(
        request, "submit.html", status=422 if error else 200, form=form, error=error, datasets=names,
        corpora=corpora, scales=get_args(Scale), recipes=get_args(RecipeName),
        kinds=list(KINDS.values()), sources=_sources(parts, tenant), most=MAX_PRIORITY, presets=PRESETS,
        keys=[entry.key for entry in recipe_keys(resolve("fast", "tiny"))],
    )  # fmt: skip
