"""Writing through `_bulk`: nothing is lost or doubled, what is refused is kept apart, the pace follows the cluster."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import opensearchpy.exceptions as foreign
import pytest

from services.retriever import bulk
from services.retriever.bulk import CHECKSUM_RANGE, BulkWriter, ChunkSize, Taken, id_key
from services.retriever.cluster import Cluster
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexUnavailable, InvalidRequest, NotFound, StorageFull, TLMError

Item = tuple[int, str]


class Index:
    """Plays the client of a cluster with one index. judge: status and reason for (id, times it was sent before).

    before: called with each request's ids and their bytes; what it raises is the answer to the request.
    """

    def __init__(
        self,
        judge: Callable[[str, int], Item] = lambda *_: (201, ""),
        before: Callable[[list[str], int], None] = lambda *_: None,
    ) -> None:
        self.transport = self
        self.held: dict[str, None] = {}
        self._sent: Counter[str] = Counter()
        self.requests: list[list[str]] = []
        self._judge = judge
        self._before = before
        self._lock = threading.Lock()

    def perform_request(self, method: str, path: str, params: dict[str, Any], body: bytes) -> Any:
        assert (method, path, params["require_alias"]) == ("POST", "/alias/_bulk", "true")
        names = [json.loads(line)["create"]["_id"] for line in body.splitlines()[::2]]
        with self._lock:
            sent_before = {name: self._sent[name] for name in names}
            self._sent.update(names)
            self.requests.append(names)
            self._before(names, len(body))
            return {"items": [self._item(name, sent_before[name]) for name in names]}

    def _item(self, name: str, sent: int) -> dict[str, Any]:
        status, reason = (409, "there already") if name in self.held else self._judge(name, sent)
        if status == 201:
            self.held[name] = None
        return {"create": {"status": status, **({"error": {"type": "t", "reason": reason}} if status >= 400 else {})}}


class NoWait(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0)
        return self.is_set()


def writer_of(
    index: Index, *, size: int = 300, patience: float = 60, start: Taken | None = None
) -> tuple[BulkWriter, NoWait]:
    stop = NoWait()
    cluster = Cluster(index, patience=patience, stop=stop)
    return BulkWriter(cluster, "alias", start or Taken(), size=ChunkSize(size), clock=lambda: 0.0), stop


def write(writer: BulkWriter, count: int, first: int = 0) -> list[str]:
    """Write passages p0, p1, … of some 100 bytes each and wait for them."""
    names = [f"p{number}" for number in range(first, first + count)]
    for name in names:
        passage = Passage(name, "x" * 60, "s")
        lines = json.dumps({"create": {"_id": name}}), json.dumps(passage._asdict())
        writer.write(passage, "".join(f"{line}\n" for line in lines).encode())
    writer.flush()
    writer.close()
    return names


def failure(status: int, reason: str = "because") -> foreign.TransportError:
    cls: type[foreign.TransportError] = foreign.HTTP_EXCEPTIONS.get(status, foreign.TransportError)
    return cls(status, "kind", {"error": {"type": "kind", "reason": reason}, "status": status})


def fails(times: int, error: Exception) -> Callable[[list[str], int], None]:
    left = [error] * times

    def before(_names: list[str], _size: int) -> None:
        if left:
            raise left.pop()

    return before


def checksum(names: list[str]) -> int:
    return sum(map(id_key, names)) % CHECKSUM_RANGE


def test_all_passages_are_written_once_in_chunks_of_the_size() -> None:
    index = Index()
    writer, _ = writer_of(index, size=bulk.LEAST_BYTES)
    names = write(writer, 2000)
    assert sorted(index.held) == sorted(names)
    assert (writer.taken, writer.checksum, writer.refused) == (2000, checksum(names), [])
    assert 1 < len(index.requests) < 10


def test_only_the_passages_that_were_turned_away_are_sent_again() -> None:
    index = Index(lambda name, sent: (429, "queue full") if sent < 2 and name in ("p1", "p3") else (201, ""))
    writer, stop = writer_of(index, size=100_000)
    names = write(writer, 4)
    assert index.requests == [["p0", "p1", "p2", "p3"], ["p1", "p3"], ["p1", "p3"]]
    assert sorted(index.held) == names and writer.taken == 4 and len(stop.waited) == 2


def test_passages_that_are_there_already_are_neither_doubled_nor_a_fault() -> None:
    index = Index()
    write(writer_of(index)[0], 10)
    writer, _ = writer_of(index)
    names = write(writer, 20)
    assert sorted(index.held) == sorted(names)
    assert (writer.taken, writer.checksum) == (20, checksum(names))


def test_a_passage_that_is_refused_is_kept_apart_with_the_reason_and_the_rest_goes_in() -> None:
    index = Index(lambda name, _: (400, "failed to parse") if name in ("p3", "p7") else (201, ""))
    writer, stop = writer_of(index)
    names = write(writer, 10)
    assert [(entry.number, entry.passage.id) for entry in writer.refused] == [(3, "p3"), (7, "p7")]
    assert all("failed to parse" in entry.reason for entry in writer.refused)
    assert len(index.held) == 8 and writer.taken == 10 and not stop.waited
    assert writer.checksum == checksum([name for name in names if name not in ("p3", "p7")])


@pytest.mark.parametrize("status", [400, 413])
def test_one_passage_that_spoils_its_whole_request_is_found_and_kept_apart(status: int) -> None:
    def before(names: list[str], _size: int) -> None:
        if "p5" in names:
            raise failure(status, "id is too long")

    index = Index(before=before)
    writer, _ = writer_of(index, size=100_000)
    write(writer, 16)
    assert [entry.passage.id for entry in writer.refused] == ["p5"] and len(index.held) == 15


def test_when_too_much_is_refused_the_load_ends_with_the_first_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST_REFUSED", 5)
    writer, _ = writer_of(Index(lambda *_: (400, "strict mapping")))
    with pytest.raises(InvalidRequest, match=r"more than 5 passages.*strict mapping"):
        write(writer, 10)


@pytest.mark.parametrize(
    ("item", "expected", "says"),
    [
        ((403, "index read-only / allow delete"), StorageFull, "more room"),
        ((429, "disk usage exceeded flood-stage watermark"), StorageFull, "more room"),
        ((404, "no such index"), NotFound, "deleted"),
        ((403, "blocked by: [FORBIDDEN/8/index write (api)]"), Conflict, "closed for writing"),
    ],
)
def test_what_is_no_passages_fault_ends_the_load(item: Item, expected: type[TLMError], says: str) -> None:
    writer, _ = writer_of(Index(lambda *_: item), patience=0)
    with pytest.raises(expected, match=says):
        write(writer, 2)
    assert writer.taken == 0


def test_a_cluster_that_never_takes_a_passage_is_unavailable() -> None:
    writer, _ = writer_of(Index(lambda *_: (429, "queue full")), patience=0)
    with pytest.raises(IndexUnavailable, match="queue full"):
        write(writer, 1)


@pytest.mark.parametrize(
    "error", [failure(429), failure(503), foreign.ConnectionError("N/A", "cut", OSError())], ids=["429", "503", "cut"]
)
def test_a_cluster_that_is_away_for_a_while_is_waited_for(error: Exception) -> None:
    index = Index(before=fails(6, error))
    writer, stop = writer_of(index)
    names = write(writer, 10)
    assert sorted(index.held) == names and len(stop.waited) == 6


def test_a_cluster_that_goes_on_slowly_is_waited_for_as_long_as_it_takes() -> None:
    # One more passage each time, each time after a wait: no single wait is longer than the patience, all together are.
    index = Index(lambda name, sent: (429, "full") if sent < int(name[1:]) else (201, ""))
    now = [0.0]

    class Ticking(NoWait):
        def wait(self, timeout: float | None = None) -> bool:
            now[0] += timeout or 0
            return False

    cluster = Cluster(index, patience=1.0, stop=Ticking(), clock=lambda: now[0])
    writer = BulkWriter(cluster, "alias", Taken(), size=ChunkSize(100_000))
    assert len(write(writer, 30)) == len(index.held)
    assert now[0] > 2


def test_a_load_goes_on_behind_what_an_earlier_one_took() -> None:
    index = Index()
    first, _ = writer_of(index)
    before = write(first, 7)
    start = Taken(first.taken, first.checksum, tuple(first.refused))
    writer, _ = writer_of(index, start=start)
    names = write(writer, 5, first=7)
    assert (writer.taken, writer.checksum) == (12, checksum(before + names))


def test_what_is_counted_as_taken_never_passes_a_chunk_that_is_not_in() -> None:
    def before(names: list[str], _size: int) -> None:
        if "p0" in names:
            raise failure(503)

    index = Index(before=before)
    writer, _ = writer_of(index, patience=0)
    with pytest.raises(IndexUnavailable):
        write(writer, 8)
    writer.close()
    assert writer.taken == 0, "later chunks went in, but the first one did not"


# --- how much at once -------------------------------------------------------------------------------------------------


def test_chunks_grow_by_steps_while_answers_are_quick_and_stop_at_the_most() -> None:
    size = ChunkSize(1_000_000)
    size.answered(1_000_000, 0.5)
    assert size.bytes == 1_500_000
    for _ in range(100):
        size.answered(size.bytes, 0.5)
    assert size.bytes == bulk.MOST_BYTES


def test_chunks_are_halved_when_refused_or_slow_and_stop_at_the_least() -> None:
    size = ChunkSize(4_000_000)
    size.refused()
    assert size.bytes == 2_000_000
    size.answered(2_000_000, 60.0)
    assert size.bytes == 1_000_000
    for _ in range(100):
        size.refused()
    assert size.bytes == bulk.LEAST_BYTES


def test_a_small_rest_says_nothing_of_the_size() -> None:
    size = ChunkSize(4_000_000)
    size.answered(1_000, 0.01)
    assert size.bytes == 4_000_000


def test_what_is_sent_again_is_sent_in_smaller_pieces() -> None:
    seen: list[int] = []

    def before(_names: list[str], size: int) -> None:
        seen.append(size)
        if size > 150_000:
            raise failure(429)

    index = Index(before=before)
    writer, _ = writer_of(index, size=800_000)
    names = write(writer, 6000)
    assert sorted(index.held) == sorted(names)
    assert max(seen) > 150_000 > seen[-1]
