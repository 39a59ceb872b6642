"""Every error answer is one `application/problem+json` object (RFC 9457), for all HTTP services of the project.

Members: `type` (a stable reference into the error page), `title`, `status`, `detail` (says what to change), `code` and
`retryable` of the error tree, `facts` when the error carries some, and `errors`: one entry for each fault found, with
row and column for data, with a JSON pointer for a field of the request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.common.bodies import BodyGuard
from tlm_core import errors as e

MEDIA_TYPE = "application/problem+json"
# Where the gateway serves docs/errors.md; an address relative to whoever answered needs no other host to be there.
ERROR_PAGE = "/docs/errors"
_RETRY_AFTER_SECONDS = 2

STATUS: Mapping[type[e.TLMError], int] = {
    e.TLMError: 500,
    e.InvalidRequest: 422,
    e.InvalidDataset: 422,
    e.InvalidRecipe: 422,
    e.IdempotencyMismatch: 422,
    e.Unauthorized: 401,
    e.NotFound: 404,
    e.Conflict: 409,
    e.IllegalTransition: 409,
    e.StaleAttempt: 409,
    e.AlreadyRunning: 409,
    e.Unavailable: 503,
    e.StoreUnavailable: 503,
    e.StoreFull: 507,
    e.IndexUnavailable: 503,
    e.ClusterUnavailable: 503,
    e.StorageUnavailable: 503,
    e.MissingDependency: 500,
    e.StorageFull: 507,
    e.CorruptArtifact: 500,
    e.IndexMismatch: 500,
    e.UnreadableRecord: 500,
    e.EmptySelection: 422,
    e.RuntimeExceeded: 500,
    e.TrainingFailed: 500,
    e.NonFiniteLoss: 500,
    e.OutOfMemory: 500,
    e.WorkerLost: 503,
}

# Codes of answers that no error class of the tree stands for.
_HTTP_CODES = {400: "invalid_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed",
               413: "too_large", 415: "unsupported_media_type"}  # fmt: skip

# What pydantic calls the type that a field wants, in words of JSON.
_WANTED = {
    "list_type": "a list", "tuple_type": "a list", "dict_type": "an object", "model_type": "an object",
    "model_attributes_type": "an object", "string_type": "a text", "int_type": "a whole number",
    "int_parsing": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "float_parsing": "a number", "bool_type": "true or false", "bool_parsing": "true or false",
}  # fmt: skip


def problem_body(status: int, code: str, detail: str, *, retryable: bool = False, **more: Any) -> dict[str, Any]:
    """The members of a problem object; `more` holds those that not every problem has."""
    return {
        "type": f"{ERROR_PAGE}#{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        **more,
    }


def problem_of(error: e.TLMError) -> dict[str, Any]:
    """The problem object of an error of the tree."""
    facts = dict(error.facts)
    faults = facts.pop("faults", None)
    more = ({"errors": faults} if faults is not None else {}) | ({"facts": facts} if facts else {})
    return problem_body(STATUS[type(error)], error.code, error.message, retryable=error.retryable, **more)


def error_of_problem(problem: Mapping[str, Any]) -> e.TLMError:
    """The error that a problem object of one of our services stands for."""
    facts = dict(problem.get("facts") or {})
    if problem["code"] == e.InvalidDataset.code:
        facts["faults"] = problem.get("errors", [])
    return e.error_from_dict({"code": problem["code"], "message": problem["detail"], "facts": facts})


def problem_response(problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer that carries `problem`."""
    extra = dict(headers or {})
    if problem["status"] == 503:
        extra.setdefault("Retry-After", str(_RETRY_AFTER_SECONDS))
    if problem["status"] == 401:
        extra.setdefault("WWW-Authenticate", "Bearer")
    return JSONResponse(problem, status_code=problem["status"], media_type=MEDIA_TYPE, headers=extra)


def install_problem_handlers(app: FastAPI, *, streamed: Sequence[str] = (), raw: Sequence[str] = ()) -> None:
    """Make `app` answer every error as a problem, and refuse bodies that are too large or no sane JSON.

    streamed: paths whose multipart bodies the route itself reads and limits; raw: the same for bytes put below them.
    """
    app.add_exception_handler(e.TLMError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_middleware(BodyGuard, refuse=_refuse, streamed=frozenset(streamed), raw=tuple(raw))


def _refuse(status: int, detail: str) -> Response:
    return problem_response(problem_body(status, _HTTP_CODES.get(status, "invalid_request"), detail))


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, e.TLMError)
    problem = problem_of(error)
    if problem["status"] >= 500:
        _log(request, error)
    return problem_response(problem)


async def _on_validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(validation_problem(error.errors()))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 404 and error.detail == HTTPStatus(404).phrase:
        detail = f"nothing is served at {request.url.path}; the paths are listed at /docs"
    elif status == 405:
        detail = f"{request.method} is not possible at {request.url.path}; the paths are listed at /docs"
    else:
        detail = str(error.detail)
    code = _HTTP_CODES.get(status, "error" if status >= 500 else "invalid_request")
    return problem_response(problem_body(status, code, detail), error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    """Nobody reads the answer; it only keeps a broken connection from counting as a fault of ours."""
    return problem_response(problem_body(400, "invalid_request", "the connection was closed before the body was whole"))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    _log(request, error)
    detail = "the service met an error it did not expect; its log has the cause"
    return problem_response(problem_body(500, e.TLMError.code, detail))


def _log(request: Request, error: Exception) -> None:
    logging.getLogger(__name__).error("%s %s failed: %r", request.method, request.url.path, error)


def validation_problem(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The problem for pydantic's list of errors (`ValidationError.errors()`)."""
    faults = [_fault(one) for one in found]
    detail = "; ".join(f"{f['pointer'] or f['in']}: {f['message']}" for f in faults[:5])
    if len(faults) > 5:
        detail += f"; and {len(faults) - 5} more"
    return problem_body(422, e.InvalidRequest.code, detail, errors=faults)


def _fault(one: Mapping[str, Any]) -> dict[str, Any]:
    place, *path = one["loc"] or ("body",)
    pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    if one["type"] == "json_invalid":
        reason = one.get("ctx", {}).get("error", "")
        return {"code": "json_invalid", "message": f"the body is no JSON: {reason}", "in": "body", "pointer": ""}
    return {"code": one["type"], "message": _sentence(one), "in": str(place), "pointer": pointer}


def _sentence(one: Mapping[str, Any]) -> str:
    kind = one["type"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "is not a known field"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {_word(one.get('input'))}"
    message = str(one["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return message.replace("a valid tuple", "a list").replace("a valid dictionary", "an object")


def _word(value: Any) -> str:
    """What JSON calls a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
    return "something else"
