"""Functions that both clients share: retries, bodies and paths of requests, answers and errors."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import IO, ParamSpec, TypedDict, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError
from tenacity import RetryCallState, retry_if_exception_type, wait_random_exponential

from tlm_core.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    TLMError,
    Unauthorized,
    Unavailable,
    error_from_dict,
    error_from_problem,
)
from tlm_core.jobs.spec import FROM_JOB, JobSpec
from tlm_core.wire import CorpusLoad, JsonObject, Problem
from tlm_core.wording import suggestion

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
AsyncSleep = Callable[[float], Awaitable[None]]
SyncSleep = Callable[[float], None]
AsyncCall = Callable[P, Awaitable[R]]
SyncCall = Callable[P, R]
Param = str | float | Sequence[str] | None  # the value of a query parameter

# A long operation fails after at least this many seconds without an answer. The restart of a gateway can take 20 s.
PATIENCE = 120.0
_MAX_RETRY_AFTER_SECONDS = 30.0
_MISSING = cast(str, object())  # stands for a text or a pair that does not exist
_OTHER_FIELDS = 1_000  # bytes reserved for the fields of a prediction request that are not texts
_SHORTEST_START = 4  # minimum number of characters after `job_`, so that a typing error does not select a job
BYTES = "application/octet-stream"
# With a maximum, open event streams would block all other requests.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
_backoff = wait_random_exponential(multiplier=0.5, min=0.25, max=8)
# Retry only Unavailable: an outage may end within seconds. Other errors, such as NotReady, may last for hours.
is_retryable = retry_if_exception_type(Unavailable)

# Errors for responses without the gateway's problem JSON, for example those of a proxy.
_ERROR_BY_STATUS: Mapping[int, type[TLMError]] = {
    401: Unauthorized, 403: Unauthorized, 404: NotFound, 408: Unavailable, 409: Conflict, 429: Unavailable,
    502: Unavailable, 503: Unavailable, 504: Unavailable,
}  # fmt: skip
_REMEDY_BY_STATUS: Mapping[int, str] = {
    408: "The request took too long. Try again.",
    413: "The request is too large for this server. Send less, or raise the limit of the server.",
    429: "The server received too many requests. Try again later.",
}


class RequestOptions(TypedDict, total=False):
    """Options of a request with httpx."""

    json: object
    data: Mapping[str, str]
    files: Sequence[tuple[str, tuple[str, IO[bytes], str]]]
    content: bytes
    params: Mapping[str, Param]
    headers: Mapping[str, str]
    timeout: httpx.Timeout


def check_gateway(url: str, token: str) -> None:
    """Raise InvalidRequest if `url` is not the URL of a gateway, or if a header cannot contain `token`."""
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(f"Invalid gateway URL '{url}': {error}. Expected http(s)://HOST:PORT.") from error
    has_invalid_port = parsed.port is not None and not 0 < parsed.port < 65_536
    if parsed.scheme not in ("http", "https") or not parsed.host or has_invalid_port:
        raise InvalidRequest(f"Invalid gateway URL '{url}'. Expected a URL such as http://127.0.0.1:8321.")
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise InvalidRequest(
            "Invalid token. It contains a line break, a non-ASCII character, or a space at one end. Copy it again."
        )


def authorization(token: str) -> dict[str, str]:
    """Return `{"Authorization": "Bearer TOKEN"}`, or {} for an empty token, because an empty header is invalid."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_loopback(url: str) -> bool:
    """Return whether the host of `url` is this machine."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def path(template: str, *parts: str) -> str:
    """Return `template`, such as `/v1/jobs/{}`, with each `{}` replaced by a percent-encoded part.

    Raises InvalidRequest for a part that is not valid Unicode. Also raises InvalidRequest for '', '.' and '..', because
    these parts would change the path.
    """
    if invalid := [part for part in parts if part in ("", ".", "..")]:
        raise InvalidRequest(f"Invalid name or id '{invalid[0]}'. Give another name or id than '', '.' and '..'.")
    with request_errors():
        return template.format(*(quote(part, safe="") for part in parts))


@contextmanager
def request_errors() -> Iterator[None]:
    """Raise InvalidRequest if the block cannot encode a request, because of invalid Unicode or a number such as NaN."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequest(
            f"Cannot encode the request: {error}. Give texts in valid UTF-8, and finite numbers."
        ) from error


def present(values: Mapping[str, Param]) -> dict[str, Param]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def job_body(spec: JobSpec) -> JsonObject:
    """Return the JSON of a spec, without default values. Fields of FROM_JOB that the caller has set always remain."""
    explicit = spec.model_dump(mode="json", include=spec.model_fields_set & set(FROM_JOB))
    body = spec.model_dump(mode="json", exclude_defaults=True) | explicit
    return {name: value for name, value in body.items() if name != "options" or value}


def is_ready(load: CorpusLoad) -> bool:
    """Return whether a load is ready. Raises the error of a failed load, and Conflict for a cancelled load."""
    if load.state == "failed":
        remedy = "failed without a recorded reason. Read the loader's log, then add the corpus again."
        raise error_from_dict(load.error) if load.error else TLMError(f"The load of corpus '{load.corpus}' {remedy}")
    if load.state == "cancelled":
        raise Conflict(f"The load of corpus '{load.corpus}' was cancelled. Add the corpus again.")
    return load.state == "ready"


def only_id(ids: Sequence[str], reference: str, names: Iterable[str] = ()) -> str:
    """Return the only id in `ids`. ids: all ids of jobs that start with `reference`.

    names: names of jobs that the error can suggest. Raises NotFound if there is no id, and InvalidRequest if there are
    several ids or `reference` is too short.
    """
    if len(ids) > 1:
        raise InvalidRequest(f"'{reference}' is the start of {len(ids)} ids, such as {ids[0]}. Give more characters.")
    if not ids:
        hint = suggestion(reference, names, "List the jobs to see their names and ids.")
        missing = f"No job '{reference}'. {hint}"
        raise NotFound("There are no jobs. Submit a job first." if reference == "@latest" else missing)
    if len(reference.removeprefix("job_")) < _SHORTEST_START:
        short = f"'{reference}' is too short for the start of an id."
        raise InvalidRequest(f"{short} Give at least {_SHORTEST_START} characters after job_.")
    return ids[0]


def batches(
    texts: Iterable[str], pairs: Iterable[str] | None, most: int, most_bytes: int
) -> Iterator[list[tuple[str, ...]]]:
    """Yield batches of at most `most` rows that fit a body of `most_bytes`. A row that does not fit has its own batch.

    A row is (text, pair), or (text,) if `pairs` is None. Raises InvalidRequest if there are not as many pairs as texts.
    """
    batch: list[tuple[str, ...]] = []
    size = 0
    for row in zip(texts) if pairs is None else zip_longest(texts, pairs, fillvalue=_MISSING):
        if _MISSING in row:
            raise InvalidRequest("There are not as many pairs as texts. Give one second text in 'pairs' for each text.")
        row_size = len(json.dumps(row))
        if batch and (len(batch) == most or size + row_size > most_bytes - _OTHER_FIELDS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row_size
    if batch:
        yield batch


def retry_delay(state: RetryCallState) -> float:
    """Return the seconds until the next try: a random delay, whose upper limit grows after each try.

    The delay is at least `Retry-After`. A `Retry-After` above 30 s counts as 30 s.
    """
    error = state.outcome.exception() if state.outcome else None
    required = float(str(error.facts.get("retry_after_seconds", 0))) if isinstance(error, TLMError) else 0.0
    return max(_backoff(state), min(required, _MAX_RETRY_AFTER_SECONDS))


def parse(kind: type[T], response: httpx.Response) -> T:
    """Return the JSON of a response as `kind`. Ignores unknown fields. Raises TLMError if the JSON does not match."""
    try:
        return TypeAdapter(kind).validate_python(json.loads(response.content), extra="ignore")
    except ValidationError as error:
        raise TLMError(
            f"Cannot read the answer of the gateway. Use the same release of client and gateway. {error}"
        ) from error
    except ValueError as error:
        raise TLMError(f"{response.request.url} did not answer with JSON. Check the URL of the gateway.") from error


def unanswered(url: str, error: httpx.HTTPError) -> InvalidRequest | Unavailable:
    """Return the error for a request that cannot be sent, or for a gateway that did not answer."""
    if isinstance(error, httpx.LocalProtocolError):
        remedy = "Remove line breaks and outer spaces from the idempotency key."
        return InvalidRequest(f"Cannot send the request: {error}. {remedy}")
    return Unavailable(
        f"The gateway at {url} does not answer ({str(error) or type(error).__name__}). Check that it runs. "
        "`tlm up` starts a gateway on this machine."
    )


def error_of(response: httpx.Response) -> TLMError:
    """Return the error for a response with an unexpected status.

    The facts of the error include the facts of the response, its `Retry-After` and, from status 500 on, its request id.
    """
    status, request = response.status_code, response.request
    by_status = _ERROR_BY_STATUS.get(status, TLMError if response.is_success or status >= 500 else InvalidRequest)
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        target = f" with a redirection to {response.headers['Location']}" if "Location" in response.headers else ""
        message = f"{request.url.host} answered {status} to {request.method} {request.url}{target}."
        error = by_status(
            f"{message} {_REMEDY_BY_STATUS.get(status, 'Check the URL of the gateway, and that it runs.')}"
        )
    else:
        error = error_from_problem(problem.model_dump(), unknown=by_status)
    if status >= 500 and (request_id := response.headers.get("X-Request-ID")):
        error.facts["request_id"] = request_id  # the log of the gateway contains it
    if response.headers.get("Retry-After", "").isdigit():
        error.facts["retry_after_seconds"] = int(response.headers["Retry-After"])
    return error
