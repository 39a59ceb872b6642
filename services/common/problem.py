"""Error responses of all HTTP services: one `application/problem+json` object (RFC 9457) for each error.

Members: `type` (a stable link to the error page), `title`, `status`, `detail` (what to change), and the `code` and
`retryable` of the error class. Some errors have `facts`. `errors` lists data errors with row and column (at
most 100 of each code), or the first 100 invalid fields with a JSON pointer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.common.bodies import BodyCheck
from services.common.logs import request_id
from tlm_core import errors as e
from tlm_core.names import FORMS
from tlm_core.wire import Problem
from tlm_core.wording import message_of

MEDIA_TYPE = "application/problem+json"
# The gateway serves docs/errors.md here. The link is relative, so it works for any host name.
ERROR_PAGE = "/docs/errors"
_RETRY_AFTER_SECONDS = 2
_LISTED = 100  # most invalid fields in an answer

# A class that is not in this table has the status of its nearest base class in it.
_STATUS: Mapping[type[e.TLMError], int] = {
    e.TLMError: 500,
    e.InvalidRequest: 422,
    e.Unauthorized: 401,
    e.NotFound: 404,
    e.Conflict: 409,
    e.Unavailable: 503,
    e.StoreFull: 507,
    e.StorageFull: 507,
    e.EmptySelection: 422,
    e.WorkerLost: 503,
    e.WorkerFailed: 503,
}

# Error codes of responses without a TLMError, by HTTP status.
_HTTP_CODES = {400: "invalid_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed",
               413: "too_large", 415: "unsupported_media_type"}  # fmt: skip


def status_of(cls: type[e.TLMError]) -> int:
    """Return the HTTP status of an error class."""
    return next(_STATUS[base] for base in cls.__mro__ if base in _STATUS)


def problem_body(status: int, code: str, detail: str, *, retryable: bool = False) -> Problem:
    """Return a problem object without the members `facts`, `errors` and `checks`."""
    kind, title = f"{ERROR_PAGE}#{code}", HTTPStatus(status).phrase
    return Problem(type=kind, title=title, status=status, detail=detail, code=code, retryable=retryable)


def problem_of(error: e.TLMError) -> Problem:
    """Return the problem object that describes `error`."""
    facts = dict(error.facts)
    faults = facts.pop("faults", None)
    problem = problem_body(status_of(type(error)), error.code, error.message, retryable=error.retryable)
    errors = faults if isinstance(faults, list) else None
    return problem.model_copy(update={"facts": facts or None, "errors": errors})


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP response that contains `problem`."""
    all_headers = dict(headers or {})
    if problem.status == 503:
        all_headers.setdefault("Retry-After", str(_RETRY_AFTER_SECONDS))
    if problem.status == 401:
        all_headers.setdefault("WWW-Authenticate", "Bearer")
    body = problem.model_dump(exclude_none=True)
    return JSONResponse(body, status_code=problem.status, media_type=MEDIA_TYPE, headers=all_headers)


def install_problem_handlers(app: FastAPI, *, streamed: Sequence[str] = (), raw: Sequence[str] = ()) -> None:
    """Make `app` return errors as problems, and check bodies with `BodyCheck`, which describes `streamed` and `raw`."""
    app.add_exception_handler(e.TLMError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_middleware(BodyCheck, reject=_reject, streamed=frozenset(streamed), raw=tuple(raw))


def _reject(status: int, detail: str) -> Response:
    return problem_response(problem_body(status, _HTTP_CODES.get(status, "invalid_request"), detail))


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, e.TLMError)
    problem = problem_of(error)
    if problem.status >= 500:
        _log(request, error)
    return problem_response(problem)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    sent = request.headers.get("content-type", "")
    # FastAPI parses only bodies of these types. It validates other bodies as bytes, which gives an unclear error.
    is_json = re.match(r"application/([^;]+\+)?json\s*(;|$)", sent, re.IGNORECASE)
    if not is_json and any(entry["loc"] == ("body",) and entry["type"] != "missing" for entry in error.errors()):
        problem = f"has the Content-Type '{sent[:100]}'" if sent else "has no Content-Type"
        return _reject(415, f"The body {problem}. Send JSON with the header 'Content-Type: application/json'.")
    return problem_response(validation_problem(error.errors()))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 404 and error.detail == HTTPStatus(404).phrase:
        detail = f"The path {request.url.path} does not exist. /docs lists the paths."
    elif status == 405:
        detail = f"The path {request.url.path} does not support {request.method}. /docs lists the paths."
    else:
        detail = str(error.detail)
    code = _HTTP_CODES.get(status, "error" if status >= 500 else "invalid_request")
    return problem_response(problem_body(status, code, detail), error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    """Return a response that nobody reads. Without it, a closed connection would count as an internal error."""
    return problem_response(problem_body(400, "invalid_request", "The connection was closed before the body ended."))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    _log(request, error, exc_info=error)  # The line of uvicorn has a traceback too, but no id of the request.
    detail = f"The service failed with an internal error. Its log has the cause of the request {request_id()}."
    return problem_response(problem_body(500, e.TLMError.code, detail))


def _log(request: Request, error: Exception, exc_info: Exception | None = None) -> None:
    logging.getLogger(__name__).error("%s %s failed: %r", request.method, request.url.path, error, exc_info=exc_info)


def validation_problem(errors: Sequence[ErrorDetails], *within: str) -> Problem:
    """Return the problem for pydantic's errors (`ValidationError.errors()`). The problem lists the first 100.

    within: the validated part of the request, such as "body".
    """
    # Pydantic counts only the valid items of a list. With invalid items, it can report that the list is too short.
    inner = {error["loc"][:-1] for error in errors}
    invalid = [error for error in errors if error["type"] != "too_short" or error["loc"] not in inner]
    entries = [_entry(error, within) for error in invalid[:_LISTED]]
    detail = "; ".join(f"{entry['pointer'] or entry['in']}: {entry['message']}" for entry in entries[:5])
    if len(invalid) > 5:
        detail += f"; and {len(invalid) - 5} more"
    return problem_body(422, e.InvalidRequest.code, detail).model_copy(update={"errors": entries})


def _entry(error: ErrorDetails, within: tuple[str, ...]) -> dict[str, str]:
    place, *path = (*within, *error["loc"]) or ("body",)
    pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "")
        return {"code": "json_invalid", "message": f"is not valid JSON: {reason}", "in": "body", "pointer": ""}
    form = FORMS.get(error.get("ctx", {}).get("pattern", ""))
    message = f"must be {form}" if form else message_of(error)
    return {"code": error["type"], "message": message, "in": str(place), "pointer": pointer}
