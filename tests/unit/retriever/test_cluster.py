"""Requests to OpenSearch: temporary failures are retried, permanent ones raise errors with advice."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import opensearchpy.exceptions as client_errors
import pytest
import urllib3.exceptions

from services.retriever.cluster import CLIENT_ERRORS, Cluster, TemporaryFailure, translated
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from services.retriever.opensearch_index import OpenSearchIndex
from tests.unit.retriever.fake_wait import NoWait
from tlm_core.corpus.passages import Passage
from tlm_core.errors import (
    Conflict,
    IndexMismatch,
    IndexUnavailable,
    InvalidRequest,
    NotFound,
    StorageFull,
    TLMError,
)
from tlm_core.selection.index import MAX_TERMS

BANNER = {"version": {"distribution": "opensearch", "number": "3.8.0"}}
MARK = {"schema": 1, "tenant": "t", "name": "n", "version": "v", "analysis": "standard", "state": "loading"}


class Transport:
    """A client that returns one response after the other and repeats the last. Exceptions are raised.

    uuid: the identity of the index after each response.
    """

    def __init__(self, responses: Sequence[Any]) -> None:
        self.responses = list(responses)
        self.uuid = ""
        self.calls: list[tuple[str, str, Any]] = []
        self.transport = self

    def perform_request(self, method: str, path: str, params: dict[str, Any], body: Any) -> Any:
        assert isinstance(params, dict)
        if path == "/":
            return BANNER
        if params.get("filter_path") == "*.settings.index.uuid":
            return {path[1:]: {"settings": {"index": {"uuid": self.uuid}}}}
        self.calls.append((method, path, body))
        response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if isinstance(response, Exception):
            raise response
        return response


def cluster_of(*responses: Any, retry_seconds: float = 60) -> tuple[Cluster, Transport, NoWait]:
    transport, stop = Transport(responses), NoWait()
    return Cluster(transport, retry_seconds=retry_seconds, stop=stop), transport, stop


def failure(status: int, kind: str = "x_exception", reason: str = "because") -> client_errors.TransportError:
    cls: type[client_errors.TransportError] = client_errors.HTTP_EXCEPTIONS.get(status, client_errors.TransportError)
    return cls(status, kind, {"error": {"type": kind, "reason": reason, "root_cause": []}, "status": status})


def index_of(*responses: Any, retry_seconds: float = 60, **mark: Any) -> tuple[OpenSearchIndex, Transport, NoWait]:
    cluster, transport, stop = cluster_of(*responses, retry_seconds=retry_seconds)
    return OpenSearchIndex(cluster, "tlm-n", {**MARK, **mark}, shards=1), transport, stop


def test_every_error_of_the_client_is_translated() -> None:
    classes = [cls for _, cls in inspect.getmembers(client_errors, inspect.isclass) if issubclass(cls, Exception)]
    for cls in classes:
        if not issubclass(cls, Warning):
            assert issubclass(cls, CLIENT_ERRORS)
            error = cls(500, "kind", {}) if issubclass(cls, client_errors.TransportError) else cls("text")
            assert isinstance(translated(error), TLMError | TemporaryFailure)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (failure(401), IndexUnavailable, "TLM_RETRIEVER_OPENSEARCH_USER"),
        (failure(403), IndexUnavailable, "rights"),
        (client_errors.SSLError("N/A", "self-signed", ValueError()), IndexUnavailable, "TLM_RETRIEVER_OPENSEARCH_CA"),
        (failure(404), NotFound, "because"),
        (failure(413), InvalidRequest, "too large"),
        (failure(400), InvalidRequest, "because"),
        (failure(409), Conflict, "because"),
        (client_errors.SerializationError("no JSON"), IndexMismatch, "TLM_RETRIEVER_OPENSEARCH_URL"),
        (failure(403, reason="index read-only / allow delete (api)"), StorageFull, "Free some space"),
        (failure(429, reason="disk usage exceeded flood-stage watermark"), StorageFull, "Free some space"),
    ],
)
def test_permanent_failure_raises_at_once_with_advice(error: Exception, expected: type[TLMError], message: str) -> None:
    cluster, transport, stop = cluster_of(error)
    with pytest.raises(expected, match=message):
        cluster.call("GET", "/x")
    assert len(transport.calls) == 1 and not stop.waits


@pytest.mark.parametrize(
    "error",
    [
        *map(failure, (429, 502, 503, 504)), client_errors.ConnectionError("N/A", "refused", OSError()),
        client_errors.ConnectionTimeout("TIMEOUT", "slow", OSError()), urllib3.exceptions.ProtocolError("cut"),
    ],
)  # fmt: skip
def test_temporary_failure_is_retried_with_growing_pauses(error: Exception) -> None:
    cluster, _, stop = cluster_of(error, error, error, {"done": True})
    assert cluster.call("GET", "/x") == {"done": True}
    assert stop.waits == sorted(stop.waits) and len(stop.waits) == 3


def test_retries_end_after_their_time() -> None:
    cluster, _, _ = cluster_of(failure(503), retry_seconds=0)
    with pytest.raises(IndexUnavailable):
        cluster.call("GET", "/x")


def test_stop_event_ends_every_wait() -> None:
    cluster, transport, stop = cluster_of(failure(503), retry_seconds=1e9)
    stop.set()
    with pytest.raises(IndexUnavailable):
        cluster.call("GET", "/x")
    assert len(transport.calls) == 1


@pytest.mark.parametrize(
    "banner",
    [
        {"version": {"number": "8.19.0", "build_flavor": "default"}}, {"version": {"number": "9.1.0"}}, {}, "hello",
        {"version": {"distribution": "opensearch", "number": "1.3.20"}},
    ],
)  # fmt: skip
def test_server_other_than_recent_opensearch_is_rejected(banner: Any) -> None:
    transport = Transport([banner])
    transport.perform_request = lambda *_, **__: banner  # type: ignore[method-assign]
    with pytest.raises(IndexMismatch, match="OpenSearch 2 or later"):
        Cluster(transport, retry_seconds=0, stop=threading.Event()).version()


# --- searching --------------------------------------------------------------------------------------------------------


def response(*hits: tuple[str, float], failed: int = 0, timed_out: bool = False) -> dict[str, Any]:
    entries = [{"sort": [score, name]} for name, score in hits]
    failures = [{"reason": {"type": "io", "reason": "disk"}}] * failed
    return {
        "status": 200, "timed_out": timed_out, "hits": {"hits": entries},
        "_shards": {"failed": failed, "failures": failures},
    }  # fmt: skip


def error_response(status: int, kind: str) -> dict[str, Any]:
    return {"status": status, "error": {"type": kind, "reason": "because"}}


@pytest.mark.parametrize(
    "partial",
    [response(("a", 1.0), failed=1), response(timed_out=True), error_response(503, "search_phase_execution_exception"),
     error_response(429, "rejected_execution_exception")],
)  # fmt: skip
def test_incomplete_response_is_retried_and_never_used(partial: dict[str, Any]) -> None:
    complete = response(("a", 2.0), ("b", 1.0))
    index, transport, _ = index_of({"responses": [complete, partial]}, {"responses": [complete]}, state="ready")
    results = index.search(["first", "second"], 5)
    assert [[hit.id for hit in hits] for hits in results] == [["a", "b"], ["a", "b"]]
    assert [body.count(b'"match"') for _, _, body in transport.calls] == [2, 1]
    index, _, _ = index_of({"responses": [partial]}, retry_seconds=0, state="ready")
    with pytest.raises(IndexUnavailable, match="Incomplete"):
        index.search(["second"], 5)


def test_rejected_search_raises_at_once() -> None:
    index, _, stop = index_of({"responses": [error_response(400, "parsing_exception")]})
    with pytest.raises(IndexMismatch, match="because"):
        index.search(["q"], 5)
    assert not stop.waits


def test_deleted_index_is_an_outage_that_ends_with_a_new_load() -> None:
    deleted, missing = error_response(404, "index_not_found_exception"), failure(404)
    for answer, read in (
        ({"responses": [deleted]}, lambda index: index.search(["q"], 5)),
        (missing, lambda index: index.count()),
        (missing, lambda index: index.commit()),
        (missing, lambda index: next(index.ids())),
        (missing, lambda index: index.search([" ".join(map(str, range(MAX_TERMS + 1)))], 5)),
    ):
        index, _, stop = index_of(answer)
        with pytest.raises(IndexUnavailable, match="deleted") as raised:
            read(index)
        assert raised.value.retryable and not stop.waits


READS: list[tuple[Any, Callable[[OpenSearchIndex], object]]] = [
    ({"responses": [response()]}, lambda index: index.search(["q"], 5)),
    ({"count": 1, "_shards": {"failed": 0}}, lambda index: index.count()),
    ({}, lambda index: list(index.ids())),
    ({"docs": [{"_id": "a", "found": False}]}, lambda index: index.fetch(["a"])),
]


@pytest.mark.parametrize(("answer", "read"), READS)
def test_response_of_an_index_created_again_is_not_used(answer: Any, read: Callable[[OpenSearchIndex], object]) -> None:
    index, transport, stop = index_of(answer, state="ready")
    transport.uuid = "of the next load"
    with pytest.raises(IndexUnavailable, match="deleted") as raised:
        read(index)
    assert raised.value.retryable and not stop.waits


def test_low_clause_limit_gets_terms_then_advice() -> None:
    too_many = error_response(400, "too_many_nested_clauses")
    index, transport, _ = index_of({"responses": [too_many]}, {"responses": [response(("a", 1.0))]})
    assert [hit.id for hit in index.search(["q q"], 5)[0]] == ["a"]
    assert b'"boost": 2' in transport.calls[-1][2]
    index, _, _ = index_of({"responses": [too_many]}, {"responses": [too_many]})
    with pytest.raises(IndexMismatch, match="max_clause_count"):
        index.search(["q q"], 5)


def test_query_without_words_is_not_sent() -> None:
    index, transport, _ = index_of({"responses": [response(("a", 1.0))]})
    assert [len(hits) for hits in index.search(["…", "q"], 5)] == [0, 1]
    assert transport.calls[0][2].count(b'"match"') == 1


def test_scores_of_opensearch_2_are_rescaled() -> None:
    class Older(Transport):
        def perform_request(self, method: str, path: str, params: dict[str, Any], body: Any) -> Any:
            older = {"version": {"distribution": "opensearch", "number": "2.19.1"}}
            return older if path == "/" else super().perform_request(method, path, params, body)

    cluster = Cluster(Older([{"responses": [response(("a", 2.2))]}]), retry_seconds=0, stop=threading.Event())
    [[hit]] = OpenSearchIndex(cluster, "i", MARK, shards=1).search(["q"], 5)
    assert hit.score == pytest.approx(1.0)


def test_unreadable_passages_are_retried_and_not_missing() -> None:
    unreadable = {"docs": [{"_id": "a", "error": {"type": "shard", "reason": "away"}}]}
    readable = {"docs": [{"_id": "a", "found": True, "_source": {"text": "t", "source": "s"}}]}
    index, _, _ = index_of(unreadable, readable)
    assert index.fetch(["a"]) == {"a": Passage("a", "t", "s")}
    index, _, _ = index_of({"docs": [{"_id": "a", "found": False}]})
    with pytest.raises(NotFound):
        index.fetch(["a"])


# --- indexes that this release did not write --------------------------------------------------------------------------

KEY = CorpusKey("t", "n", "v")
PROPERTIES = {
    "text": {"type": "text", "analyzer": "standard", "index_options": "freqs"},
    "source": {"type": "keyword", "ignore_above": 1024}, "id": {"type": "keyword", "index": False},
}  # fmt: skip


def described(**over: Any) -> dict[str, Any]:
    mappings = {"_meta": {"tlm": {**MARK, "state": "ready"}}, "properties": PROPERTIES, **over}
    similarity = {"default": {"type": "BM25", "k1": "1.2", "b": "0.75"}}
    return {
        f"tlm-{KEY.slug}": {
            "mappings": mappings,
            "settings": {"index": {"number_of_shards": "1", "similarity": similarity}},
        }
    }


def test_own_index_is_opened() -> None:
    cluster, _, _ = cluster_of(described())
    index = OpenSearchIndexes(cluster, shards=1).open(KEY)
    assert isinstance(index, OpenSearchIndex) and index.ready


@pytest.mark.parametrize(
    "over",
    [
        {"_meta": {}}, {"_meta": {"tlm": {**MARK, "schema": 99}}}, {"_meta": {"tlm": {**MARK, "name": "other"}}},
        {"properties": {**PROPERTIES, "text": {"type": "text", "analyzer": "english", "index_options": "freqs"}}},
        {"properties": {**PROPERTIES, "more": {"type": "keyword"}}}, {"properties": {}},
        {"properties": {**PROPERTIES, "text": {**PROPERTIES["text"], "norms": False}}},
    ],
)  # fmt: skip
def test_foreign_index_is_neither_read_nor_written(over: dict[str, Any]) -> None:
    cluster, transport, _ = cluster_of(described(**over))
    indexes = OpenSearchIndexes(cluster, shards=1)
    with pytest.raises(IndexMismatch, match=r"Delete the index\. Then load the corpus again"):
        indexes.open(KEY)
    with pytest.raises(IndexMismatch):
        indexes.begin(KEY, "en")
    assert {method for method, _, _ in transport.calls} == {"GET"}


def test_index_with_another_similarity_is_rejected() -> None:
    changed = described()
    changed[f"tlm-{KEY.slug}"]["settings"]["index"]["similarity"]["default"]["k1"] = "0.9"
    cluster, _, _ = cluster_of(changed)
    with pytest.raises(IndexMismatch):
        OpenSearchIndexes(cluster, shards=1).open(KEY)


@pytest.mark.parametrize("status", ["green", "yellow", "red"])
def test_check_detects_missing_shards(status: str) -> None:
    cluster, transport, _ = cluster_of({"status": status})
    assert OpenSearchIndexes(cluster, shards=1).check() is (status != "red")
    assert transport.calls == [("GET", "/_cluster/health/tlm-*", None)]


def test_each_request_of_a_check_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, transport, _ = cluster_of({"status": "green"})
    answer, limits = transport.perform_request, list[float]()

    def record(method: str, path: str, params: dict[str, Any], body: Any) -> Any:
        limits.append(params["request_timeout"])
        return answer(method, path, params, body)

    monkeypatch.setattr(transport, "perform_request", record)
    OpenSearchIndexes(cluster, shards=1).check()
    assert len(limits) == 2 and sum(limits) < 10, "Prometheus waits 10 s"


def test_index_names_are_lower_case_and_unique() -> None:
    keys = [CorpusKey("t", "Docs", "v1"), CorpusKey("t", "docs", "v1"), CorpusKey("u", "docs", "v1"),
            CorpusKey("t", "docs v1", ""), CorpusKey("t", "../..", "*"), CorpusKey("t", "文書" * 99, "v1")]  # fmt: skip
    slugs = [key.slug for key in keys]
    assert len(set(slugs)) == len(keys)
    assert all(
        slug == slug.lower() and len(slug) < 100 and set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        for slug in slugs
    )
