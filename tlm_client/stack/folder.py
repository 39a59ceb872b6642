"""The data folder of a local stack: where everything lies, its secrets, its lock and its state file."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tlm_core.artifacts import storage_errors
from tlm_core.errors import AlreadyRunning, StorageFull

# The append-only file, the index and a model under way must fit, or the first job fails half-way.
LEAST_FREE_BYTES = 1 << 30
_SECRETS = ("internal_token", "redis_password", "ray_token")


class PartState(BaseModel):
    """One process of the stack. state: waiting for others, starting, up, or down until its next start."""

    model_config = ConfigDict(frozen=True)

    state: Literal["waiting", "starting", "up", "down"]
    pid: int | None = None
    restarts: int = 0
    log: str


class StackState(BaseModel):
    """What a running stack tells about itself. pid: of its supervisor; started_at: Unix seconds."""

    model_config = ConfigDict(frozen=True)

    state: Literal["starting", "ready", "stopping"]
    pid: int
    url: str
    started_at: float
    parts: dict[str, PartState] = {}


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """$XDG_DATA_HOME/tlm, else ~/.local/share/tlm."""
    base = environment.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "tlm"


class StackFolder:
    """Paths below the data folder. Making one touches nothing; `create` makes the folders."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.redis = self.root / "redis"
        self.storage = self.root / "storage"
        self.scratch = self.root / "scratch"
        self.logs = self.root / "logs"
        self.token_file = self.root / "secrets" / "api_token"
        self._state_file = self.root / "stack.json"

    def create(self, *, free_bytes: int | None = None) -> None:
        """Make the folders. Raises StorageFull below LEAST_FREE_BYTES; free_bytes: asked of the disk if None."""
        with storage_errors(f"making {self.root}"):
            for path in (self.root, self.redis, self.storage, self.scratch, self.logs, self.token_file.parent):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.token_file.parent.chmod(0o700)
            free = shutil.disk_usage(self.root).free if free_bytes is None else free_bytes
        if free < LEAST_FREE_BYTES:
            raise StorageFull(
                f"only {free / 1e6:,.0f} MB are free at {self.root}; the stack needs {LEAST_FREE_BYTES / 1e6:,.0f} MB: "
                "free some space or choose another --data-dir"
            )

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    def turn_logs(self) -> None:
        """Begin new logs of the parts, and keep those of the run before as NAME.log.1."""
        for path in self.logs.glob("*.log"):
            if path != self.log("supervisor"):  # which the supervisor that calls this has open
                path.replace(f"{path}.1")

    def secrets(self) -> dict[str, str]:
        """Secrets between the parts, made at the first start; files of mode 0600. The gateway makes the API token."""
        with storage_errors(f"writing the secrets of {self.root}"):
            return {name: self._secret(name) for name in _SECRETS}

    def _secret(self, name: str) -> str:
        path = self.token_file.parent / name
        if not path.exists():
            _write_private(path, secrets.token_urlsafe(32) + "\n")
        return path.read_text(encoding="utf-8").strip()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one supervisor. Raises AlreadyRunning that names the URL of the one there is."""
        with storage_errors(f"locking {self.root}"):
            # Kept open, never deleted: two processes that lock two files of one name would both believe to be alone.
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Once more, since somebody who only asks whether it is held holds it for a moment.
            if not _try_lock(descriptor, tries=3):
                state = self.state()
                where = f"at {state.url} (pid {state.pid})" if state else "and is just starting or stopping"
                raise AlreadyRunning(
                    f"the stack of {self.root} is already running {where}; use it, stop it with `tlm down`, "
                    "or choose another --data-dir",
                    url=state.url if state else None,
                )
            yield
        finally:
            os.close(descriptor)

    def running(self) -> bool:
        """Whether a supervisor holds the folder."""
        try:
            descriptor = os.open(self.root / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def state(self) -> StackState | None:
        """What the stack last wrote about itself; None if there is nothing, or nothing one can read."""
        try:
            return StackState.model_validate_json(self._state_file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write_state(self, state: StackState) -> None:
        with storage_errors(f"writing {self._state_file}"):
            _write_private(self._state_file, state.model_dump_json(indent=2) + "\n")

    def clear_state(self) -> None:
        self._state_file.unlink(missing_ok=True)


def _try_lock(descriptor: int, *, tries: int = 1) -> bool:
    for rest in reversed(range(tries)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if rest:
                time.sleep(0.1)
    return False


def _write_private(path: Path, text: str) -> None:
    """Write `path` as a whole or not at all, readable by its owner alone."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
