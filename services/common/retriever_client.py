"""The HTTP API of the retriever: its messages, and a client for the other services."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from services.common.logs import request_id
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import IndexUnavailable, NotFound, TLMError, error_from_dict, error_from_problem
from tlm_core.wire import Hit, Items, RefusedPassage, SearchResult

_Response = TypeVar("_Response", bound=BaseModel)


class _Status(BaseModel):
    model_config = ConfigDict(frozen=True)

    error: dict[str, object] | None = None

    @property
    def failure(self) -> TLMError | None:
        return error_from_dict(self.error) if self.error else None


class IndexLoad(_Status):
    """Progress of the load of a corpus version into its index: `loaded` of `count` passages.

    refused: number of passages that the index refuses; `loaded` includes them.
    """

    state: Literal["unknown", "loading", "ready", "failed"]
    count: int = 0
    loaded: int = 0
    refused: int = 0


class SelectionRun(_Status):
    """Progress of a selection: `done` of `total` queries or passages. rate: `unit` per second. ref: its artifact."""

    state: Literal["unknown", "running", "ready", "failed"]
    done: int = 0
    total: int = 0
    unit: str = "queries"
    rate: float | None = None
    ref: ManifestRef | None = None


def _check_relative(folder: str) -> str:
    if any(part in ("", ".", "..") for part in folder.split("/")):
        raise ValueError(f"Invalid folder '{folder}'. Expected a path below the storage root, without '.' or '..'.")
    return folder


Folder = Annotated[str, AfterValidator(_check_relative)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusFolder(_Request):
    """The folder with the Parquet files of a corpus version, and the language of its texts."""

    folder: Folder
    language: str = "en"


class SearchQuery(_Request):
    """A query to one corpus version. k: the maximum number of passages."""

    tenant: str
    corpus: str
    version: str
    query: str
    k: int = Field(10, ge=1, le=1000)


class SelectionRequest(_Request):
    """The inputs of a selection. task: the artifact of `validate`. params: the options of the selector.

    prefix: the storage folder of the new artifact. corpus, version: None for a selector that does not read a corpus.
    """

    tenant: str
    corpus: str | None = None
    version: str | None = None
    task: ManifestRef
    params: dict[str, object]
    seed: int = 0
    prefix: Folder


class StopResult(BaseModel):
    """Whether a selection has stopped."""

    stopped: bool


class RetrieverClient:
    """A client of the retriever's API. Thread-safe. Each method raises the error that a response contains.

    Without a valid response, a method raises IndexUnavailable. http: has the retriever's address, token and timeouts.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ready(self) -> None:
        """Raise an error with the reason, such as IndexUnavailable, if the retriever cannot work now."""
        self._call("GET", "/readyz")

    def put_corpus(self, tenant: str, name: str, version: str, *, folder: str, language: str) -> None:
        """Start to load a corpus version from a storage folder. Has no effect if the version is loaded or loading."""
        self._call("PUT", _corpus_path(tenant, name, version), CorpusFolder(folder=folder, language=language))

    def corpus(self, tenant: str, name: str, version: str) -> IndexLoad:
        """Return the progress of a corpus version's load. The state is `unknown` without a load and without an index.

        Raises IndexMismatch if the index does not fit the release of the retriever.
        """
        try:
            return _parse(IndexLoad, self._call("GET", _corpus_path(tenant, name, version)))
        except NotFound:
            return IndexLoad(state="unknown")

    def refused(self, tenant: str, name: str, version: str) -> list[RefusedPassage]:
        """Return the passages that the index refuses: at most 1,000. A load with more refused passages fails."""
        path = f"{_corpus_path(tenant, name, version)}/refused"
        return list(_parse(Items[RefusedPassage], self._call("GET", path)).data)

    def delete_corpus(self, tenant: str, name: str, version: str) -> None:
        """Delete the index of a corpus version, if it exists."""
        self._call("DELETE", _corpus_path(tenant, name, version))

    def search(self, tenant: str, corpus: str, version: str, query: str, k: int) -> list[Hit]:
        """Return the best k passages for `query`, best first. Raises NotFound if the version is not loaded."""
        body = SearchQuery(tenant=tenant, corpus=corpus, version=version, query=query, k=k)
        return list(_parse(SearchResult, self._call("POST", "/v1/search", body)).hits)

    def put_selection(self, artifact: str, request: SelectionRequest) -> None:
        """Start a selection. Has no effect if a run with the same `prefix` runs, is ready, or failed permanently.

        Replaces any other run of the selection, such as the run of an earlier attempt.
        """
        self._call("PUT", _selection_path(artifact), request)

    def get_selection(self, artifact: str) -> SelectionRun:
        """Return the progress of a selection. The state is `unknown` if the retriever does not know the selection."""
        return _parse(SelectionRun, self._call("GET", _selection_path(artifact)))

    def stop_selection(self, artifact: str, prefix: str) -> bool:
        """Stop a selection if its output folder starts with `prefix`. Returns False while this selection still runs."""
        response = self._call("DELETE", f"{_selection_path(artifact)}?prefix={quote(prefix, safe='')}")
        return _parse(StopResult, response).stopped

    def _call(self, method: str, path: str, body: BaseModel | None = None) -> object:
        headers = {"X-Request-ID": identity} if (identity := request_id()) else {}
        try:
            response = self._http.request(method, path, json=body and body.model_dump(mode="json"), headers=headers)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise IndexUnavailable(f"The retriever does not answer ({reason}). Try again later.") from error
        if response.status_code == 401:
            message = "The retriever rejects the internal token. Set the same TLM_…_INTERNAL_TOKEN for all services."
            raise IndexUnavailable(message)
        try:
            answer: object = response.json() if response.content else {}
            if response.is_success:
                return answer
            problem = error_from_problem(dict(response.json()))
        except (ValueError, KeyError, TypeError) as error:
            message = f"The retriever answers {response.status_code} without a valid JSON body. Check its URL."
            raise IndexUnavailable(message) from error
        raise problem


def _corpus_path(tenant: str, name: str, version: str) -> str:
    tenant, name, version = (quote(part, safe="") for part in (tenant, name, version))
    return f"/v1/corpora/{tenant}/{name}/versions/{version}"


def _selection_path(artifact: str) -> str:
    return f"/v1/selections/{quote(artifact, safe='')}"


def _parse(model: type[_Response], body: object) -> _Response:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        message = f"Unexpected response of the retriever. Run the same release in all processes. Cause: {error}"
        raise IndexUnavailable(message) from error
