"""Speaking with OpenSearch: what passes is waited out, what does not is told with what to do."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import opensearchpy.exceptions as foreign
import pytest
import urllib3.exceptions

from services.retriever.cluster import ERRORS, Cluster, translated
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from services.retriever.opensearch_index import OpenSearchIndex
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

OURS = {"version": {"distribution": "opensearch", "number": "3.8.0"}}
META = {"schema": 1, "tenant": "t", "name": "n", "version": "v", "analysis": "standard", "state": "loading"}


class Transport:
    """Plays the client: gives one answer after the other, the last one again and again; an exception is raised."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str, Any]] = []
        self.transport = self

    def perform_request(self, method: str, path: str, params: dict[str, Any], body: Any) -> Any:
        assert isinstance(params, dict)
        if path == "/":
            return OURS
        self.calls.append((method, path, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class NoWait(threading.Event):
    """Counts how long was waited, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0)
        return self.is_set()


def cluster_of(*answers: Any, patience: float = 60) -> tuple[Cluster, Transport, NoWait]:
    transport, stop = Transport(answers), NoWait()
    return Cluster(transport, patience=patience, stop=stop), transport, stop


def failure(status: int, kind: str = "x_exception", reason: str = "because") -> foreign.TransportError:
    cls: type[foreign.TransportError] = foreign.HTTP_EXCEPTIONS.get(status, foreign.TransportError)
    return cls(status, kind, {"error": {"type": kind, "reason": reason, "root_cause": []}, "status": status})


def index_of(*answers: Any, patience: float = 60, **meta: Any) -> tuple[OpenSearchIndex, Transport, NoWait]:
    cluster, transport, stop = cluster_of(*answers, patience=patience)
    return OpenSearchIndex(cluster, "tlm-n", {**META, **meta}, shards=1), transport, stop


def test_every_error_of_the_client_has_one_of_ours() -> None:
    theirs = {
        cls for _, cls in inspect.getmembers(foreign, inspect.isclass)
        if issubclass(cls, Exception) and not issubclass(cls, Warning)
    }  # fmt: skip
    assert theirs == ERRORS.keys() - {urllib3.exceptions.HTTPError}
    for cls in theirs:
        made = cls(500, "kind", {}) if issubclass(cls, foreign.TransportError) else cls("text")
        assert isinstance(translated(made), TLMError)


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (failure(401), IndexUnavailable, "TLM_RETRIEVER_OPENSEARCH_USER"),
        (failure(403), IndexUnavailable, "rights"),
        (foreign.SSLError("N/A", "self-signed", ValueError()), IndexUnavailable, "TLM_RETRIEVER_OPENSEARCH_CA"),
        (failure(404), NotFound, "because"),
        (failure(413), InvalidRequest, "too large"),
        (failure(400), InvalidRequest, "because"),
        (failure(409), Conflict, "because"),
        (foreign.SerializationError("no JSON"), IndexMismatch, "TLM_RETRIEVER_OPENSEARCH_URL"),
        (failure(403, reason="index read-only / allow delete (api)"), StorageFull, "more room"),
        (failure(429, reason="disk usage exceeded flood-stage watermark"), StorageFull, "more room"),
    ],
)
def test_a_fault_that_stays_is_told_at_once_with_what_to_do(
    error: Exception, expected: type[TLMError], says: str
) -> None:
    cluster, transport, stop = cluster_of(error)
    with pytest.raises(expected, match=says):
        cluster.call("GET", "/x")
    assert len(transport.calls) == 1 and not stop.waited


@pytest.mark.parametrize(
    "error",
    [
        failure(429), failure(502), failure(503), failure(504), foreign.ConnectionError("N/A", "refused", OSError()),
        foreign.ConnectionTimeout("TIMEOUT", "slow", OSError()), urllib3.exceptions.ProtocolError("cut"),
    ],
)  # fmt: skip
def test_a_fault_that_passes_is_waited_out_with_longer_and_longer_pauses(error: Exception) -> None:
    cluster, _, stop = cluster_of(error, error, error, {"done": True})
    assert cluster.call("GET", "/x") == {"done": True}
    assert stop.waited == sorted(stop.waited) and len(stop.waited) == 3


def test_patience_ends() -> None:
    cluster, _, _ = cluster_of(failure(503), patience=0)
    with pytest.raises(IndexUnavailable):
        cluster.call("GET", "/x")


def test_the_end_of_the_process_ends_every_wait() -> None:
    cluster, transport, stop = cluster_of(failure(503), patience=1e9)
    stop.set()
    with pytest.raises(IndexUnavailable):
        cluster.call("GET", "/x")
    assert len(transport.calls) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"version": {"number": "8.19.0", "build_flavor": "default"}}, {"version": {"number": "9.1.0"}}, {}, "hello",
        {"version": {"distribution": "opensearch", "number": "1.3.20"}},
    ],
)  # fmt: skip
def test_anything_but_a_recent_opensearch_is_refused(said: Any) -> None:
    transport = Transport([said])
    transport.perform_request = lambda *_, **__: said  # type: ignore[method-assign]
    with pytest.raises(IndexMismatch, match="OpenSearch 2 or later"):
        Cluster(transport, patience=0, stop=threading.Event()).version()


# --- searching --------------------------------------------------------------------------------------------------------


def response(*hits: tuple[str, float], failed: int = 0, timed_out: bool = False) -> dict[str, Any]:
    found = [{"sort": [score, name]} for name, score in hits]
    failures = [{"reason": {"type": "io", "reason": "disk"}}] * failed
    return {
        "status": 200, "timed_out": timed_out, "hits": {"hits": found},
        "_shards": {"failed": failed, "failures": failures},
    }  # fmt: skip


def error_response(status: int, kind: str) -> dict[str, Any]:
    return {"status": status, "error": {"type": kind, "reason": "because"}}


@pytest.mark.parametrize(
    "partial",
    [response(("a", 1.0), failed=1), response(timed_out=True), error_response(503, "search_phase_execution_exception"),
     error_response(429, "rejected_execution_exception")],
)  # fmt: skip
def test_a_partial_answer_is_asked_for_again_and_never_taken(partial: dict[str, Any]) -> None:
    whole = response(("a", 2.0), ("b", 1.0))
    index, transport, _ = index_of({"responses": [whole, partial]}, {"responses": [whole]}, state="ready")
    found = index.search(["first", "second"], 5)
    assert [[hit.id for hit in hits] for hits in found] == [["a", "b"], ["a", "b"]]
    assert [body.count(b'"match"') for _, _, body in transport.calls] == [2, 1]
    index, _, _ = index_of({"responses": [partial]}, patience=0, state="ready")
    with pytest.raises(IndexUnavailable, match="in full"):
        index.search(["second"], 5)


def test_a_search_that_the_cluster_does_not_understand_is_told_at_once() -> None:
    index, _, stop = index_of({"responses": [error_response(400, "parsing_exception")]})
    with pytest.raises(IndexMismatch, match="because"):
        index.search(["q"], 5)
    assert not stop.waited


def test_a_cluster_with_a_low_clause_limit_gets_terms_then_advice() -> None:
    too_many = error_response(400, "too_many_nested_clauses")
    index, transport, _ = index_of({"responses": [too_many]}, {"responses": [response(("a", 1.0))]})
    assert [hit.id for hit in index.search(["q q"], 5)[0]] == ["a"]
    assert b'"boost": 2' in transport.calls[-1][2]
    index, _, _ = index_of({"responses": [too_many]}, {"responses": [too_many]})
    with pytest.raises(IndexMismatch, match="max_clause_count"):
        index.search(["q q"], 5)


def test_a_query_without_words_is_not_sent() -> None:
    index, transport, _ = index_of({"responses": [response(("a", 1.0))]})
    assert [len(hits) for hits in index.search(["…", "q"], 5)] == [0, 1]
    assert transport.calls[0][2].count(b'"match"') == 1


def test_the_older_scale_of_scores_is_brought_to_the_common_one() -> None:
    class Older(Transport):
        def perform_request(self, method: str, path: str, params: dict[str, Any], body: Any) -> Any:
            older = {"version": {"distribution": "opensearch", "number": "2.19.1"}}
            return older if path == "/" else super().perform_request(method, path, params, body)

    cluster = Cluster(Older([{"responses": [response(("a", 2.2))]}]), patience=0, stop=threading.Event())
    [[hit]] = OpenSearchIndex(cluster, "i", META, shards=1).search(["q"], 5)
    assert hit.score == pytest.approx(1.0)


def test_passages_that_cannot_be_read_now_are_not_taken_for_missing() -> None:
    broken = {"docs": [{"_id": "a", "error": {"type": "shard", "reason": "away"}}]}
    found = {"docs": [{"_id": "a", "found": True, "_source": {"text": "t", "source": "s"}}]}
    index, _, _ = index_of(broken, found)
    assert index.fetch(["a"]) == {"a": Passage("a", "t", "s")}
    index, _, _ = index_of({"docs": [{"_id": "a", "found": False}]})
    with pytest.raises(NotFound):
        index.fetch(["a"])


# --- indexes that are not ours ----------------------------------------------------------------------------------------

KEY = CorpusKey("t", "n", "v")
PROPERTIES = {
    "text": {"type": "text", "analyzer": "standard", "index_options": "freqs"},
    "source": {"type": "keyword", "ignore_above": 1024}, "id": {"type": "keyword", "index": False},
}  # fmt: skip


def described(**over: Any) -> dict[str, Any]:
    mappings = {"_meta": {"tlm": {**META, "state": "ready"}}, "properties": PROPERTIES, **over}
    similarity = {"default": {"type": "BM25", "k1": "1.2", "b": "0.75"}}
    return {
        f"tlm-{KEY.slug}": {
            "mappings": mappings,
            "settings": {"index": {"number_of_shards": "1", "similarity": similarity}},
        }
    }


def test_an_index_of_ours_is_opened() -> None:
    cluster, _, _ = cluster_of(described())
    index = OpenSearchIndexes(cluster, shards=1).open(KEY)
    assert isinstance(index, OpenSearchIndex) and index.ready


@pytest.mark.parametrize(
    "over",
    [
        {"_meta": {}}, {"_meta": {"tlm": {**META, "schema": 99}}}, {"_meta": {"tlm": {**META, "name": "other"}}},
        {"properties": {**PROPERTIES, "text": {"type": "text", "analyzer": "english", "index_options": "freqs"}}},
        {"properties": {**PROPERTIES, "more": {"type": "keyword"}}}, {"properties": {}},
        {"properties": {**PROPERTIES, "text": {**PROPERTIES["text"], "norms": False}}},
    ],
)  # fmt: skip
def test_an_index_that_is_not_ours_is_refused_for_reading_and_writing(over: dict[str, Any]) -> None:
    cluster, transport, _ = cluster_of(described(**over))
    indexes = OpenSearchIndexes(cluster, shards=1)
    with pytest.raises(IndexMismatch, match="load the corpus again"):
        indexes.open(KEY)
    with pytest.raises(IndexMismatch):
        indexes.begin(KEY, "en")
    assert {method for method, _, _ in transport.calls} == {"GET"}


def test_another_similarity_is_not_ours() -> None:
    changed = described()
    changed[f"tlm-{KEY.slug}"]["settings"]["index"]["similarity"]["default"]["k1"] = "0.9"
    cluster, _, _ = cluster_of(changed)
    with pytest.raises(IndexMismatch):
        OpenSearchIndexes(cluster, shards=1).open(KEY)


def test_index_names_are_lower_case_and_never_the_same_for_two_keys() -> None:
    keys = [CorpusKey("t", "Docs", "v1"), CorpusKey("t", "docs", "v1"), CorpusKey("u", "docs", "v1"),
            CorpusKey("t", "docs v1", ""), CorpusKey("t", "../..", "*"), CorpusKey("t", "文書" * 99, "v1")]  # fmt: skip
    slugs = [key.slug for key in keys]
    assert len(set(slugs)) == len(keys)
    assert all(
        slug == slug.lower() and len(slug) < 100 and set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        for slug in slugs
    )
