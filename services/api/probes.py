"""Calls to components that may hang, for health checks and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

PROBE_SECONDS = 3.0


@dataclass
class Probes:
    """Calls components in threads outside the pool of the routes, because all threads of that pool may be busy.

    At most one call per component runs at a time. So a component that hangs blocks only one thread.
    """

    _calls: dict[str, asyncio.Task[Any]] = field(default_factory=dict)

    async def call(self, component: str, function: Callable[[], T]) -> T:
        """Return the result of `function`, or of an earlier call to `component` if this call has not ended.

        Raises the errors of `function`, and TimeoutError after 3 s.
        """
        call = self._calls.get(component)
        if call is None or call.done():
            call = self._calls[component] = asyncio.create_task(asyncio.to_thread(function))
            call.add_done_callback(_retrieve)
        result: T = await asyncio.wait_for(asyncio.shield(call), PROBE_SECONDS)
        return result


def _retrieve(call: asyncio.Task[Any]) -> None:
    """Retrieve the error of a call. Otherwise asyncio logs an error that occurs after the timeout."""
    if not call.cancelled():
        call.exception()
