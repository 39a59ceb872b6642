"""The selection tab of a job: counts by label and source, overlap between labels, leaks, and the passages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from services.api.dashboard.present import colors
from services.api.dashboard.web import PageJob, page
from services.api.job_artifacts import artifact_or_none, situation_of
from services.api.parts import PartsDep
from services.api.selections import leaked_texts, selection_page
from tlm_core.selection.stop_words import STOP_WORDS
from tlm_core.wire import JsonObject, SelectedPassage

router = APIRouter(prefix="/jobs")

_PASSAGES = 20
_LEAKS = 10
_LABELS = 24
_SHADES = 5
_WORD = re.compile(r"\w{3,}")


@router.get("/{job}/selection")
def selection(
    request: Request,
    job: PageJob,
    parts: PartsDep,
    q: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[int, Query(ge=0, lt=2**40)] = 0,
) -> Response:
    """Show statistics of the selection, and its passages with the texts that retrieved them, best rank first."""
    common: dict[str, object] = {"job": job, "tab": "selection"}
    ref = artifact_or_none(parts.jobs, job, "select")
    if ref is None:
        return page(request, "not_yet.html", common, what="Selection", stage="select")
    task, words = situation_of(parts.jobs, job).done.get("validate"), q.split()
    shown = selection_page(parts.artifacts, ref, after=after, limit=_PASSAGES, words=words, task=task)
    names = (shown.facts.get("labels") or {}).get("names", ())
    common |= {"found": shown, "q": q.strip(), "after": after, "step": _PASSAGES, "words": words,
               "terms": query_terms(shown.data), "colors": colors(names)}  # fmt: skip
    if "hx-request" in request.headers:
        return page(request, "_passages.html", common)
    return page(
        request, "selection.html", common, facts=shown.facts, labels=_labels(shown.facts.get("labels")),
        leaks=leaked_texts(parts.artifacts, ref, task, _LEAKS),
    )  # fmt: skip


def query_terms(passages: Sequence[SelectedPassage]) -> list[set[str]]:
    """Return for each passage the words that also occur in the train text that retrieved it at the best rank.

    The function omits stop words, and words that occur in at least two passages and in more than a third of all
    passages. Such words do not explain why a passage was retrieved.
    """
    words = [set(_WORD.findall(passage.text.lower())) for passage in passages]
    counts = Counter(word for own in words for word in own)
    frequent = {word for word, count in counts.items() if count > max(1, len(passages) / 3)} | STOP_WORDS
    queries = [next((query.texts for query in passage.provenance if query.text), "") for passage in passages]
    return [(own & set(_WORD.findall(text.lower()))) - frequent for own, text in zip(words, queries, strict=True)]


def _labels(facts: JsonObject | None) -> dict[str, object] | None:
    """Return the template values of the labels with the most passages, and of the overlap between these labels."""
    if not facts or not facts["names"]:
        return None
    counted = sorted(
        zip(facts["passages"], range(len(facts["names"])), strict=True), key=lambda pair: (-pair[0], pair[1])
    )
    shown = [number for _, number in counted[:_LABELS]]
    rows = [{"label": facts["names"][number], "passages": facts["passages"][number]} for number in shown]
    return {"rows": rows, "more": len(counted) - len(shown), "overlap": _overlap(facts.get("jaccard"), shown)}


def _overlap(jaccard: Sequence[Sequence[float | None]] | None, shown: Sequence[int]) -> list[list[dict[str, object]]]:
    """Return the rows of the heat map for the labels `shown`. A cell has `value` (overlap) and `shade` (at most 5)."""
    if jaccard is None or len(shown) < 2:
        return []
    most = max((jaccard[a][b] or 0.0 for a in shown for b in shown if a != b), default=0.0)

    def cell(row: int, column: int) -> dict[str, object]:
        value = jaccard[row][column]
        shade = round(_SHADES * (value or 0.0) / most) if most and row != column else 0
        return {"value": None if row == column else value, "shade": shade}

    return [[cell(row, column) for column in shown] for row in shown]
