"""An embedded stack for benchmarks that need the whole service."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import remark
from benchmarks.shared import shared_data
from tlm_client.client import TLMClient
from tlm_client.stack.control import launch_stack
from tlm_client.stack.parts import StackOptions


@contextmanager
def stack_with_sciie() -> Iterator[TLMClient]:
    """Start an embedded stack with SciERC as dataset `bench`, yield a client, and remove the stack."""
    source = shared_data() / "tasks" / "sciie"
    files = {split: source / f"{split}.jsonl" for split in ("train", "validation", "test")}
    folder = Path(tempfile.mkdtemp(prefix="tlm-bench-"))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    stack = launch_stack(StackOptions(folder, port=0), tied=True)
    try:
        stack.wait(remark)
        with TLMClient(stack.url, stack.token) as client:
            client.add_dataset("bench", files)
            yield client
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)
