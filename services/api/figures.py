"""Figures of the whole service for Prometheus, read from Redis and the storage. Each gateway shows the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from services.api.parts import Parts
from services.common.metrics import Live
from tlm_core.errors import Unavailable


def live_figures(parts: Parts, tenant: str) -> Iterator[Live]:
    """Yield the figures. Without Redis, `tlm_redis_up` is 0 and those that it would give are missing."""
    yield Live("tlm_event_streams", "Open event streams of this gateway.", parts.tailer.watchers)
    if parts.artifacts.local:
        free = shutil.disk_usage(parts.artifacts.root).free
        yield Live("tlm_storage_free_bytes", "Free space of the storage.", free)
    try:
        figures = [*parts.jobs.figures(tenant), parts.deliverer.backlog()]
    except Unavailable:
        figures = []
    yield Live("tlm_redis_up", "Whether Redis answers and accepts writes.", bool(figures))
    yield from figures
