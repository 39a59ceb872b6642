"""`tlm up`, `tlm down`, `tlm status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import httpx
import typer

from tlm_client.console import FAILED, INTERRUPTED, AsJson, emit, guarded, notes, say, session_of, table
from tlm_client.display import duration
from tlm_client.stack.control import launch_stack, run_stack, stack_state, stop_stack
from tlm_client.stack.parts import StackOptions
from tlm_client.stack.supervisor import StopFlag

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept (TLM_DATA_DIR; default ~/.local/share/tlm)."),
]


@guarded
def up(
    context: typer.Context,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it is up, and leave it running.")] = False,
    port: Annotated[
        int, typer.Option(help="Port of the gateway on 127.0.0.1; 0: any free one.", min=0, max=65535)
    ] = 8321,
    data_dir: DataDir = None,
    opensearch_url: Annotated[
        str | None, typer.Option(help="Use the OpenSearch at this address in place of the embedded index.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs for training, one for each worker; all that are found, 0: none.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start the whole service on this machine: Redis, Ray, retriever, trainer, gateway. Ctrl-C stops it."""
    data_dir = data_dir or session_of(context).data_dir
    options = StackOptions(data_dir, port=port, opensearch_url=opensearch_url, gpus=gpus)
    console = notes()
    if detach:
        handle = launch_stack(options)
        handle.wait(console.print)
        _tell_ready(handle.url, handle.folder.token_file, as_json, "`tlm down` stops it")
        return
    stop = StopFlag()
    was_ready = False

    def ready(url: str, token_file: Path) -> None:
        nonlocal was_ready
        was_ready = True
        _tell_ready(url, token_file, as_json, "Ctrl-C stops it")

    with stop.on_signals():
        run_stack(options, say=console.print, ready=ready, stop=stop)
    if not was_ready:
        raise typer.Exit(INTERRUPTED)


@guarded
def down(context: typer.Context, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Stop the service that runs on this machine. Jobs under way go on at the next start."""
    folder = data_dir or session_of(context).data_dir
    stopped = stop_stack(folder)
    if as_json:
        emit({"stopped": stopped, "data_dir": folder})
    else:
        say("stopped" if stopped else f"nothing was running on {folder}")


@guarded
def status(context: typer.Context, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show what runs on this machine, and whether it answers. Exit code 1 if it does not."""
    folder = data_dir or session_of(context).data_dir
    state = stack_state(folder)
    if state is None:
        if as_json:
            emit({"state": "stopped", "data_dir": folder})
        else:
            say(f"nothing is running on {folder}; `tlm up` starts it")
        raise typer.Exit(FAILED)
    ready = _is_ready(state.url)
    if as_json:
        emit({**state.model_dump(), "data_dir": folder, "answers": ready})
    else:
        age = duration(time.time() - state.started_at)
        answer = "answers" if ready else "does not answer"
        say(f"{state.state} since {age} at {state.url} ({answer}), data in {folder}")
        rows = [(name, p.state, p.pid, p.restarts, p.log) for name, p in state.parts.items()]
        table(("part", "state", "pid", "restarts", "log"), rows)
    if not ready:
        raise typer.Exit(FAILED)


def _tell_ready(url: str, token_file: Path, as_json: bool, how_to_stop: str) -> None:
    if as_json:
        emit({"url": url, "token_file": token_file})
    else:
        say(f"ready at {url} (token in {token_file}); {how_to_stop}")


def _is_ready(url: str) -> bool:
    try:
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            return client.get(f"{url}/readyz").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
