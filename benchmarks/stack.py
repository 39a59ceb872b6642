"""Stacks for benchmarks that need the whole service."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import remark
from benchmarks.shared import shared_data
from tlm_client.client import TLMClient
from tlm_client.stack.control import launch_stack
from tlm_client.stack.parts import StackOptions


@contextmanager
def running_stack(options: StackOptions, notify: Callable[[str], object] = remark) -> Iterator[TLMClient]:
    """Start a stack, yield a client, and stop the stack. Its folder remains."""
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
    """Upload a shared task."""
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
