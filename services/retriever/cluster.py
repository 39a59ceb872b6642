"""An OpenSearch cluster as the retriever speaks with it: patience, and its errors as errors of the project."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import opensearchpy
import opensearchpy.exceptions as foreign
import urllib3.exceptions
from opensearchpy import OpenSearch

from tlm_core.errors import (
    Conflict,
    IndexMismatch,
    IndexUnavailable,
    InvalidRequest,
    MissingDependency,
    NotFound,
    StorageFull,
    TLMError,
)

OLDEST = 2
PASSING = frozenset({429, 502, 503, 504})
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

# Every exception of opensearch-py by its class; a test holds that none is missing.
ERRORS: Mapping[type[Exception], type[TLMError]] = {
    foreign.ImproperlyConfigured: IndexMismatch,
    foreign.OpenSearchException: IndexUnavailable,
    foreign.SerializationError: IndexMismatch,
    foreign.TransportError: IndexUnavailable,
    foreign.NotFoundError: NotFound,
    foreign.ConflictError: Conflict,
    foreign.RequestError: InvalidRequest,
    foreign.ConnectionError: IndexUnavailable,
    foreign.SSLError: IndexUnavailable,
    foreign.ConnectionTimeout: IndexUnavailable,
    foreign.AuthenticationException: IndexUnavailable,
    foreign.AuthorizationException: IndexUnavailable,
    foreign.OpenSearchDslException: IndexMismatch,
    foreign.UnknownDslObject: IndexMismatch,
    foreign.ValidationException: IndexMismatch,
    foreign.IllegalOperation: IndexMismatch,
    urllib3.exceptions.HTTPError: IndexUnavailable,
}
_ADVICE: Mapping[type[Exception], str] = {
    foreign.SerializationError: "what answers is no OpenSearch; check TLM_RETRIEVER_OPENSEARCH_URL",
    foreign.ConnectionError: "it does not answer; is it up, and TLM_RETRIEVER_OPENSEARCH_URL right (http or https)?",
    foreign.SSLError: "its certificate is not trusted; set TLM_RETRIEVER_OPENSEARCH_CA to the authority's file",
    foreign.AuthenticationException: "it refuses the user; check TLM_RETRIEVER_OPENSEARCH_USER and _PASSWORD",
    foreign.AuthorizationException: "the user may not do this; give it all rights on indexes tlm-*",
}


def translated(error: Exception) -> TLMError:
    """The project's error for what opensearch-py raised."""
    reason = _reason(error)
    if is_disk_full(reason):
        return StorageFull(f"OpenSearch has no room left: {reason}; give its disk more room, then retry")
    if _status(error) == 413:
        return InvalidRequest(f"OpenSearch: the request is too large: {reason}")
    for cls in type(error).__mro__:
        if cls in ERRORS:
            advice = _ADVICE.get(cls, "")
            return ERRORS[cls](f"OpenSearch: {advice + ': ' if advice else ''}{reason}")
    raise error


def _reason(error: Exception) -> str:
    """What OpenSearch said, as one line."""
    info = error.args[2] if isinstance(error, foreign.TransportError) and len(error.args) > 2 else None
    return reason_of(info["error"]) if isinstance(info, dict) and "error" in info else str(error)


def reason_of(error: Any) -> str:
    """Type and reason of the innermost cause of an `error` object in an answer."""
    while isinstance(error, dict):
        inner = error.get("caused_by") or next(iter(error.get("root_cause") or []), None)
        if not inner or inner == error:
            return f"{error.get('type')}: {error.get('reason')}"
        error = inner
    return str(error)


def is_disk_full(reason: str) -> bool:
    """Whether OpenSearch refuses for want of room on its disk."""
    signs = ("flood-stage watermark", "No space left", "read-only / allow delete", "read_only_allow_delete")
    return any(sign in reason for sign in signs)


class Passing(Exception):
    """A call failed for now and may succeed a little later. status: of HTTP, None without an answer. Control flow."""

    def __init__(self, error: TLMError, status: int | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status


class Patience:
    """Waits between tries, a little longer each time, and gives up after `seconds` in all.

    stop: set when the process ends, which cuts every wait short.
    """

    def __init__(self, seconds: float, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._deadline = clock() + seconds
        self._pause = _FIRST_PAUSE

    def wait(self, error: TLMError) -> None:
        """Sleep until the next try; raises `error` when there is none any more."""
        left = self._deadline - self._clock()
        if left <= 0 or self._stop.wait(min(self._pause, left)):
            raise error
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


class Cluster:
    """Calls of one cluster. Thread-safe. What passes by itself is tried again for `patience` seconds.

    Raises IndexUnavailable, IndexMismatch, NotFound, InvalidRequest, Conflict and StorageFull.
    """

    def __init__(
        self,
        client: OpenSearch,
        *,
        patience: float,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._client = client
        self._patience = patience
        self._stop = stop
        self._version: int | None = None

    def with_patience(self, seconds: float) -> Cluster:
        """The same cluster for a caller who waits longer or less long."""
        return Cluster(self._client, patience=seconds, stop=self._stop, clock=self._clock)

    def patience(self) -> Patience:
        """A new measure of patience for work that may have to be tried again."""
        return Patience(self._patience, self._stop, self._clock)

    def call(self, method: str, path: str, *, body: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """The decoded answer. Only for calls that may be repeated without harm."""
        patience = self.patience()
        while True:
            try:
                return self.once(method, path, body=body, params=params)
            except Passing as fault:
                patience.wait(fault.error)

    def once(self, method: str, path: str, *, body: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """As `call`, but with a single try: raises Passing for what the caller may try again."""
        try:
            return self._client.transport.perform_request(method, path, params=dict(params or {}), body=body)
        except (foreign.OpenSearchException, foreign.ImproperlyConfigured, urllib3.exceptions.HTTPError) as error:
            ours = translated(error)
            if not _passes(error) or isinstance(ours, StorageFull):
                raise ours from error
            raise Passing(ours, _status(error)) from error

    def version(self) -> int:
        """Major version. Raises IndexMismatch if the server is no OpenSearch or one that is too old."""
        if self._version is None:
            said = self.call("GET", "/")
            version = said.get("version", {}) if isinstance(said, dict) else {}
            name = version.get("distribution", "elasticsearch" if "number" in version else "something unknown")
            number = str(version.get("number", "?"))
            if name != "opensearch" or not number[0].isdigit() or int(number.split(".")[0]) < OLDEST:
                raise IndexMismatch(
                    f"OpenSearch {OLDEST} or later is needed, but {name} {number} answers; "
                    "set TLM_RETRIEVER_OPENSEARCH_URL to the address of an OpenSearch"
                )
            self._version = int(number.split(".")[0])
        return self._version

    def close(self) -> None:
        self._client.close()


def _passes(error: Exception) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, foreign.SSLError):
        return False
    if isinstance(error, foreign.ConnectionError | urllib3.exceptions.HTTPError):
        return True
    return isinstance(error, foreign.TransportError) and error.status_code in PASSING


def _status(error: Exception) -> int | None:
    status = error.status_code if isinstance(error, foreign.TransportError) else None
    return status if isinstance(status, int) else None


def connect(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    ca: Path | None = None,
    timeout: float = 60.0,
    patience: float = 120.0,
    stop: threading.Event | None = None,
) -> Cluster:
    """The cluster at `url`. timeout: seconds for one request; patience: seconds over which to try again.

    opensearch-py's own retries are off: they would not wait between two tries. Raises MissingDependency if `ca` is no
    file.
    """
    if ca is not None and not ca.is_file():
        raise MissingDependency(
            f"TLM_RETRIEVER_OPENSEARCH_CA names {ca}, which is no file; give the authority's PEM file"
        )
    client = opensearchpy.OpenSearch(
        hosts=[url],
        http_auth=(user, password or "") if user else None,
        ca_certs=str(ca) if ca else None,
        verify_certs=True,
        timeout=timeout,
        max_retries=0,
        retry_on_timeout=False,
        pool_maxsize=8,
    )
    return Cluster(client, patience=patience, stop=stop or threading.Event())
