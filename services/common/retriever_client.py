"""The retriever as other services see it: loads of corpora, a search box, selections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from tlm_core.artifacts import ManifestRef
from tlm_core.errors import IndexUnavailable, NotFound, TLMError, error_from_dict, error_from_problem
from tlm_core.wire import Hit, RefusedPassage

_Answer = TypeVar("_Answer", bound=BaseModel)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)

    error: dict[str, Any] | str | None = None

    @property
    def failure(self) -> TLMError | None:
        """The error that the retriever tells of, if it does."""
        if isinstance(self.error, dict):
            return error_from_dict(self.error)
        return TLMError(self.error) if self.error else None


class CorpusLoad(_Value):
    """How far the load of one corpus version is: `loaded` of `count` passages; `refused` of these never will be in."""

    state: Literal["unknown", "loading", "ready", "failed"]
    count: int = 0
    loaded: int = 0
    refused: int = 0


class SelectionRun(_Value):
    """How far a selection is, in `unit` (queries, or passages looked at). `ref` is there when it is ready."""

    state: Literal["unknown", "running", "ready", "failed"]
    done: int = 0
    total: int = 0
    unit: str = "queries"
    rate: float | None = None
    ref: ManifestRef | None = None


class SelectionRequest(BaseModel):
    """What a selection is made of; prefix: folder below the storage root to write it to.

    corpus, version: none for the selector `given`, whose passages come with the task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: str
    corpus: str | None = None
    version: str | None = None
    task: ManifestRef
    params: dict[str, Any]
    seed: int = 0
    prefix: str


class RetrieverClient:
    """Calls of the retriever's API. Raises IndexUnavailable when it does not answer, else the error it tells of.

    http: a client with the retriever's address, its token and timeouts; thread-safe.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ready(self) -> None:
        """Raise IndexUnavailable if the retriever cannot do its work now."""
        self._call("GET", "/readyz")

    def put_corpus(self, tenant: str, name: str, version: str, *, folder: str, language: str) -> None:
        """Ask for a corpus version to be loaded from `folder` of the storage. Asking again is no error."""
        self._call("PUT", _corpus_path(tenant, name, version), {"folder": folder, "language": language})

    def corpus(self, tenant: str, name: str, version: str) -> CorpusLoad:
        """How far the load is; state `unknown` if it was never asked for."""
        try:
            return _parse(CorpusLoad, self._call("GET", _corpus_path(tenant, name, version)))
        except NotFound:
            return CorpusLoad(state="unknown")

    def refused(self, tenant: str, name: str, version: str) -> list[RefusedPassage]:
        """The passages of a version that its index will never take; at most a thousand, else the load fails."""
        return list(_parse(_Refused, self._call("GET", f"{_corpus_path(tenant, name, version)}/refused")).refused)

    def delete_corpus(self, tenant: str, name: str, version: str) -> None:
        """Drop a version's index; dropping what is not there is no error."""
        try:
            self._call("DELETE", _corpus_path(tenant, name, version))
        except NotFound:
            return

    def search(self, tenant: str, corpus: str, version: str, query: str, k: int) -> list[Hit]:
        """The best k passages for `query`, best first. Raises NotFound for a version that is not loaded."""
        body = {"tenant": tenant, "corpus": corpus, "version": version, "query": query, "k": k}
        return list(_parse(_Hits, self._call("POST", "/v1/search", body)).hits)

    def put_selection(self, artifact: str, request: SelectionRequest) -> None:
        """Ask for a selection under its artifact id. Asking again for the same one is no error."""
        self._call("PUT", f"/v1/selections/{quote(artifact, safe='')}", request.model_dump(mode="json"))

    def get_selection(self, artifact: str) -> SelectionRun:
        """How far a selection is; state `unknown` if the retriever knows nothing of it (any more)."""
        try:
            return _parse(SelectionRun, self._call("GET", f"/v1/selections/{quote(artifact, safe='')}"))
        except NotFound:
            return SelectionRun(state="unknown")

    def stop_selection(self, artifact: str, prefix: str) -> bool:
        """Stop a selection if it is made for a folder whose name begins with `prefix`; whether it runs no more."""
        path = f"/v1/selections/{quote(artifact, safe='')}?prefix={quote(prefix, safe='')}"
        return _parse(_Stop, self._call("DELETE", path)).over

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise IndexUnavailable(f"the retriever does not answer ({reason}); try again when it is up") from error
        if answer.status_code == 401:
            raise IndexUnavailable("the retriever refuses the internal token; give both services the same one")
        try:
            content: Any = answer.json() if answer.content else {}
            if answer.is_success:
                return content
            problem = error_from_problem(dict(content))
        except (ValueError, KeyError, TypeError) as error:
            raise IndexUnavailable(
                f"the retriever answered {answer.status_code} with something else than JSON"
            ) from error
        raise problem


class _Hits(BaseModel):
    hits: tuple[Hit, ...]


class _Stop(BaseModel):
    over: bool


class _Refused(BaseModel):
    refused: tuple[RefusedPassage, ...]


def connect_retriever(url: str, token: str, *, timeout: float = 10.0) -> RetrieverClient:
    """A client of the retriever at `url`; token: the internal one; timeout: seconds."""
    return RetrieverClient(
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=timeout, trust_env=False)
    )


def _corpus_path(tenant: str, name: str, version: str) -> str:
    tenant, name, version = (quote(part, safe="") for part in (tenant, name, version))
    return f"/v1/corpora/{tenant}/{name}/versions/{version}"


def _parse(cls: type[_Answer], body: Any) -> _Answer:
    try:
        return cls.model_validate(body)
    except ValidationError as error:
        raise IndexUnavailable(
            f"the retriever's answer is not understood; run the same release of both: {error}"
        ) from error
