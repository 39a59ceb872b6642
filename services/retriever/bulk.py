"""Writing passages through `_bulk`: as much at once as the cluster bears, and one bad passage stops no load.

The published way (a helper of the client library) sends chunks of one size, one after the other, and ends at the first
passage that is refused. Here two chunks are under way, so that the cluster works while the next one is put together.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.retriever.cluster import PASSING, Cluster, Passing, is_disk_full, reason_of
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexUnavailable, InvalidRequest, NotFound, StorageFull, TLMError

LEAST_BYTES = 64_000
FIRST_BYTES = 1_000_000
MOST_BYTES = 2_000_000  # more is no faster, and three chunks are held at once
MOST_ROWS = 5_000
MOST_REFUSED = 1_000
CHECKSUM_RANGE = 1 << 64
_STEP_BYTES = 500_000
_SLOW_SECONDS = 3.0
_IN_FLIGHT = 2


class Refused(NamedTuple):
    """A passage that the index will never take. number: its place in the corpus, from 0."""

    number: int
    passage: Passage
    reason: str


@dataclass(frozen=True)
class Taken:
    """How far a load came: `taken` passages from the first on, `checksum` of those in the index, those `refused`."""

    taken: int = 0
    checksum: int = 0
    refused: tuple[Refused, ...] = ()


def id_key(name: str) -> int:
    """A number for an id; the sum over all ids of a set, modulo CHECKSUM_RANGE, stands for the set."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class Line(NamedTuple):
    """A passage as `_bulk` takes it."""

    number: int
    passage: Passage
    body: bytes


class ChunkSize:
    """Bytes for one `_bulk`: a step more after each quick answer, half after a slow or refused one. Thread-safe.

    The rule of TCP's congestion control (additive increase, multiplicative decrease), so loads that share a cluster
    come to equal shares of it.
    """

    def __init__(self, first: int = FIRST_BYTES) -> None:
        self.bytes = first
        self._lock = threading.Lock()

    def answered(self, size: int, seconds: float) -> None:
        """`size` bytes were taken within `seconds`."""
        with self._lock:
            if seconds > _SLOW_SECONDS:
                self.bytes = max(LEAST_BYTES, min(self.bytes, size) // 2)
            elif 2 * size >= self.bytes:  # a small rest says nothing of what the cluster could bear
                self.bytes = min(MOST_BYTES, self.bytes + _STEP_BYTES)

    def refused(self) -> None:
        """The cluster had no room for all or part of a chunk."""
        with self._lock:
            self.bytes = max(LEAST_BYTES, self.bytes // 2)


class BulkWriter:
    """Writes passages to an alias, in chunks, two at a time. For one thread; holds at most three chunks in memory.

    taken, checksum, refused: as in `Taken`. Raises IndexUnavailable, StorageFull, NotFound if the alias is gone,
    Conflict if the index is closed for writing, InvalidRequest if too much is refused.
    """

    def __init__(
        self,
        cluster: Cluster,
        alias: str,
        start: Taken,
        *,
        size: ChunkSize | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.taken = start.taken
        self.checksum = start.checksum
        self.refused = list(start.refused)
        self._cluster = cluster
        self._alias = alias
        self._size = size or ChunkSize()
        self._clock = clock
        self._number = start.taken
        self._chunk: list[Line] = []
        self._bytes = 0
        self._sent: deque[tuple[list[Line], Future[list[Refused]]]] = deque()
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="bulk")

    def write(self, passage: Passage, body: bytes) -> None:
        """Take a passage, as `_bulk` has it in `body`; it is sent when a chunk is full."""
        if self._chunk and (self._bytes + len(body) > self._size.bytes or len(self._chunk) >= MOST_ROWS):
            self._send_chunk()
        self._chunk.append(Line(self._number, passage, body))
        self._number += 1
        self._bytes += len(body)

    def flush(self) -> None:
        """Send what is left and wait until all is taken."""
        if self._chunk:
            self._send_chunk()
        while self._sent:
            self._await_oldest()

    def close(self) -> None:
        """Wait for what is under way and forget the rest."""
        self._pool.shutdown(cancel_futures=True)

    def _send_chunk(self) -> None:
        if len(self._sent) >= _IN_FLIGHT:
            self._await_oldest()
        self._sent.append((self._chunk, self._pool.submit(self._send, self._chunk)))
        self._chunk, self._bytes = [], 0

    def _await_oldest(self) -> None:
        # Chunks are awaited in their order, so that `taken` never counts past one that is not in.
        chunk, sent = self._sent.popleft()
        refused = sorted(sent.result())
        out = {entry.number for entry in refused}
        keys = sum(id_key(line.passage.id) for line in chunk if line.number not in out)
        self.refused.extend(refused)
        self.checksum = (self.checksum + keys) % CHECKSUM_RANGE
        self.taken += len(chunk)
        if len(self.refused) > MOST_REFUSED:
            raise InvalidRequest(
                f"OpenSearch refuses more than {MOST_REFUSED} passages, the first because: {self.refused[0].reason}; "
                "set right what it complains of, then load again"
            )

    def _send(self, chunk: list[Line]) -> list[Refused]:
        """Write all lines of `chunk`; answers those that are refused. Runs in the pool."""
        refused: list[Refused] = []
        pieces = deque([chunk])
        patience = self._cluster.patience()
        while pieces:
            piece = pieces.popleft()
            began = self._clock()
            try:
                answer = self._cluster.once("POST", f"/{self._alias}/_bulk", body=_body(piece), params=_PARAMS)
            except Passing as busy:
                if busy.status is not None:
                    self._size.refused()
                pieces.extend(_cut(piece, self._size.bytes))
                patience.wait(busy.error)
                continue
            except InvalidRequest as error:
                # One passage makes the whole request invalid (too long an id, too many bytes): halving finds it.
                if len(piece) == 1:
                    refused.append(Refused(piece[0].number, piece[0].passage, error.message))
                else:
                    pieces.extend((piece[: len(piece) // 2], piece[len(piece) // 2 :]))
                continue
            again, busy_with = self._judge(piece, answer, refused)
            if len(again) < len(piece):
                patience = self._cluster.patience()  # it goes on, if slowly
            if again:
                self._size.refused()
                pieces.extend(_cut(again, self._size.bytes))
                patience.wait(IndexUnavailable(f"OpenSearch takes no more passages: {busy_with}; try again later"))
            else:
                self._size.answered(sum(len(line.body) for line in piece), self._clock() - began)
        return refused

    @staticmethod
    def _judge(piece: Sequence[Line], answer: Any, refused: list[Refused]) -> tuple[list[Line], str]:
        """The lines to send again, with the reason; those that never will be taken go to `refused`."""
        again: list[Line] = []
        busy_with = ""
        for line, item in zip(piece, answer["items"], strict=True):
            status = item["create"]["status"]
            if status < 400 or status == 409:  # 409: it is there already
                continue
            reason = reason_of(item["create"].get("error"))
            _raise_if_not_the_passage(status, reason)
            if status in PASSING or status >= 500:
                again.append(line)
                busy_with = reason
            else:
                refused.append(Refused(line.number, line.passage, reason))
        return again, busy_with


# Without the alias a deleted index would be made anew by the write, with a mapping of its own.
_PARAMS = {"filter_path": "items.create.status,items.create.error", "require_alias": "true"}


def _body(lines: Sequence[Line]) -> bytes:
    return b"".join(line.body for line in lines)


def _cut(lines: list[Line], most: int) -> list[list[Line]]:
    """`lines` in pieces of at most `most` bytes, or of one line."""
    pieces: list[list[Line]] = []
    room = 0
    for line in lines:
        if not pieces or len(line.body) > room:
            pieces.append([])
            room = most
        pieces[-1].append(line)
        room -= len(line.body)
    return pieces


def _raise_if_not_the_passage(status: int, reason: str) -> None:
    """Raise for what no passage is at fault for and no waiting mends."""
    error: TLMError | None = None
    if is_disk_full(reason):
        error = StorageFull(f"OpenSearch has no room left: {reason}; give its disk more room, then load again")
    elif status == 404:
        error = NotFound(f"the index was deleted while it was loaded ({reason}); load the corpus again")
    elif status == 403:
        error = Conflict(f"the index is closed for writing ({reason}); open it for writing, or load the corpus anew")
    if error is not None:
        raise error
