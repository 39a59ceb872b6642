"""The data folder of a local stack: its paths, secrets, lock and state file."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from tlm_core.artifacts import storage_errors
from tlm_core.errors import AlreadyRunning, StorageFull

# The append-only file, the index and the model of a first job must fit.
MIN_FREE_BYTES = 1 << 30
_SECRETS = ("internal_token", "redis_password", "ray_token")


class PartState(BaseModel):
    """The state of one process. `waiting`: other parts must be up first. `down`: the process ended and will restart."""

    model_config = ConfigDict(frozen=True)

    state: Literal["waiting", "starting", "up", "down"]
    pid: int | None = None
    restarts: int = 0
    log: str


class StackState(BaseModel):
    """The state of a running stack. pid: process id of the supervisor."""

    model_config = ConfigDict(frozen=True)

    state: Literal["starting", "ready", "stopping"]
    pid: int
    url: str
    started_at: AwareDatetime
    parts: dict[str, PartState] = {}


def user_folder(variable: str, default: str) -> Path:
    """Return the folder `tlm` in the folder that an environment variable names, by default in ~/`default`."""
    return Path(os.environ.get(variable) or Path.home() / default) / "tlm"


def default_data_dir() -> Path:
    """Return $TLM_DATA_DIR, else $XDG_DATA_HOME/tlm, by default ~/.local/share/tlm."""
    return Path(os.environ.get("TLM_DATA_DIR") or user_folder("XDG_DATA_HOME", ".local/share"))


class StackFolder:
    """The paths in a data folder. `create` creates the folders."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.redis = self.root / "redis"
        self.storage = self.root / "storage"
        self.scratch = self.root / "scratch"
        self.logs = self.root / "logs"
        self.token_file = self.root / "secrets" / "api_token"
        self._state_file = self.root / "stack.json"

    def create(self) -> None:
        """Create the folders. Raises StorageFull if less than MIN_FREE_BYTES is free."""
        with storage_errors(f"creating {self.root}"):
            for path in (self.root, self.redis, self.storage, self.scratch, self.logs, self.token_file.parent):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.token_file.parent.chmod(0o700)
            free = shutil.disk_usage(self.root).free
        if free < MIN_FREE_BYTES:
            raise StorageFull(
                f"Only {free / 1e6:,.0f} MB are free at {self.root}. The stack needs {MIN_FREE_BYTES / 1e6:,.0f} MB. "
                "Free some space, or choose another --data-dir."
            )

    def log(self, part: str) -> Path:
        """Return the log file of a part."""
        return self.logs / f"{part}.log"

    def rotate_logs(self) -> None:
        """Rename the parts' logs of the previous run to NAME.log.1."""
        for path in self.logs.glob("*.log"):
            if path != self.log("supervisor"):  # the calling supervisor writes to it
                path.replace(f"{path}.1")

    def secrets(self) -> dict[str, str]:
        """Return the secrets that the parts share, by name. The first call creates them as files of mode 0600."""
        with storage_errors(f"writing the secrets of {self.root}"):
            return {name: self._secret(name) for name in _SECRETS}

    def _secret(self, name: str) -> str:
        path = self.token_file.parent / name
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32) + "\n")
        return path.read_text(encoding="utf-8").strip()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one supervisor, and delete the state that a killed supervisor left.

        Raises AlreadyRunning, with the URL if a stack runs.
        """
        with storage_errors(f"locking {self.root}"):
            # The file is never deleted. Otherwise two processes could lock two different files with this name.
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Retry, because `running` holds the lock for a moment.
            if not _try_lock(descriptor, tries=3):
                state = self.state()
                where = f"already running at {state.url} (pid {state.pid})" if state else "starting or stopping"
                remedy = "Use it" if state else "Try again in a minute"
                raise AlreadyRunning(
                    f"The stack of {self.root} is {where}. {remedy}, stop it with `tlm down`, "
                    "or choose another --data-dir.",
                    url=state.url if state else None,
                )
            self.clear_state()
            yield
        finally:
            os.close(descriptor)

    def running(self) -> bool:
        """Return whether a supervisor holds the lock."""
        try:
            descriptor = os.open(self.root / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def state(self) -> StackState | None:
        """Return the state that the supervisor wrote last; None if it is missing or invalid."""
        try:
            return StackState.model_validate_json(self._state_file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def running_state(self) -> StackState | None:
        """Return the state of the running stack; None if none runs."""
        return self.state() if self.running() else None

    def write_state(self, state: StackState) -> None:
        with storage_errors(f"writing {self._state_file}"):
            write_private(self._state_file, state.model_dump_json(indent=2) + "\n")

    def clear_state(self) -> None:
        self._state_file.unlink(missing_ok=True)


def _try_lock(descriptor: int, *, tries: int = 1) -> bool:
    for attempt in range(tries):
        if attempt:
            time.sleep(0.1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
    return False


def write_private(path: Path, text: str) -> None:
    """Write `path` in one step, with mode 0600."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
            handle.write(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
