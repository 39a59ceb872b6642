"""The registry of all runs (loads and selections). One retriever claims a run. Others can read and stop the run."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from services.common.redis_client import PREFIX, load_scripts
from services.common.retriever_client import IndexLoad, SelectionRun
from tlm_core.errors import TLMError

_RUNNING_SECONDS = 30  # after this time, the entry of a run whose retriever died expires
_ENDED_SECONDS = 86_400
BEAT_SECONDS = 1.0  # between two saves of a run


@dataclass(kw_only=True)
class Run:
    """A load or selection of a retriever. prefix: output folder of a selection, or "". stop: if set, the run ends."""

    status: IndexLoad | SelectionRun
    prefix: str = ""
    id: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_active(self) -> bool:
        return self.status.state in ("loading", "running")

    def update(self, **changes: object) -> None:
        self.status = self.status.model_copy(update=changes)

    def fail(self, error: TLMError) -> None:
        self.update(state="failed", error=error.as_dict())


@dataclass(frozen=True)
class Entry:
    """The entry of a run in the registry. run: id of the run. status: IndexLoad or SelectionRun as JSON."""

    run: str
    prefix: str
    status: str


class Registry:
    """The registry of a single retriever. It stores nothing, because the retriever has its runs in memory."""

    def __init__(self) -> None:
        # Without this lock, `save_active` could replace the last status of an ended run, or restore a deleted entry.
        self._lock = threading.RLock()

    def read(self, name: str) -> Entry | None:  # noqa: ARG002
        """Return the entry `name`, or None. name: artifact id of a selection, or `CorpusKey.slug` of a load."""
        return None

    def elsewhere(self, name: str, own: Run | None) -> Entry | None:
        """Return the entry `name` if another retriever has claimed it, else None. own: the local run, or None."""
        entry = self.read(name)
        return None if entry is None or (own is not None and own.id == entry.run) else entry

    def claim(self, name: str, run: Run, *, instead_of: str = "") -> bool:  # noqa: ARG002
        """Set `run.id`, and claim the entry `name` for the run. Return False if another run has the entry.

        instead_of: id of a run that `run` may replace, or "" for none.
        """
        run.id = uuid.uuid4().hex
        return True

    def save(self, name: str, run: Run) -> bool:  # noqa: ARG002
        """Save the status of a run. Returns False if the run was stopped, or replaced by another run."""
        return True

    def save_active(self, runs: Iterable[tuple[str, Run]]) -> None:
        """Save each active run of `runs`, pairs (name, run). Stop a run that another retriever stopped or replaced."""
        for name, run in runs:
            with self._lock:
                if run.is_active and not self.save(name, run):
                    run.stop.set()

    def stop(self, name: str) -> None:
        """Mark the run `name` as stopped. The retriever that has claimed the run then stops it."""

    def forget(self, name: str, run: str) -> None:
        """Delete the entry `name` if it belongs to the run with the id `run`."""


class SharedRegistry(Registry):
    """The registry in Redis. Each call may raise StoreUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self._redis: Any = client
        self._script = load_scripts(client, Path(__file__).parent / "lua")

    def read(self, name: str) -> Entry | None:
        run, prefix, status = self._redis.hmget(_key(name), "run", "prefix", "status")
        return Entry(run, prefix or "", status) if run else None

    def claim(self, name: str, run: Run, *, instead_of: str = "") -> bool:
        super().claim(name, run)
        args = (run.id, instead_of, run.prefix, run.status.model_dump_json(), _RUNNING_SECONDS)
        return bool(self._script["claim"](keys=[_key(name)], args=args))

    def save(self, name: str, run: Run) -> bool:
        with self._lock:
            seconds = _RUNNING_SECONDS if run.is_active else _ENDED_SECONDS
            args = (run.id, run.prefix, run.status.model_dump_json(), seconds)
            return bool(self._script["save"](keys=[_key(name)], args=args))

    def stop(self, name: str) -> None:
        if self._redis.exists(_key(name)):
            self._redis.hset(_key(name), "stop", 1)

    def forget(self, name: str, run: str) -> None:
        with self._lock:
            self._script["save"](keys=[_key(name)], args=(run, "", "", 0))


def _key(name: str) -> str:
    return f"{PREFIX}:retriever:{name}"
