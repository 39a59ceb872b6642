"""The models of succeeded jobs, and the aliases by which predictions address them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from services.api.dashboard.snippets import own_url, prediction_snippets
from services.api.dashboard.web import PREFIX, SignedIn, page, redirect
from services.api.parts import AfterId, PartsDep
from services.api.routes.models import AliasBody, list_models, put_alias
from tlm_core.names import ALIAS

router = APIRouter(prefix="/models")

_LIMIT = 25


@router.get("")
def models(request: Request, parts: PartsDep, tenant: SignedIn, after: AfterId = None) -> Response:
    """The list of models, newest first."""
    listed = list_models(parts, tenant, after, _LIMIT)
    aliases = [alias for model in listed.data for alias in model.aliases]
    names = [*aliases, *(model.job for model in listed.data)]
    snippets = prediction_snippets(names[0], own_url(request)) if names else {}
    return page(
        request,
        "models.html",
        models=listed.data,
        more=listed.has_more,
        after=after,
        snippets=snippets,
        first=names[:1],
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
    put_alias(alias, AliasBody(job=job), parts, tenant)
    return redirect(request, f"{PREFIX}/models")


@router.post("/{alias}/delete")
def delete_alias(alias: str, request: Request, parts: PartsDep, tenant: SignedIn) -> Response:
    """Delete an alias, but not its model."""
    parts.aliases.remove(tenant, alias)
    return redirect(request, f"{PREFIX}/models")
