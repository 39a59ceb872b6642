"""The page of the models and their aliases."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from services.api.dashboard.snippets import own_url, prediction_snippets
from services.api.dashboard.web import PREFIX, Refused, SignedIn, form_page, redirect
from services.api.parts import AfterId, Parts, PartsDep
from tlm_core.errors import InvalidRequest, TLMError
from tlm_core.names import ALIAS, FORMS

router = APIRouter(prefix="/models")

_LIMIT = 25


@router.get("")
def models(request: Request, parts: PartsDep, tenant: SignedIn, after: AfterId = None) -> Response:
    """Show the list of models, newest first."""
    return _page(request, parts, tenant, after)


@router.post("")
def set_alias(
    request: Request,
    parts: PartsDep,
    tenant: SignedIn,
    alias: Annotated[str, Form(max_length=130)],
    job: Annotated[str, Form(max_length=200)],
    after: AfterId = None,
) -> Response:
    """Point an alias to a model. After an error, show the error beside the field with the typed alias."""
    try:
        if not re.fullmatch(ALIAS, alias):
            raise InvalidRequest(f"Invalid alias '{alias}'. Expected {FORMS[ALIAS]}.")
        parts.models.put_alias(tenant, alias, job)
    except TLMError as error:
        return _page(request, parts, tenant, after, ({"alias": alias, "job": job}, error))
    return redirect(request, f"{PREFIX}/models")


@router.post("/{alias}/delete")
def delete_alias(alias: str, request: Request, parts: PartsDep, tenant: SignedIn) -> Response:
    """Delete an alias, but not its model."""
    parts.models.delete_alias(tenant, alias)
    return redirect(request, f"{PREFIX}/models")


def _page(request: Request, parts: Parts, tenant: str, after: str | None, refused: Refused = None) -> Response:
    models = parts.models.list(tenant, after, _LIMIT)
    # The examples call the newest model with an alias. Without aliases, they call the newest model.
    names = [alias for model in models.data for alias in model.aliases] + [model.job for model in models.data]
    shown = next(iter(names), "")
    snippets = prediction_snippets(shown, own_url(request))
    return form_page(
        request, "models.html", refused, models=models.data, more=models.has_more, after=after, snippets=snippets,
        shown=shown,
    )  # fmt: skip
