"""The edge to Redis: every error of the library becomes one of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis.exceptions as redis_errors

from tlm_core.errors import StoreFull, StoreUnavailable, TLMError


def translate(error: redis_errors.RedisError) -> TLMError:
    """Our error for an error of redis-py."""
    text = str(error)
    # Within a script, Redis 6 tells it in the middle of a longer sentence.
    if isinstance(error, redis_errors.OutOfMemoryError) or "OOM command" in text:
        return StoreFull("Redis has no memory left; raise its maxmemory or delete old jobs")
    if "MISCONF" in text or "No space left" in text:
        return StoreFull(f"Redis cannot write its append-only file: {text}; free space on its disk")
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
        return StoreUnavailable(f"Redis refuses the credentials: {text}; check the password in the settings")
    return StoreUnavailable(f"Redis does not answer: {text or type(error).__name__}")


@contextmanager
def translated() -> Iterator[None]:
    """Within it, errors of redis-py are raised as errors of the project."""
    try:
        yield
    except redis_errors.RedisError as error:
        raise translate(error) from error
