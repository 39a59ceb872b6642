"""From what a gateway answers to the errors of the project."""

from __future__ import annotations

from typing import Any

import httpx

from tlm_core.errors import (
    Conflict,
    InvalidDataset,
    InvalidRequest,
    NotFound,
    TLMError,
    Unauthorized,
    Unavailable,
    error_classes,
    error_from_dict,
)

# For answers without a code of ours, such as a proxy's.
_BY_STATUS: dict[int, type[TLMError]] = {401: Unauthorized, 403: Unauthorized, 404: NotFound, 409: Conflict}
_AWAY = (502, 503, 504)


def error_of(response: httpx.Response) -> TLMError:
    """The error that an answer of 400 or more stands for, with all its faults; the body must have been read."""
    status = response.status_code
    problem = _problem(response)
    if problem is None:
        message = f"{response.request.url.host} answered {status} to {response.request.method} {response.request.url}"
        return _class_of(status)(f"{message}; check that the URL is that of a gateway")
    code, message = problem["code"], str(problem.get("detail") or problem.get("title") or f"answered {status}")
    facts = dict(problem.get("facts") or {})
    faults = problem.get("errors") or []
    if code == InvalidDataset.code:
        return error_from_dict({"code": code, "message": message, "facts": {**facts, "faults": faults}})
    if faults:
        facts["errors"] = faults
    if code in error_classes():
        return error_from_dict({"code": code, "message": message, "facts": facts})
    return _class_of(status)(message, **facts)


def away(url: str, error: httpx.HTTPError) -> Unavailable:
    """The error for a gateway from which no answer came."""
    return Unavailable(
        f"the gateway at {url} does not answer ({str(error) or type(error).__name__}); is it running? "
        "`tlm up` starts one on this machine"
    )


def json_of(response: httpx.Response) -> Any:
    """The body of an answer; an empty one is an empty object. Raises TLMError for what is no JSON."""
    if not response.content:
        return {}
    try:
        return response.json()
    except ValueError as error:
        raise TLMError(f"{response.request.url} answered with something else than JSON; check the URL") from error


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) and isinstance(body.get("code"), str) else None


def _class_of(status: int) -> type[TLMError]:
    if status in _AWAY:
        return Unavailable
    if status >= 500:
        return TLMError
    return _BY_STATUS.get(status, InvalidRequest)
