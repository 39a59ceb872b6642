"""Bulk writes: no passage is lost or doubled, refused passages are reported, and temporary failures are retried."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import opensearchpy.exceptions as client_errors
import pytest
from opensearchpy.serializer import JSONSerializer

from services.retriever import bulk
from services.retriever.bulk import HASH_RANGE, BulkWriter, LoadCursor, id_hash
from services.retriever.cluster import Cluster
from tests.unit.retriever.fake_wait import NoWait
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexUnavailable, InvalidRequest, StorageFull, TLMError

Result = tuple[int, str]


class FakeClient:
    """The client of a cluster with one index.

    judge: returns status and reason for (id, times it was sent before). before: receives the ids of each request; an
    exception from it is the response.
    """

    def __init__(
        self,
        judge: Callable[[str, int], Result] = lambda *_: (201, ""),
        before: Callable[[list[str]], None] = lambda _: None,
    ) -> None:
        self.transport = SimpleNamespace(serializer=JSONSerializer())
        self.stored: list[str] = []
        self.requests: list[list[str]] = []
        self._sent: Counter[str] = Counter()
        self._judge = judge
        self._before = before
        self._lock = threading.Lock()

    def bulk(self, *, body: str, index: str, require_alias: bool, filter_path: str) -> dict[str, Any]:
        assert (index, require_alias) == ("alias", True) and "items.create.status" in filter_path
        ids = [json.loads(line)["create"]["_id"] for line in body.splitlines()[::2]]
        with self._lock:
            sent_before = dict(self._sent)
            self._sent.update(ids)
            self.requests.append(ids)
            self._before(ids)
            return {"items": [self._item(name, sent_before.get(name, 0)) for name in ids]}

    def _item(self, name: str, sent: int) -> dict[str, Any]:
        status, reason = (409, "exists") if name in self.stored else self._judge(name, sent)
        if status == 201:
            self.stored.append(name)
        return {"create": {"status": status, **({"error": {"type": "t", "reason": reason}} if status >= 400 else {})}}


def writer_of(
    client: FakeClient, *, retry_seconds: float = 60, start: LoadCursor | None = None
) -> tuple[BulkWriter, NoWait]:
    stop = NoWait()
    cluster = Cluster(client, retry_seconds=retry_seconds, stop=stop, clock=stop.clock)
    return BulkWriter(cluster, "alias", Passage._asdict, start or LoadCursor()), stop


def write(writer: BulkWriter, count: int, first: int = 0, batch: int = 1000) -> list[str]:
    """Write passages p0, p1, … in batches and wait for them."""
    passages = [Passage(f"p{number}", "x" * 60, "s") for number in range(first, first + count)]
    try:
        for start in range(0, count, batch):
            writer.write(passages[start : start + batch])
        writer.flush()
    finally:
        writer.close()
    return [passage.id for passage in passages]


def failure(status: int, reason: str = "because") -> client_errors.TransportError:
    cls: type[client_errors.TransportError] = client_errors.HTTP_EXCEPTIONS.get(status, client_errors.TransportError)
    return cls(status, "kind", {"error": {"type": "kind", "reason": reason}, "status": status})


def fail(times: int, error: Exception) -> Callable[[list[str]], None]:
    remaining = [error] * times

    def before(_ids: list[str]) -> None:
        if remaining:
            raise remaining.pop()

    return before


def checksum(ids: list[str]) -> int:
    return sum(map(id_hash, ids)) % HASH_RANGE


def test_all_passages_are_written_once_in_limited_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MAX_BYTES", 64_000)
    client = FakeClient()
    writer, _ = writer_of(client)
    ids = write(writer, 2000)
    assert sorted(client.stored) == sorted(ids) and 2 < len(client.requests) < 10
    assert writer.cursor == LoadCursor(2000, checksum(ids), ())


def test_only_rejected_passages_are_sent_again() -> None:
    client = FakeClient(lambda name, sent: (429, "queue full") if sent < 2 and name in ("p1", "p3") else (201, ""))
    writer, stop = writer_of(client)
    ids = write(writer, 4)
    assert client.requests == [["p0", "p1", "p2", "p3"], ["p1", "p3"], ["p1", "p3"]]
    assert sorted(client.stored) == ids and writer.cursor.position == 4 and len(stop.waits) == 2


def test_stored_passages_are_neither_doubled_nor_refused() -> None:
    client = FakeClient()
    write(writer_of(client)[0], 10)
    writer, _ = writer_of(client)
    ids = write(writer, 20)
    assert sorted(client.stored) == sorted(ids)
    assert writer.cursor == LoadCursor(20, checksum(ids), ())


def test_refused_passages_are_reported_and_the_others_stored() -> None:
    client = FakeClient(lambda name, _: (400, "failed to parse") if name in ("p3", "p7") else (201, ""))
    writer, stop = writer_of(client)
    ids = write(writer, 10, batch=4)
    cursor = writer.cursor
    assert [(entry.number, entry.passage.id) for entry in cursor.refused] == [(3, "p3"), (7, "p7")]
    assert all("failed to parse" in entry.reason for entry in cursor.refused)
    assert len(client.stored) == 8 and cursor.position == 10 and not stop.waits
    assert cursor.checksum == checksum([name for name in ids if name not in ("p3", "p7")])


@pytest.mark.parametrize("status", [400, 413])
def test_passage_that_invalidates_its_request_is_isolated(status: int) -> None:
    def before(ids: list[str]) -> None:
        if "p5" in ids:
            raise failure(status, "id is too long")

    client = FakeClient(before=before)
    writer, stop = writer_of(client)
    write(writer, 1000)
    assert [entry.passage.id for entry in writer.cursor.refused] == ["p5"] and len(client.stored) == 999
    assert len(client.requests) < 30 and not stop.waits


def test_too_many_refused_passages_end_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MAX_REFUSED", 5)
    writer, _ = writer_of(FakeClient(lambda *_: (400, "strict mapping")))
    with pytest.raises(InvalidRequest, match=r"more than 5 passages.*strict mapping"):
        write(writer, 10)


@pytest.mark.parametrize(
    ("result", "expected", "message"),
    [
        ((403, "index read-only / allow delete"), StorageFull, "Free some space"),
        ((429, "disk usage exceeded flood-stage watermark"), StorageFull, "Free some space"),
        ((404, "no such index"), IndexUnavailable, "deleted"),
        ((403, "blocked by: [FORBIDDEN/8/index write (api)]"), Conflict, "refuses writes to the index"),
    ],
)
def test_permanent_failures_end_the_load(result: Result, expected: type[TLMError], message: str) -> None:
    writer, stop = writer_of(FakeClient(lambda *_: result))
    with pytest.raises(expected, match=message):
        write(writer, 2)
    assert writer.cursor.position == 0 and not stop.waits


@pytest.mark.parametrize("error", [failure(401), failure(404, "no such index"), client_errors.SerializationError("x")])
def test_permanent_request_failures_end_the_load(error: Exception) -> None:
    writer, stop = writer_of(FakeClient(before=fail(99, error)))
    with pytest.raises(TLMError):
        write(writer, 2)
    assert not stop.waits


def test_cluster_without_progress_becomes_unavailable() -> None:
    writer, stop = writer_of(FakeClient(lambda *_: (429, "queue full")), retry_seconds=10)
    with pytest.raises(IndexUnavailable, match="queue full"):
        write(writer, 1)
    assert sum(stop.waits) == pytest.approx(10)


@pytest.mark.parametrize(
    "error",
    [failure(429), failure(503), client_errors.ConnectionError("N/A", "cut", OSError())],
    ids=["429", "503", "cut"],
)
def test_unavailable_cluster_is_retried(error: Exception) -> None:
    client = FakeClient(before=fail(6, error))
    writer, stop = writer_of(client)
    ids = write(writer, 10)
    assert sorted(client.stored) == ids and len(stop.waits) == 6


def test_slow_progress_is_retried_without_limit() -> None:
    # Each try stores one more passage: every single wait is shorter than the limit, all together are longer.
    client = FakeClient(lambda name, sent: (429, "full") if sent < int(name[1:]) else (201, ""))
    writer, stop = writer_of(client, retry_seconds=1)
    assert len(write(writer, 30)) == len(client.stored)
    assert sum(stop.waits) > 2


def test_load_resumes_after_the_cursor() -> None:
    client = FakeClient()
    first, _ = writer_of(client)
    before = write(first, 7)
    writer, _ = writer_of(client, start=first.cursor)
    ids = write(writer, 5, first=7)
    assert writer.cursor == LoadCursor(12, checksum(before + ids), ())


def test_cursor_never_passes_an_unwritten_batch() -> None:
    def before(ids: list[str]) -> None:
        if "p0" in ids:
            raise failure(503)

    writer, _ = writer_of(FakeClient(before=before), retry_seconds=0)
    with pytest.raises(IndexUnavailable):
        write(writer, 8, batch=4)
    assert writer.cursor.position == 0, "the second batch was written, but not the first"


def test_overloaded_cluster_gets_smaller_requests() -> None:
    sizes: list[int] = []

    def before(ids: list[str]) -> None:
        sizes.append(len(ids))
        if len(ids) > 200:
            raise failure(429)

    client = FakeClient(before=before)
    writer, _ = writer_of(client)
    ids = write(writer, 1000)
    assert sorted(client.stored) == sorted(ids)
    assert max(sizes) == 1000 and sizes[-1] <= 200 and min(sizes) >= 100
