"""A client for OpenSearch, which retries temporary failures and raises the errors of this project."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import opensearchpy
import opensearchpy.exceptions as client_errors
import urllib3.exceptions
from opensearchpy import OpenSearch
from opensearchpy.helpers import streaming_bulk

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

MIN_VERSION = 2
TEMPORARY_STATUS = frozenset({429, 502, 503, 504})
_FIRST_PAUSE = 0.1
_MAX_PAUSE = 5.0
_DISK_FULL = ("flood-stage watermark", "No space left", "read-only / allow delete", "read_only_allow_delete")


class _Translation(NamedTuple):
    error: type[TLMError]
    advice: str = ""


# The errors of opensearch-py and of its network library. A subclass has the entry of its nearest base class.
_TRANSLATIONS: Mapping[type[Exception], _Translation] = {
    client_errors.ImproperlyConfigured: _Translation(IndexMismatch),
    client_errors.OpenSearchException: _Translation(IndexUnavailable),
    client_errors.OpenSearchDslException: _Translation(IndexMismatch),
    client_errors.SerializationError: _Translation(
        IndexMismatch, "The response is not from OpenSearch. Check TLM_RETRIEVER_OPENSEARCH_URL."
    ),
    client_errors.NotFoundError: _Translation(NotFound),
    client_errors.ConflictError: _Translation(Conflict),
    client_errors.RequestError: _Translation(InvalidRequest),
    client_errors.ConnectionError: _Translation(
        IndexUnavailable, "No answer. Start OpenSearch, or correct TLM_RETRIEVER_OPENSEARCH_URL (http or https)."
    ),
    client_errors.SSLError: _Translation(
        IndexUnavailable, "Untrusted certificate. Set TLM_RETRIEVER_OPENSEARCH_CA to the CA certificate (PEM file)."
    ),
    client_errors.AuthenticationException: _Translation(
        IndexUnavailable, "Wrong user or password. Check TLM_RETRIEVER_OPENSEARCH_USER and _PASSWORD."
    ),
    client_errors.AuthorizationException: _Translation(
        IndexUnavailable, "The user lacks rights. Grant all rights on indexes tlm-*."
    ),
    urllib3.exceptions.HTTPError: _Translation(IndexUnavailable),
}
CLIENT_ERRORS = (
    client_errors.OpenSearchException,
    client_errors.OpenSearchDslException,
    client_errors.ImproperlyConfigured,
    urllib3.exceptions.HTTPError,
)


class TemporaryFailure(Exception):
    """Signals that a retry of a failed request may succeed. status: the HTTP status, or None without a response."""

    def __init__(self, error: TLMError, status: int | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status


def translated(error: Exception) -> TLMError | TemporaryFailure:
    """Return the TLMError for an error in CLIENT_ERRORS, inside a TemporaryFailure if a retry may help."""
    reason, status = _reason(error), _status(error)
    if is_disk_full(reason):
        return StorageFull(f"OpenSearch has no disk space: {reason}. Free some space, then retry.")
    if status == 413:
        return InvalidRequest(
            f"OpenSearch refuses a request, because it is too large ({reason}). Raise http.max_content_length of "
            "OpenSearch, or the limit of its proxy."
        )
    cls, advice = next(_TRANSLATIONS[base] for base in type(error).__mro__ if base in _TRANSLATIONS)
    ours = cls(f"OpenSearch: {advice} {reason}" if advice else f"OpenSearch: {reason}")
    network = isinstance(error, client_errors.ConnectionError | urllib3.exceptions.HTTPError)
    if status in TEMPORARY_STATUS or (network and not isinstance(error, client_errors.SSLError)):
        return TemporaryFailure(ours, status)
    return ours


def _status(error: Exception) -> int | None:
    status = error.status_code if isinstance(error, client_errors.TransportError) else None
    return status if isinstance(status, int) else None


def _reason(error: Exception) -> str:
    info = error.args[2] if isinstance(error, client_errors.TransportError) and len(error.args) > 2 else None
    return reason_of(info["error"]) if isinstance(info, dict) and "error" in info else str(error)


def reason_of(error: object) -> str:
    """Return the innermost cause in the `error` object of a response, as "TYPE: REASON"."""
    while isinstance(error, dict):
        cause = error.get("caused_by") or next(iter(error.get("root_cause") or []), None)
        if not cause or cause == error:
            return f"{error.get('type')}: {error.get('reason')}"
        error = cause
    return str(error)


def is_disk_full(reason: str) -> bool:
    """Return whether `reason` means that the disk of OpenSearch is full."""
    return any(text in reason for text in _DISK_FULL)


class Backoff:
    """Waits before retries, longer each time. Expires after `seconds`. stop: event that ends all waits."""

    def __init__(self, seconds: float, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._deadline = clock() + seconds
        self._pause = _FIRST_PAUSE

    def wait(self, error: TLMError) -> None:
        """Wait before the next try. Raises `error` if the `Backoff` has expired or `stop` is set."""
        remaining = self._deadline - self._clock()
        if remaining <= 0 or self._stop.wait(min(self._pause, remaining)):
            raise error
        self._pause = min(2 * self._pause, _MAX_PAUSE)


class Cluster:
    """Sends requests to one OpenSearch cluster. Thread-safe. Retries temporary failures for `retry_seconds`.

    The retries of opensearch-py are disabled, because they do not wait between two tries. The methods raise
    IndexUnavailable, IndexMismatch, NotFound, InvalidRequest, Conflict and StorageFull.
    """

    def __init__(
        self,
        client: OpenSearch,
        *,
        retry_seconds: float,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._client = client
        self._retry_seconds = retry_seconds
        self._stop = stop
        self._version: int | None = None

    def without_retries(self) -> Cluster:
        """Return a `Cluster` for the same OpenSearch cluster that does not retry."""
        return Cluster(self._client, retry_seconds=0, stop=self._stop, clock=self._clock)

    def backoff(self) -> Backoff:
        """Return a new `Backoff` of `retry_seconds` for one operation."""
        return Backoff(self._retry_seconds, self._stop, self._clock)

    def call(self, method: str, path: str, *, body: object = None, params: Mapping[str, object] | None = None) -> Any:
        """Send a request and return the decoded response. The request must be safe to repeat."""
        backoff = self.backoff()
        while True:
            try:
                return self._client.transport.perform_request(method, path, params=dict(params or {}), body=body)
            except CLIENT_ERRORS as error:
                failure = translated(error)
                if not isinstance(failure, TemporaryFailure):
                    raise failure from error
                backoff.wait(failure.error)

    def bulk(
        self, alias: str, actions: Iterable[dict[str, object]], *, max_rows: int, max_bytes: int
    ) -> Iterator[dict[str, Any]]:
        """Create the documents of `actions` without retries, and yield a dict for each action, in order.

        The dict has the key `status`. If the action failed, it also has `error`. If the whole request failed, it has
        `exception`, too. max_rows, max_bytes: limits of each request, in actions and bytes.
        """
        try:
            results = streaming_bulk(
                self._client,
                actions,
                chunk_size=max_rows,
                max_chunk_bytes=max_bytes,
                raise_on_error=False,
                raise_on_exception=False,
                index=alias,
                require_alias=True,  # Otherwise a write after a deletion creates an index with another mapping.
                filter_path="items.create.status,items.create.error",
            )
            for _, result in results:
                yield result["create"]
        except CLIENT_ERRORS as error:
            failure = translated(error)
            raise failure.error if isinstance(failure, TemporaryFailure) else failure from error

    def version(self, params: Mapping[str, object] | None = None) -> int:
        """Return the major version. Raises IndexMismatch if the server is not OpenSearch MIN_VERSION or later."""
        if self._version is None:
            banner = self.call("GET", "/", params=params)
            version = banner.get("version", {}) if isinstance(banner, dict) else {}
            name = version.get("distribution", "elasticsearch" if "number" in version else "of an unknown kind")
            number = str(version.get("number", "?"))
            if name != "opensearch" or not number[0].isdigit() or int(number.split(".")[0]) < MIN_VERSION:
                raise IndexMismatch(
                    f"OpenSearch {MIN_VERSION} or later is required, but the server is {name} {number}. "
                    "Upgrade OpenSearch, or set TLM_RETRIEVER_OPENSEARCH_URL to another server."
                )
            self._version = int(number.split(".")[0])
        return self._version

    def close(self) -> None:
        self._client.close()


def connect(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    ca: Path | None = None,
    timeout: float = 60.0,
    retry_seconds: float = 120.0,
    stop: threading.Event | None = None,
) -> Cluster:
    """Return a client of the cluster at `url`, without connecting. timeout: limit for one request, in seconds.

    ca: PEM file of the certificate authority. Raises MissingDependency if this file does not exist.
    """
    if ca is not None and not ca.is_file():
        raise MissingDependency(f"TLM_RETRIEVER_OPENSEARCH_CA: No file {ca}. Set it to a PEM file of certificates.")
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
    return Cluster(client, retry_seconds=retry_seconds, stop=stop or threading.Event())
