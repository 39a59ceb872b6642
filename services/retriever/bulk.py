"""Write passages to OpenSearch in bulk, with a cursor from which a later process can resume.

`streaming_bulk` of opensearch-py retries only after status 429, and nothing can interrupt these retries. So this module
itself retries until each passage is stored or refused, or no time remains.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.retriever.cluster import TEMPORARY_STATUS, Cluster, TemporaryFailure, is_disk_full, reason_of, translated
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexUnavailable, InvalidRequest, StorageFull, TLMError

MAX_BYTES = 2_000_000  # limit of a request; larger requests are not faster, and three batches are in memory at once
MAX_ROWS = 5_000
MIN_BUSY_ROWS = 100
MAX_REFUSED = 1_000
HASH_RANGE = 1 << 64
_IN_FLIGHT = 2


class Refused(NamedTuple):
    """A passage that the index refused. number: position of the passage in the corpus, from 0."""

    number: int
    passage: Passage
    reason: str


@dataclass(frozen=True)
class LoadCursor:
    """The progress of a load: each of the first `position` passages of the corpus was stored or refused.

    checksum: sum of `id_hash` over the ids of the stored passages, modulo HASH_RANGE.
    """

    position: int = 0
    checksum: int = 0
    refused: tuple[Refused, ...] = ()


def id_hash(name: str) -> int:
    """Return a 64-bit hash of the passage id `name`. The sum of the hashes identifies a set of passages."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class BulkWriter:
    """Writes passages to an OpenSearch index, two batches at a time. Not thread-safe.

    alias: the OpenSearch alias of the index. document: function from a passage to the document that OpenSearch stores.
    cursor: the progress of the load, which advances with each written batch. `write` and `flush` raise the errors of
    `Cluster`: Conflict if the index is closed for writing, and InvalidRequest after more than MAX_REFUSED refusals.
    """

    def __init__(
        self, cluster: Cluster, alias: str, document: Callable[[Passage], Mapping[str, str]], cursor: LoadCursor
    ) -> None:
        self.cursor = cursor
        self._cluster = cluster
        self._alias = alias
        self._document = document
        self._next = cursor.position
        self._sent: deque[tuple[Sequence[Passage], Future[list[Refused]]]] = deque()
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="bulk")

    def write(self, passages: Sequence[Passage]) -> None:
        """Start to write a batch. If two batches are being written, first wait for the older batch."""
        if len(self._sent) >= _IN_FLIGHT:
            self._await_oldest()
        self._sent.append((passages, self._pool.submit(self._send, self._next, passages)))
        self._next += len(passages)

    def flush(self) -> None:
        """Wait until all batches are written."""
        while self._sent:
            self._await_oldest()

    def close(self) -> None:
        """Wait for the batches in flight. Discard batches that have not started."""
        self._pool.shutdown(cancel_futures=True)

    def _await_oldest(self) -> None:
        # Batches are awaited in order, so that the cursor never passes a batch that is not written.
        passages, future = self._sent.popleft()
        refused = future.result()
        numbers = {entry.number for entry in refused}
        first, cursor = self.cursor.position, self.cursor
        stored = sum(id_hash(p.id) for number, p in enumerate(passages, first) if number not in numbers)
        all_refused = (*cursor.refused, *sorted(refused))
        self.cursor = LoadCursor(first + len(passages), (cursor.checksum + stored) % HASH_RANGE, all_refused)
        if len(all_refused) > MAX_REFUSED:
            raise InvalidRequest(
                f"OpenSearch refuses more than {MAX_REFUSED} passages. First reason: {all_refused[0].reason}. "
                "Correct the passages, then load the corpus again."
            )

    def _send(self, first: int, passages: Sequence[Passage]) -> list[Refused]:
        """Write a batch, and return the refused passages. first: position of the first passage in the corpus."""
        refused: list[Refused] = []
        pending = list(enumerate(passages, first))
        max_rows, backoff = min(MAX_ROWS, len(pending)), self._cluster.backoff()
        while pending:
            busy: TemporaryFailure | None = None
            again: list[tuple[int, Passage]] = []
            actions = (self._action(passage) for _, passage in pending)
            results = self._cluster.bulk(self._alias, actions, max_rows=max_rows, max_bytes=MAX_BYTES)
            for (number, passage), result in zip(pending, results, strict=True):
                failure = _failure(result)
                if isinstance(failure, TemporaryFailure):
                    busy = failure
                    again.append((number, passage))
                elif isinstance(failure, InvalidRequest):
                    # One passage can invalidate its whole request. Smaller requests isolate this passage.
                    if "exception" in result and max_rows > 1:
                        again.append((number, passage))
                    else:
                        refused.append(Refused(number, passage, failure.message))
                elif failure is not None:
                    raise failure
            if len(again) < len(pending):
                backoff = self._cluster.backoff()  # The cluster makes progress, so the waits start again.
            if busy is None:
                max_rows = max(1, min(max_rows, len(again)) // 2)
            elif busy.status == 429:
                max_rows = min(max_rows, max(MIN_BUSY_ROWS, max_rows // 2))
            if busy is not None:
                backoff.wait(busy.error)
            pending = again
        return refused

    def _action(self, passage: Passage) -> dict[str, object]:
        # `create` reports a conflict for a stored passage. The conflict is ignored, and the passage not written again.
        return {"_op_type": "create", "_id": passage.id, "_source": self._document(passage)}


def _failure(result: Mapping[str, Any]) -> TLMError | TemporaryFailure | None:
    """Return the error in a result of `Cluster.bulk`, or None if the index has the passage."""
    if "exception" in result:
        return translated(result["exception"])
    status, reason = result["status"], reason_of(result.get("error"))
    if status < 400 or status == 409:
        return None
    if is_disk_full(reason):
        return StorageFull(f"OpenSearch has no disk space: {reason}. Free some space, then load the corpus again.")
    if status == 404:
        # After a retryable error, the loader requests the load again. After NotFound, the load would fail.
        return IndexUnavailable(f"The index was deleted during the load ({reason}). Try again.")
    if status == 403:
        return Conflict(
            f"OpenSearch refuses writes to the index ({reason}). Allow writes to the index, or load the corpus again."
        )
    if status in TEMPORARY_STATUS or status >= 500:
        error = IndexUnavailable(f"OpenSearch accepts no passages at the moment: {reason}. Try again later.")
        return TemporaryFailure(error, status)
    return InvalidRequest(reason)
