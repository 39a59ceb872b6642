"""What several retrievers work on: each run is claimed by one of them, and all can read and stop it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import redis

from services.common.redis_client import PREFIX

_RUNNING_SECONDS = 30  # a run whose retriever died is forgotten after this time
_ENDED_SECONDS = 86_400
BEAT_SECONDS = 1.0  # between two saves of a run

# KEYS: entry. ARGV: new run, run that it replaces ('' = none), prefix, status, seconds. Returns 1, or 0 if another
# run holds the entry.
_CLAIM = """
if (redis.call('HGET', KEYS[1], 'run') or '') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'prefix', ARGV[3], 'status', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
"""
# KEYS: entry. ARGV: run, prefix, status ('' = delete the entry), seconds. Returns 1, or 0 if the run must stop.
_SAVE = """
local run = redis.call('HGET', KEYS[1], 'run')
if run and run ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('DEL', KEYS[1]) return 1 end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'prefix', ARGV[2], 'status', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return redis.call('HEXISTS', KEYS[1], 'stop') == 0 and 1 or 0
"""


@dataclass(frozen=True)
class Entry:
    """A run of some retriever. status: JSON."""

    run: str
    prefix: str
    status: str


class Registry:
    """The registry of a retriever that is alone: it knows its runs itself."""

    def read(self, name: str) -> Entry | None:  # noqa: ARG002
        """Return the run of this name, also of another retriever."""
        return None

    def claim(self, name: str, status: str, *, prefix: str = "", instead_of: str = "") -> str | None:  # noqa: ARG002
        """Return the id of a new run, or None if another retriever was first. instead_of: the run that it replaces."""
        return uuid.uuid4().hex

    def save(self, name: str, run: str, status: str, *, running: bool, prefix: str = "") -> bool:  # noqa: ARG002
        """Save the status of a run. Returns False if it must stop: another one replaces it, or it was stopped."""
        return True

    def stop(self, name: str) -> None:
        """Ask the retriever that holds the run to stop it."""

    def forget(self, name: str, run: str) -> None:
        """Delete a run, unless another one has replaced it."""


class SharedRegistry(Registry):
    """The registry in Redis. Each call may raise StoreUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis: Any = client
        self._claim, self._save = client.register_script(_CLAIM), client.register_script(_SAVE)

    def read(self, name: str) -> Entry | None:
        run, prefix, status = self._redis.hmget(_key(name), "run", "prefix", "status")
        return Entry(run, prefix or "", status) if run else None

    def claim(self, name: str, status: str, *, prefix: str = "", instead_of: str = "") -> str | None:
        run = uuid.uuid4().hex
        claimed = self._claim(keys=[_key(name)], args=[run, instead_of, prefix, status, _RUNNING_SECONDS])
        return run if claimed else None

    def save(self, name: str, run: str, status: str, *, running: bool, prefix: str = "") -> bool:
        seconds = _RUNNING_SECONDS if running else _ENDED_SECONDS
        return bool(self._save(keys=[_key(name)], args=[run, prefix, status, seconds]))

    def stop(self, name: str) -> None:
        if self._redis.exists(_key(name)):
            self._redis.hset(_key(name), "stop", 1)

    def forget(self, name: str, run: str) -> None:
        self.save(name, run, "", running=False)


def _key(name: str) -> str:
    return f"{PREFIX}:retriever:{name}"
