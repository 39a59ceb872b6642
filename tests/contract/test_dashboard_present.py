"""Formatting of values on a page: an unknown value is a dash, and numbers are rounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from services.api.dashboard.present import (
    FILTERS,
    about,
    ago,
    breakable,
    count,
    duration,
    facts,
    least,
    percent,
    plain,
    power,
    score,
    size,
    unbroken,
)
from services.api.dashboard.session import LIFETIME_SECONDS, is_own, is_valid, issue, local_path


@pytest.mark.parametrize("show", [count, power, about, score, percent, duration, size, plain, lambda at: ago(at, 0)])
def test_unknown_values_are_a_dash(show: Callable[[Any], str]) -> None:
    assert show(None) == "–"


@pytest.mark.parametrize(
    ("shown", "as_text"),
    [
        (power(4.1e13), "4.1 × 10<sup>13</sup>"),
        (power(99_999), "99,999"),
        (about(79_123), "79,000"),
        (about(0.123), "0.12"),
        (score(0.54), "0.540"),
        (FILTERS["value"](3.14159265), "3.14159"),
        (FILTERS["value"](-100000009.474), "-100000009"),
        (score(0.54, 0.019), "0.540 ± 0.019"),
        (score(0.0), "0.000"),
        (duration(0), "0 s"),
        (duration(6.24), "6.2 s"),
        (duration(252), "4 min 12 s"),
        (duration(3600), "1 h"),
        (duration(190_000), "2 d 4 h"),
        (ago(100, 100), "just now"),
        (ago(100, 90), "just now"),
        (ago(0, 3_700), "1 h ago"),
        (size(999), "999 B"),
        (size(1_500_000), "1.5 MB"),
        (plain(3e-4), "0.0003"),
        (plain(10.0), "10"),
        (plain([0, 1]), "0, 1"),
        (plain([[0, 1], [2]]), "0, 1; 2"),
        (plain({"layers": 4, "lr": 2e-3}), "layers 4, lr 0.002"),
        (plain({}), "–"),
        (plain(2_000_000), "2,000,000"),
        (plain(True), "yes"),
        (facts({"node": "joint.s0", "stage": "joint", "artifact": "art_1", "step": 200}), "node joint.s0 · step 200"),
        (facts({"group": "main", "submission": "job_1.main.1"}), "group main"),
        (facts({"owner": "host-7-3fa9c1"}), ""),
        (facts({"code": "worker_lost", "message": "Gone.", "retryable": True}), "message Gone."),
    ],
)
def test_values_are_formatted(shown: str, as_text: str) -> None:
    assert shown == as_text


@pytest.mark.parametrize("confidence", [0.9999999, 0.12345678, 1.0, 0.5000009])
def test_shown_threshold_covers_the_confidence_itself(confidence: float) -> None:
    assert confidence - 1e-6 < float(least(confidence)) <= confidence


def test_long_labels_may_break_after_their_separators() -> None:
    assert breakable("SIDE-EFFECT/ON_<b>") == "SIDE-<wbr>EFFECT/<wbr>ON_<wbr>&lt;b&gt;"
    assert breakable("a/") == "a/"
    assert breakable(-1.5) == "-1.5"


def test_names_of_metrics_and_ends_of_shell_lines_do_not_break() -> None:
    assert unbroken("a <b> macro-F1 0.9") == 'a &lt;b&gt; <span class="unbroken">macro-F1</span> 0.9'
    assert unbroken("curl -H x \\\n  url") == 'curl -H <span class="unbroken">x \\</span>\n  url'


def test_search_for_unbroken_names_in_a_long_word_is_fast() -> None:
    text = "a" * 50_000
    started = time.perf_counter()
    assert unbroken(text) == text
    assert time.perf_counter() - started < 5


def test_session_expires_and_belongs_to_one_token() -> None:
    value = issue("token", 1_000)
    assert is_valid(value, "token", 1_000 + LIFETIME_SECONDS - 1)
    assert not is_valid(value, "token", 1_000 + LIFETIME_SECONDS)
    assert not is_valid(value, "other", 1_000)
    ends, _, signature = value.partition(".")
    assert not is_valid(f"{int(ends) + 1}.{signature}", "token", 1_000), "the end is part of what is signed"


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"origin": "https://tlm.example", "host": "tlm.example"}, True),
        ({"origin": "http://127.0.0.1:8321", "host": "127.0.0.1:8321"}, True),
        ({"origin": "http://127.0.0.1:9999", "host": "127.0.0.1:8321"}, False),
        ({"origin": "https://tlm.example.evil", "host": "tlm.example"}, False),
        ({"origin": "null", "host": "tlm.example", "sec-fetch-site": "same-origin"}, False),
        ({"host": "tlm.example", "sec-fetch-site": "same-origin"}, True),
        ({"host": "tlm.example", "sec-fetch-site": "same-site"}, False),
        ({"host": "tlm.example"}, False),
        ({"origin": "http://[", "host": "["}, False),
    ],
)
def test_only_same_origin_requests_may_write(headers: dict[str, str], own: bool) -> None:
    assert is_own(headers) is own


def test_path_after_sign_in_stays_on_the_dashboard() -> None:
    assert local_path("/ui/jobs/job_1") == "/ui/jobs/job_1"
    assert {local_path(path) for path in ("", "/", "//x", "/ui/..//x", "/v1/jobs", "http://x/ui/", "/ui/\ud800")} == {
        "/ui/jobs"
    }
