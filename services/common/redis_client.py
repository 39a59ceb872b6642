"""Access to Redis: the connection, the names of the keys, and the translation of errors.

Keys have the prefix `tlm`; the tenant T stands in braces:
    tlm:{T}:job:ID        hash, the record            tlm:{T}:jobs        all job ids, sorted by id, and so by time
    tlm:{T}:events:ID     stream, ids 1-0, 2-0, …     tlm:{T}:state:S     job ids in state S
    tlm:{T}:metrics:ID    stream                      tlm:{T}:artifacts   artifact id → result of `entry_of`
    tlm:{T}:logs:ID       stream                      tlm:{T}:checkpoints:ARTIFACT   list of published checkpoints
    tlm:{T}:job-artifacts:ID   set of artifact ids that the job published or wrote checkpoints for, without the ids in
                          its result and in its references in the storage
    tlm:{T}:idem:KEY      idempotency key             tlm:queue, tlm:leases          members T/ID, scored by time: of
                                                      submission in queue, of expiry in leases
    tlm:{T}:names         job id → name, for searches
    tlm:{T}:aliases       alias of a model → job id
    tlm:{T}:deleted:ID    a job that was deleted; expires
    tlm:{T}:stage-rates   name of a rate, such as `flop/bf16 on DEVICE` → seconds per unit of work, and the job that
                          measured them; `device` → the kind of device of the newest worker
    tlm:{T}:kind:K, :on:DATASET, :data:DIGEST, :label:DIGEST   job ids, for lists      tlm:queue:N   other priorities
    tlm:feed              stream of the events of all jobs
    tlm:removals          T/ID of a deleted job or dataset → what remains to be deleted
    tlm:to-move           T/ID of jobs whose streams move to the storage
    tlm:ended             T/ID of ended jobs with uncompressed records, scored by the time when their streams moved
    tlm:retriever:NAME    run of a load (NAME: name of its index) or of a selection (NAME: artifact id); expires
    tlm:orphans           folder that no record names → first time it was seen
    tlm:obstacles         coordinator → time, and why it starts no job
    tlm:disk-free         kB free on Redis's disk, from a loop beside Redis (docker-compose.yml, redis.yaml),
                          or from the supervisor of `tlm up`; expires
services/common/catalog.py lists the keys of datasets and corpora.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import redis.exceptions as redis_errors
from pydantic import ValidationError
from redis.commands.core import Script

from tlm_core.artifacts.hashing import canonical_json
from tlm_core.errors import StoreFull, StoreUnavailable, TLMError, UnreadableRecord
from tlm_core.jobs.states import TERMINAL

PREFIX = "tlm"
QUEUE, LEASES, FEED, REMOVALS = f"{PREFIX}:queue", f"{PREFIX}:leases", f"{PREFIX}:feed", f"{PREFIX}:removals"
TO_MOVE, ENDED, DISK_FREE = f"{PREFIX}:to-move", f"{PREFIX}:ended", f"{PREFIX}:disk-free"
ORPHANS, OBSTACLES = f"{PREFIX}:orphans", f"{PREFIX}:obstacles"
TERMINAL_JSON = canonical_json(dict.fromkeys(TERMINAL, True))  # an argument of scripts
_DISK_RESERVE = 256 << 20  # bytes that stay free on Redis's disk, beyond a copy of its data

# Codes of temporary errors: for example, Redis starts, runs a long script, or is a replica.
_TEMPORARY = ("LOADING", "BUSY", "READONLY", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN", "CLUSTERDOWN")


def key(tenant: str, *parts: str) -> str:
    """Return the Redis key of a tenant's record or list, such as key(tenant, "job", job_id)."""
    return ":".join((PREFIX, f"{{{tenant}}}", *parts))


def connect(url: str, *, password: str | None = None, timeout: float = 5.0, idle_connections: int = 4) -> redis.Redis:
    """Return a client of the Redis at `url`. Each call times out after `timeout` seconds.

    idle_connections: the most connections that stay open without a call.
    """
    times = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    pool = _Pool.from_url(url, password=password, decode_responses=True, **times)
    pool.most_idle = idle_connections
    return _Client.from_pool(pool)


def load_scripts(client: redis.Redis, folder: Path) -> dict[str, Script]:
    """Return the Lua scripts of a folder: file name without `.lua` → script. Redis runs each script atomically."""
    return {path.stem: client.register_script(path.read_text(encoding="utf-8")) for path in folder.glob("*.lua")}


def check_disk(client: redis.Redis) -> None:
    """Raise StoreFull if the disk of Redis is almost full. Callers check this before they create a record.

    When Redis rewrites the append-only file, it needs room for a second copy of its data. A full disk ends Redis.
    """
    pipe = client.pipeline(transaction=False)
    pipe.get(DISK_FREE)
    pipe.info("memory")
    value, memory = pipe.execute()
    free, needed = free_bytes(value), memory["used_memory"] + _DISK_RESERVE
    if free is not None and free < needed:
        raise StoreFull(
            f"The disk of Redis has only {free >> 20} MiB of free space. Until {needed >> 20} MiB are "
            "free, the service accepts no upload and starts no job. Enlarge the disk, or delete other files on it."
        )


def free_bytes(disk_free: str | None) -> int | None:
    """Return the free bytes on Redis's disk from the value of DISK_FREE (kB), or None if it is not a number."""
    return int(disk_free) * 1024 if disk_free and disk_free.isdecimal() else None


def unreadable(name: str, error: ValidationError, remedy: str = "restore Redis from a backup") -> UnreadableRecord:
    """Return the error for a record that does not match its pydantic model.

    name: names the record, such as "job job_1". remedy: what the user can do instead of running the newest release.
    """
    first = error.errors()[0]
    return UnreadableRecord(
        f"The record of {name} is damaged, or another release of the service wrote it: "
        f"{'.'.join(map(str, first['loc']))}: {first['msg']}. Run the newest release in all processes, or {remedy}."
    )


class _Pool(redis.ConnectionPool):
    """A connection pool with at most `most_idle` idle connections. The pool of redis-py does not limit this number."""

    most_idle: int

    def release(self, connection: redis.Connection) -> None:  # type: ignore[override] # as in ConnectionPool
        super().release(connection)
        with self._lock:
            idle = self._available_connections  # The newest is last, and is used next.
            excess = [idle.pop(0) for _ in range(len(idle) - self.most_idle)]
            self._created_connections -= len(excess)
        for closed in excess:
            closed.disconnect()


class _Client(redis.Redis):
    """A client that raises StoreFull, StoreUnavailable or UnreadableRecord for each error of redis-py."""

    def execute_command(self, *args: object, **options: object) -> object:
        with _translated_errors():
            return super().execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(redis.client.Pipeline):
    def watch(self, *names: bytes | str | memoryview[int]) -> None:
        with _translated_errors():
            super().watch(*names)

    def execute(self, raise_on_error: bool = True) -> list[object]:
        with _translated_errors():
            answers = super().execute(raise_on_error)
        return [_translate(answer) if isinstance(answer, redis_errors.RedisError) else answer for answer in answers]


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except (redis_errors.NoScriptError, redis_errors.WatchError):  # redis-py loads the script, or tries again.
        raise
    except redis_errors.RedisError as error:
        raise _translate(error) from error


def _translate(error: redis_errors.RedisError) -> TLMError:
    text = str(error).rstrip(".")
    # For a command inside a script, Redis 6 wraps the message in a longer sentence.
    if isinstance(error, redis_errors.OutOfMemoryError) or "OOM command" in text:
        return StoreFull("Redis has no memory left. Raise its maxmemory or delete old jobs.")
    if "MISCONF" in text or "No space left" in text:
        return StoreFull(f"Redis cannot write to its disk: {text}. Free space on this disk.")
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
        return StoreUnavailable(f"Redis rejects the credentials: {text}. Check the password in the settings.")
    if isinstance(error, redis_errors.ResponseError) and not any(word in text for word in _TEMPORARY):
        remedy = "Run the newest release in all processes, or restore Redis from a backup."
        return UnreadableRecord(f"Redis rejects a command: {text}. {remedy}")
    return StoreUnavailable(f"Redis does not answer: {text or type(error).__name__}. Check that it runs.")
