"""Starting, finding and stopping a local stack: what `tlm up`, `tlm down` and `tlm status` do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from tlm_client.stack.folder import StackFolder, StackState
from tlm_client.stack.parts import StackOptions, clear_ray, find_ray, find_redis, plan_stack
from tlm_client.stack.processes import FOLDER_MARK, RUN_MARK, janitor, sweep
from tlm_client.stack.supervisor import Say, StopFlag, Supervisor
from tlm_core.errors import TLMError, Unavailable, error_from_dict

_SHUTDOWN_SECONDS = 90.0


def run_stack(
    options: StackOptions,
    *,
    say: Say,
    ready: Callable[[str, Path], None],
    stop: StopFlag,
    redis_finder: Callable[[], str] = find_redis,
    ray_finder: Callable[[], str] = find_ray,
) -> bool:
    """Run the stack in this process until `stop` is set; `ready` gets its URL and token file once all parts are up.

    Return whether it was ready.

    Call it from the main thread, within `stop.on_signals()`. Raises AlreadyRunning, MissingDependency, StorageFull,
    Unavailable; whatever it raises, nothing is left running.
    """
    folder = StackFolder(options.data_dir)
    folder.create()
    with folder.locked():
        # A supervisor that was killed leaves processes which are just ending; Redis needs a moment for its file.
        sweep({FOLDER_MARK: str(folder.root)}, patience=5.0)
        folder.turn_logs()
        environment = {**os.environ, RUN_MARK: uuid.uuid4().hex}
        plan = plan_stack(folder, options, environment, redis_finder=redis_finder, ray_finder=ray_finder)
        supervisor = Supervisor(folder, plan.parts, plan.url, say=say, pid=os.getpid(), started_at=time.time())
        try:
            with janitor(environment[RUN_MARK]):
                return supervisor.run(stop, lambda: ready(plan.url, folder.token_file))
        finally:
            clear_ray(folder)


class StackHandle:
    """A stack whose supervisor is a process of its own. Its URL is known once it is up."""

    def __init__(self, process: subprocess.Popen[bytes], folder: StackFolder, messages: int) -> None:
        self._process = process
        self._messages = messages
        self.folder = folder
        self.url = ""

    @property
    def token(self) -> str:
        return self.folder.token_file.read_text(encoding="utf-8").strip()

    def wait(self, say: Say) -> None:
        """Wait until the stack is up; `say` gets what the supervisor tells. Raises what run_stack raises.

        If it does not come up, or waiting is interrupted, nothing is left running.
        """
        try:
            with open(self._messages, encoding="utf-8") as messages:
                for line in messages:
                    message = json.loads(line)
                    if "say" in message:
                        say(message["say"])
                    elif "error" in message:
                        raise error_from_dict(message["error"])
                    else:
                        self.url = message["url"]
                        return
            raise Unavailable(f"the supervisor ended before the stack was up; see {self.folder.log('supervisor')}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything and wait until it is gone. Stopping twice is no error."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children follow, by the leash they are on
            self._process.wait()


def launch_stack(options: StackOptions, *, tied: bool = False) -> StackHandle:
    """Start a supervisor in the background and return at once; `wait` on the handle tells when the stack is up.

    tied: it stops when this process ends, however it ends; otherwise it lives on until `stop_stack`.
    Raises StorageFull and StorageUnavailable.
    """
    folder = StackFolder(options.data_dir)
    folder.create()
    read_end, write_end = os.pipe()
    given = {**asdict(options), "data_dir": str(folder.root), "tied_to": os.getpid() if tied else None}
    with open(folder.log("supervisor"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tlm_client.stack", str(write_end), json.dumps(given)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(write_end,),
        )
    os.close(write_end)
    return StackHandle(process, folder, read_end)


def stop_stack(data_dir: Path) -> bool:
    """Stop the stack of `data_dir` and wait until nothing of it runs. False: there was none to stop.

    Raises Unavailable if it does not end in time.
    """
    folder = StackFolder(data_dir)
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    asked = False
    while folder.running():
        state = folder.state()
        if state is not None and not asked:
            os.kill(state.pid, signal.SIGTERM)
            asked = True
        if time.monotonic() > deadline:
            raise Unavailable(f"the stack of {folder.root} does not end; its logs are in {folder.logs}")
        time.sleep(0.1)
    return asked


def stack_state(data_dir: Path) -> StackState | None:
    """What the running stack of `data_dir` tells about itself; None if none runs there."""
    folder = StackFolder(data_dir)
    return folder.state() if folder.running() else None


def serve(write_end: int, given: str) -> int:
    """The supervisor process of `start_stack`: tells its way by JSON lines on a pipe. Returns the exit code."""
    values = json.loads(given)
    tied_to = values.pop("tied_to")
    options = replace(StackOptions(data_dir=Path(values.pop("data_dir"))), **values)
    pipe: int | None = write_end

    def tell(message: dict[str, object]) -> None:
        nonlocal pipe
        if pipe is None:
            return
        try:
            os.write(pipe, (json.dumps(message) + "\n").encode())
        except BrokenPipeError:  # whoever started it has gone; it was to live on or is told so by its tie
            pipe = None

    def say(line: str) -> None:
        sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        sys.stdout.flush()
        tell({"say": line})

    def ready(url: str, _token_file: Path) -> None:
        say(f"the stack is up at {url}")
        tell({"url": url})

    stop = StopFlag(tied_to)
    with stop.on_signals():
        try:
            run_stack(options, say=say, ready=ready, stop=stop)
        except TLMError as error:
            say(f"stopped: {error.message}")
            tell({"error": error.as_dict()})
            return 1
    return 0
