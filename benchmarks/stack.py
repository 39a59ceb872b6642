"""Stacks and jobs for benchmarks that need the whole service."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import remark
from benchmarks.shared import shared_data
from tlm_client.client import TLMClient
from tlm_client.display import Display
from tlm_client.stack.control import launch_stack
from tlm_client.stack.parts import StackOptions
from tlm_core.errors import TLMError, error_from_dict
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import State
from tlm_core.wire import Job


@contextmanager
def running_stack(options: StackOptions, notify: Callable[[str], object] = remark) -> Iterator[TLMClient]:
    """Start a stack, yield a client, and stop the stack. The data folder remains."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    stack = launch_stack(options, tied=True)
    try:
        stack.wait(notify)
        with TLMClient(stack.url, stack.token) as client:
            yield client
    finally:
        stack.stop()


def add_dataset(client: TLMClient, name: str, task: str) -> None:
    """Upload the shared task `task` as the dataset `name`."""
    folder = shared_data() / "tasks" / task
    client.add_dataset(name, {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")})


@contextmanager
def stack_with_sciie() -> Iterator[TLMClient]:
    """Start an embedded stack with SciERC as dataset `bench`, yield a client, and remove the stack."""
    with (
        tempfile.TemporaryDirectory(prefix="tlm-bench-", ignore_cleanup_errors=True) as folder,
        running_stack(StackOptions(Path(folder), port=0)) as client,
    ):
        add_dataset(client, "bench", "sciie")
        yield client


def submit(client: TLMClient, spec: JobSpec, attempt: int = 0) -> Job:
    """Return an earlier job with this spec. If all earlier jobs failed or were cancelled, submit a new job.

    attempt: the number of earlier jobs to skip.
    """
    key = hashlib.sha256(f"{spec.model_dump_json()} {attempt}".encode()).hexdigest()
    job = client.submit(spec, key=key)
    if job.state in (State.FAILED, State.CANCELLED):
        remark(f"{job.id} is {job.state}; submitting again")
        return submit(client, spec, attempt + 1)
    return job


def finish(client: TLMClient, job_id: str, label: str, display: Display) -> Job:
    """Wait until a job has succeeded, and return it. Raises the error of a failed job. label: name on the display."""
    display.begin(f"{label}:")
    job = client.wait(job_id, display.job_event)
    if job.state is not State.SUCCEEDED:
        raise error_from_dict(job.error) if job.error else TLMError(f"Job '{label}' is {job.state}. Start again.")
    return job
