"""Start processes that need heavy imports without importing in each of them."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

# The fork server of a test run starts once, so it preloads the modules of all tests that use it.
_MODULES = ["tests.integration.test_retriever_kills", "tests.integration.test_training_workers"]


def process_context() -> ForkServerContext:
    """Return a context whose processes fork from a server that has imported the tests' modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    return context
