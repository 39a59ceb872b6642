"""The form that submits a job, and what the job would mean before it is submitted."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.api.dashboard.web import PREFIX, SignedIn, go_to, page
from services.api.parts import Parts, PartsDep
from services.api.submit import resolve_job
from services.common.bodies import InsaneJSON, check_json
from services.common.catalog import dataset_keys
from services.common.problem import validation_problem
from tlm_core.errors import InvalidRequest, TLMError
from tlm_core.jobs.spec import JobSpec
from tlm_core.training.recipe import RecipeName, Scale

router = APIRouter(prefix="/submit")

_CHOICES = 100


class Asked(BaseModel):
    """The form as it was filled in. key: drawn when the form was shown."""

    model_config = ConfigDict(frozen=True)

    dataset: str = Field("", max_length=200)
    corpus: str = Field("", max_length=200)
    scale: str = Field("tiny", max_length=20)
    recipe: str = Field("fast", max_length=20)
    seeds: str = Field("0", max_length=400)
    overrides: str = Field("", max_length=10_000)
    key: str = Field("", max_length=200)

    def spec(self) -> JobSpec:
        """The request that the form stands for. Raises InvalidRequest."""
        overrides = _overrides(self.overrides)
        if not self.corpus:
            overrides.setdefault("selection.selector", "none")
        try:
            return JobSpec.model_validate(
                {
                    "dataset": self.dataset,
                    "corpus": self.corpus or None,
                    "scale": self.scale,
                    "recipe": self.recipe,
                    "seeds": _seeds(self.seeds),
                    "set": overrides,
                }
            )
        except ValidationError as error:
            faults: list[Any] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            raise InvalidRequest(str(validation_problem(faults)["detail"])) from error


@router.get("")
def form(
    request: Request,
    parts: PartsDep,
    tenant: SignedIn,
    dataset: Annotated[str, Query(max_length=200)] = "",
    corpus: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    return _form(request, parts, tenant, Asked(dataset=dataset, corpus=corpus), None)


@router.post("")
def submit(request: Request, parts: PartsDep, tenant: SignedIn, asked: Annotated[Asked, Form()]) -> Response:
    """Submit it; a fault is shown beside the form, which keeps what was typed. Sent twice it is still one job."""
    try:
        spec = asked.spec()
        key = f"dashboard {asked.key}" if asked.key else None
        job = parts.jobs.replayed(tenant, spec, key) if key else None
        if job is None:
            resolved = resolve_job(parts.catalog, tenant, spec, parts.settings.model_folders)
            needs = dataset_keys(tenant, (one.id for one in resolved.data))
            job, _ = parts.jobs.submit(tenant, spec, resolved, idempotency_key=key, needs=needs)
    except TLMError as error:
        return _form(request, parts, tenant, asked, error)
    return go_to(request, f"{PREFIX}/jobs/{job.id}")


@router.post("/preview")
def preview(request: Request, parts: PartsDep, tenant: SignedIn, asked: Annotated[Asked, Form()]) -> Response:
    """What the job would mean and cost, without submitting it."""
    spec = asked.spec()
    resolved = resolve_job(parts.catalog, tenant, spec, parts.settings.model_folders)
    estimate = parts.estimator.estimate(tenant, spec, resolved)
    return page(request, "_preview.html", resolved=resolved, recipe=resolved.recipe, estimate=estimate)


def _form(request: Request, parts: Parts, tenant: str, asked: Asked, error: TLMError | None) -> Response:
    # Of several versions of a name the newest is meant; the same name need not stand twice.
    records, _ = parts.catalog.datasets(tenant, limit=_CHOICES)
    corpora, _ = parts.catalog.corpora(tenant, limit=_CHOICES)
    names = list(dict.fromkeys(record.name for record in records))
    if asked.dataset and asked.dataset not in names:
        names.insert(0, asked.dataset)
    return page(
        request, "submit.html", status=422 if error else 200, asked=asked, error=error, datasets=names,
        corpora=[one for one in corpora if one.ready()], scales=get_args(Scale), recipes=get_args(RecipeName),
        key=secrets.token_urlsafe(16),
    )  # fmt: skip


def _seeds(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidRequest("seeds: give whole numbers with commas or blanks between, such as 0, 1, 2")
    return [int(part[:12]) for part in parts]


def _overrides(text: str) -> dict[str, Any]:
    """Lines of `key = value` as the recipe's overrides; a value that is no JSON is a text."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key, sign, value = (part.strip() for part in line.partition("="))
        if not (key and sign and value):
            raise InvalidRequest(f"recipe: '{line.strip()[:80]}' is no 'key = value'; write such as joint.rho2 = 5")
        try:
            check_json(value.encode())
            found[key] = json.loads(value)
        except InsaneJSON as error:
            raise InvalidRequest(f"recipe: {key}: {error}") from error
        except ValueError:
            found[key] = value
    return found
