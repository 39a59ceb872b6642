"""`tlm up`, `tlm down`, `tlm status`: run the service on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from tlm_client.console import INTERRUPTED, NOT_REACHABLE, print_result, session, stderr_console, table
from tlm_client.display import duration
from tlm_client.stack.control import launch_stack, run_stack, stop_stack
from tlm_client.stack.folder import StackFolder
from tlm_client.stack.parts import StackOptions, http_answers

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder for all data (TLM_DATA_DIR). Default: ~/.local/share/tlm.")
]


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 selects a free port.")] = 8321,
    data_dir: DataDir = None,
    opensearch_url: Annotated[str | None, typer.Option(help="OpenSearch URL. Default: the embedded index.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="Number of GPUs for workers. Default: all visible.")] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="Serve metrics of each process to Prometheus.")] = False,
) -> None:
    """Start Redis, Ray, the retriever, the trainer, the loader and the gateway. Ctrl-C stops them.

    tlm up --detach
    tlm up --port 0 --data-dir /data/tlm
    """
    options = StackOptions(
        data_dir or session().data_dir, port=port, opensearch_url=opensearch_url, gpus=gpus, metrics=metrics
    )
    console = stderr_console()

    def report_ready(url: str) -> None:
        token_file = StackFolder(options.data_dir).token_file
        folder = "" if data_dir is None else f" --data-dir {data_dir}"
        stop_hint = f"Stop it with `tlm down{folder}`" if detach else "Ctrl-C stops it"
        text = f"Ready at {url} (token in {token_file}). {stop_hint}"
        print_result({"url": url, "token_file": token_file}, text)

    if detach:
        handle = launch_stack(options)
        handle.wait(console.print)
        report_ready(handle.url)
    elif not run_stack(options, notify=console.print, on_ready=report_ready):
        raise typer.Exit(INTERRUPTED)


def down(data_dir: DataDir = None) -> None:
    """Stop the service on this machine. Unfinished jobs continue after the next start.

    tlm down
    tlm down --data-dir /data/tlm
    """
    folder = data_dir or session().data_dir
    stopped = stop_stack(folder)
    text = "Stopped" if stopped else f"No stack runs with the data folder {folder}"
    print_result({"stopped": stopped, "data_dir": folder}, text)


def status(data_dir: DataDir = None) -> None:
    """Show the processes on this machine. Exit code 3 if the gateway does not answer.

    tlm status
    tlm status --json
    """
    folder = data_dir or session().data_dir
    state = StackFolder(folder).running_state()
    if state is None:
        text = f"No stack runs with the data folder {folder}. Start one with `tlm up`"
        print_result({"state": "stopped", "data_dir": folder}, text)
        raise typer.Exit(NOT_REACHABLE)
    ready = http_answers(f"{state.url}/readyz", timeout=5.0)
    answer = "answers" if ready else "does not answer"
    age = (datetime.now(UTC) - state.started_at).total_seconds()
    rows = [(name, p.state, p.pid, p.restarts, p.log) for name, p in state.parts.items()]
    print_result(
        {**state.model_dump(), "data_dir": folder, "answers": ready},
        f"The stack is {state.state}. It started {duration(age)} ago.",
        f"The gateway at {state.url} {answer}. Data folder: {folder}",
        table(("process", "state", "pid", "restarts", "log"), rows),
    )
    if not ready:
        raise typer.Exit(NOT_REACHABLE)
