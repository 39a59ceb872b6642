"""Start and stop a local stack.

`python -m tlm_client.stack.control PIPE OPTIONS PID` runs a background supervisor. The supervisor reports to the file
descriptor PIPE. When the process PID ends, the supervisor stops the stack. If PID is empty, the stack continues.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

from tlm_client.stack.folder import StackFolder
from tlm_client.stack.parts import StackOptions, check_ports, clear_ray, plan_stack
from tlm_client.stack.processes import FOLDER_MARK, RUN_MARK, cleaner, kill_processes
from tlm_client.stack.supervisor import Notify, StopFlag, Supervisor
from tlm_core.errors import TLMError, Unavailable, error_from_dict

_SHUTDOWN_SECONDS = 90.0
_OPTIONS = TypeAdapter(StackOptions)


def run_stack(
    options: StackOptions, *, notify: Notify, on_ready: Callable[[str], None], tied_to: int | None = None
) -> bool:
    """Run the stack in this process until a signal, or until the parent process `tied_to` ends.

    Return whether the stack became ready. Call this function from the main thread. on_ready: a function that receives
    the URL when all parts are up. Raises AlreadyRunning, MissingDependency, StorageFull or Unavailable. After an error,
    no process that this call started remains.
    """
    folder = _created_folder(options)
    with StopFlag(tied_to).on_signals() as stop, folder.locked():
        # Processes of a killed supervisor may still run. Redis needs time to write its file.
        kill_processes({FOLDER_MARK: str(folder.root)}, grace_seconds=5.0)
        folder.rotate_logs()
        environment = {**os.environ, RUN_MARK: uuid.uuid4().hex}
        plan = plan_stack(folder, options, environment)
        supervisor = Supervisor(folder, plan.parts, plan.url, notify=notify)
        try:
            with cleaner(environment[RUN_MARK]):
                return supervisor.run(stop, lambda: on_ready(plan.url))
        finally:
            clear_ray(folder)


class StackHandle:
    """A stack with a background supervisor. url: empty until the stack is up."""

    def __init__(self, process: subprocess.Popen[bytes], folder: StackFolder, pipe: int) -> None:
        self._process = process
        self._pipe = pipe
        self.folder = folder
        self.url = ""

    @property
    def token(self) -> str:
        return self.folder.token_file.read_text(encoding="utf-8").strip()

    def wait(self, notify: Notify) -> None:
        """Wait until the stack is up. After an error or an interrupt, stop the stack. Raises what run_stack raises."""
        try:
            with open(self._pipe, encoding="utf-8") as messages:
                for message in map(json.loads, messages):
                    if "line" in message:
                        notify(message["line"])
                    elif "error" in message:
                        raise error_from_dict(message["error"])
                    else:
                        self.url = message["url"]
                        return
            log = self.folder.log("supervisor")
            raise Unavailable(f"The supervisor ended before the stack was up. See {log}.")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the stack and wait for its end. A second call does nothing."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the death signal ends its children
            self._process.wait()


def launch_stack(options: StackOptions, *, tied: bool = False) -> StackHandle:
    """Start a background supervisor and return at once. `StackHandle.wait` waits until the stack is up.

    tied: whether the stack stops when this process ends. Otherwise the stack runs until `stop_stack`. Raises
    AlreadyRunning if a port is in use, StorageFull or StorageUnavailable.
    """
    folder = _created_folder(options)
    read_end, write_end = os.pipe()
    arguments = [str(write_end), _OPTIONS.dump_json(options).decode(), str(os.getpid()) if tied else ""]
    with open(folder.log("supervisor"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tlm_client.stack.control", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(write_end,),
        )
    os.close(write_end)
    return StackHandle(process, folder, read_end)


def _created_folder(options: StackOptions) -> StackFolder:
    """Create and return the data folder. Raises AlreadyRunning if the folder is new and a port is in use."""
    folder = StackFolder(options.data_dir)
    if not folder.root.exists():
        check_ports(options)
    folder.create()
    return folder


def stop_stack(data_dir: Path) -> bool:
    """Stop the stack of `data_dir` and wait for its end. Return whether a stack ran. Raises Unavailable after 90 s."""
    folder = StackFolder(data_dir)
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    signaled = False
    while folder.running():
        state = folder.state()
        if state is not None and not signaled:
            with suppress(ProcessLookupError):  # The supervisor has just ended.
                os.kill(state.pid, signal.SIGTERM)
            signaled = True
        if time.monotonic() > deadline:
            raise Unavailable(f"The stack of {folder.root} does not stop. See its logs in {folder.logs}.")
        time.sleep(0.1)
    return signaled


def _serve(pipe: int, options: StackOptions, tied_to: int | None) -> int:
    """Run the stack, and send its messages as JSON lines to a pipe. Return the exit code."""
    connected = True

    def send(message: dict[str, object]) -> None:
        nonlocal connected
        if connected:
            try:
                os.write(pipe, (json.dumps(message) + "\n").encode())
            except BrokenPipeError:  # the process that started the stack has ended
                connected = False

    def log(line: str) -> None:
        sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        sys.stdout.flush()

    def notify(line: str) -> None:
        log(line)
        send({"line": line})

    def on_ready(url: str) -> None:
        log(f"the stack is up at {url}")
        send({"url": url})

    try:
        run_stack(options, notify=notify, on_ready=on_ready, tied_to=tied_to)
    except TLMError as error:
        log(f"stopped: {error.message}")
        send({"error": error.as_dict()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_serve(int(sys.argv[1]), _OPTIONS.validate_json(sys.argv[2]), int(sys.argv[3]) if sys.argv[3] else None))
