"""Words that depend on a number."""

from __future__ import annotations


def counted(count: float, noun: str) -> str:
    """Return `1 row`, `2 rows` or `1,200 rows`."""
    return f"{count:,g} {noun}" if count == 1 else f"{count:,g} {noun}s"
