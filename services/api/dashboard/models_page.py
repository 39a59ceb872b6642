"""The models of succeeded jobs and their aliases. A prediction request can use an alias instead of a job id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from services.api.dashboard.snippets import own_url, prediction_snippets
from services.api.dashboard.web import PREFIX, SignedIn, page, redirect
from services.api.parts import AfterId, PartsDep
from tlm_core.names import ALIAS

router = APIRouter(prefix="/models")

_LIMIT = 25


@router.get("")
def models(request: Request, parts: PartsDep, tenant: SignedIn, after: AfterId = None) -> Response:
    """The list of models, newest first."""
    models = parts.models.list(tenant, after, _LIMIT)
    # The examples call the newest model that has an alias, or else the newest one.
    names = [alias for model in models.data for alias in model.aliases] + [model.job for model in models.data]
    shown = next(iter(names), "")
    snippets = prediction_snippets(shown, own_url(request))
    return page(
        request, "models.html", models=models.data, more=models.has_more, after=after, snippets=snippets, shown=shown
    )


@router.post("")
def set_alias(
    parts: PartsDep,
    tenant: SignedIn,
    request: Request,
    alias: Annotated[str, Form(pattern=ALIAS, max_length=130)],
    job: Annotated[str, Form(max_length=200)],
) -> Response:
    """Point an alias to a model."""
    parts.models.put_alias(tenant, alias, job)
    return redirect(request, f"{PREFIX}/models")


@router.post("/{alias}/delete")
def delete_alias(alias: str, request: Request, parts: PartsDep, tenant: SignedIn) -> Response:
    """Delete an alias, but not its model."""
    parts.models.delete_alias(tenant, alias)
    return redirect(request, f"{PREFIX}/models")
