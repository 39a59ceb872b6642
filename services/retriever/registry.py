"""The runs of several retrievers: loads and selections. One retriever claims each run; all can read and stop it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from services.common.redis_client import PREFIX, load_scripts

_RUNNING_SECONDS = 30  # a run whose retriever died is forgotten after this time
_ENDED_SECONDS = 86_400
BEAT_SECONDS = 1.0  # between two saves of a run


@dataclass(frozen=True)
class Entry:
    """A run of any retriever. prefix: output folder of a selection. status: IndexLoad or SelectionRun as JSON."""

    run: str
    prefix: str
    status: str


class Registry:
    """The registry of a single retriever. It stores nothing, because the retriever holds its runs in memory."""

    def read(self, name: str) -> Entry | None:  # noqa: ARG002
        """Return the run with this name on any retriever, or None if there is none."""
        return None

    def claim(self, name: str, status: str, *, prefix: str = "", instead_of: str = "") -> str | None:  # noqa: ARG002
        """Return the id of a new run, or None if another retriever was first. instead_of: id of the run to replace."""
        return uuid.uuid4().hex

    def save(self, name: str, run: str, status: str, *, running: bool, prefix: str = "") -> bool:  # noqa: ARG002
        """Save the status of a run. Returns False if the run was stopped, or replaced by another run."""
        return True

    def stop(self, name: str) -> None:
        """Mark a run as stopped. The retriever that holds the run reads the mark and stops it."""

    def forget(self, name: str, run: str) -> None:
        """Delete the entry of a run, unless another run has replaced it."""


class SharedRegistry(Registry):
    """The registry in Redis. Each call may raise StoreUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis: Any = client
        self._script = load_scripts(client, Path(__file__).parent / "lua")

    def read(self, name: str) -> Entry | None:
        run, prefix, status = self._redis.hmget(_key(name), "run", "prefix", "status")
        return Entry(run, prefix or "", status) if run else None

    def claim(self, name: str, status: str, *, prefix: str = "", instead_of: str = "") -> str | None:
        run = uuid.uuid4().hex
        claimed = self._script["claim"](keys=[_key(name)], args=[run, instead_of, prefix, status, _RUNNING_SECONDS])
        return run if claimed else None

    def save(self, name: str, run: str, status: str, *, running: bool, prefix: str = "") -> bool:
        seconds = _RUNNING_SECONDS if running else _ENDED_SECONDS
        return bool(self._script["save"](keys=[_key(name)], args=[run, prefix, status, seconds]))

    def stop(self, name: str) -> None:
        if self._redis.exists(_key(name)):
            self._redis.hset(_key(name), "stop", 1)

    def forget(self, name: str, run: str) -> None:
        self.save(name, run, "", running=False)


def _key(name: str) -> str:
    return f"{PREFIX}:retriever:{name}"
