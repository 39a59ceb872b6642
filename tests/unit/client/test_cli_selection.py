"""Commands that explain a job: suspects, corpus search and `tlm why`."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.unit.client.gateway import serve, tlm
from tlm_client.console import shorten


def test_suspects_show_row_label_and_suggestion() -> None:
    row = {"split": "train", "row": 17, "label": "good", "suggested": "bad", "score": 0.987, "text": "a poor film"}
    body = {"data": [{**row, "text_pair": None}], "total": 1_234, "neighbors": True}
    result = tlm(serve({"GET /v1/jobs/job_1/suspects": body}), "suspects", "job_1")
    assert result.exit_code == 0, result.output
    assert all(part in result.stdout for part in ("train", "17", "good", "bad", "0.987", "a poor film", "1 of 1,234"))
    as_json = tlm(serve({"GET /v1/jobs/job_1/suspects": body}), "suspects", "job_1", "--json")
    assert json.loads(as_json.stdout)["data"][0] == {**row, "text_pair": None}


@pytest.mark.parametrize("option", ["--limit", "-k"])
def test_corpus_search_limits_its_passages(option: str) -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"version": "v1", "hits": []})

    assert tlm(handler, "corpus", "search", "docs", "a text", option, "3").exit_code == 0
    assert [body["k"] for body in sent] == [3]


def test_why_shows_the_train_rows_of_a_passage() -> None:
    asker = {"train_row": 7, "rank": 1, "score": 2.0, "text": "a [bold]row[/bold]", "label": "pos"}
    passage = {"id": "p", "text": "a passage", "source": "docs", "rank": 1, "score": 2.0, "provenance": [asker],
               "provenance_total": 1}  # fmt: skip
    body = {"facts": {}, "data": [passage], "total": 9, "has_more": True}
    result = tlm(serve({"GET /v1/jobs/job_1/selection": body}), "why", "job_1", "a", "passage")
    assert result.exit_code == 0, result.output
    assert "row 7 (pos) a [bold]row[/bold]" in result.stdout and "1 of 9 passages" in result.stdout
    asker["text_pair"] = "its pair"
    result = tlm(serve({"GET /v1/jobs/job_1/selection": body}), "why", "job_1")
    assert "row 7 (pos) a [bold]row[/bold] ║ its pair" in result.stdout


def test_why_highlights_the_searched_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    asker = {"train_row": 7, "rank": 1, "score": 2.0, "text": "Water is wet", "label": "pos"}
    passage = {"id": "p", "text": "hot water boils, waters cool", "source": "docs", "rank": 1, "score": 2.0,
               "provenance": [asker], "provenance_total": 1}  # fmt: skip
    body = {"facts": {}, "data": [passage], "total": 1, "has_more": False}
    result = tlm(serve({"GET /v1/jobs/job_1/selection": body}), "why", "job_1", "water")
    bold = re.findall(r"\x1b\[1m(.*?)\x1b\[0m", result.stdout)
    assert [word for word in bold if "ater" in word] == ["water", "Water"], "Whole words in both columns."


def test_why_shows_whole_words_around_the_first_term() -> None:
    text = "alpha beta " * 30 + "water boils " + "gamma delta " * 30
    shown = shorten(text, ["boils"])
    assert len(shown) < 110 and "water boils gamma" in shown
    assert set(shown.split()) == {"…", "alpha", "beta", "water", "boils", "gamma", "delta"}
    assert shorten("short text", ["text"]) == "short text"
    assert "needle" in shorten("x" * 200 + "-needle " + "y" * 200, ["needle"]), "no blank before the match"
    assert "needle" in shorten("x" * 90 + " needle" + "-y" * 200, ["needle"]), "no blank after the match"


def test_why_shows_the_passage_around_a_word_that_is_no_stop_word() -> None:
    asker = {"train_row": 7, "rank": 1, "score": 2.0, "text": "which water boils", "label": "pos"}
    text = "which " * 40 + "water boils"
    passage = {"id": "p", "text": text, "source": "docs", "rank": 1, "score": 2.0, "provenance": [asker],
               "provenance_total": 1}  # fmt: skip
    body = {"facts": {}, "data": [passage], "total": 1, "has_more": False}
    shown = tlm(serve({"GET /v1/jobs/job_1/selection": body}), "why", "job_1").stdout
    assert shown.count("water boils") == 2, "in the passage and in its train row"
