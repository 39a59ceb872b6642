"""Secrets in messages are redacted, in time that grows with the length of the message."""

from __future__ import annotations

import time

import pytest

from services.common.logs import redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my-hf_token = abc, next", "my-hf_token = [redacted], next"),
        ('{"api_key": "abc"}', '{"api_key": "[redacted]"}'),
        ("?x=1&access_key=abc&y=2", "?x=1&access_key=[redacted]&y=2"),
        ("Authorization: Bearer abc", "Authorization: Bearer [redacted]"),
        ("redis://:abc@host", "redis://:[redacted]@host"),
    ],
)
def test_secrets_are_redacted(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_redaction_of_a_long_word_is_fast() -> None:
    text = "a" * 50_000
    started = time.perf_counter()
    assert redacted(text) == text
    assert time.perf_counter() - started < 5
