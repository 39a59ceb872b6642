"""The pages of what a job leaves: results, selection, the model with its files and a box to try it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import FileResponse, Response

from services.api.dashboard.present import scores_of
from services.api.dashboard.strip import selects
from services.api.dashboard.web import SignedIn, page
from services.api.parts import Parts, PartsDep
from services.api.results import (
    artifact_of,
    checkpoint_views,
    checkpoints_of,
    json_of,
    open_file,
    refs_of,
    selection_page,
)
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import Conflict, InvalidRequest, NotFound
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord

router = APIRouter(prefix="/jobs")

_PASSAGES = 20
_CLASSES_IN_MATRIX = 24
_SHADES = 5
_LABELS_SHOWN = 12
_TEXTS = 20
_PLOT = "plot.svg"
# Joint stage of the release at the paper's small scale: steps, rows and tokens from its scripts; 6 FLOPs for each
# token and parameter, of which a BERT of base size has 110 million.
PAPER_FLOPS = 6 * 110e6 * 150_000 * 256 * 128


@router.get("/{job}/results")
def results(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    seed: Annotated[int | None, Query(ge=0, lt=2**32)] = None,
) -> Response:
    """Scores with their spread, per class and as confusion matrix for one seed, and what it all cost."""
    record = parts.jobs.get(tenant, job)
    shared: dict[str, Any] = {"job": record, "selects": selects(record), "tab": "results"}
    ref = _finished(parts, record, "evaluate")
    if ref is None:
        return page(request, "not_yet.html", **shared, what="Results", stage=plan_of(record).report)
    report = json_of(parts.artifacts, ref, "report.json")
    plot = _PLOT in {file.name for file in parts.artifacts.manifest(ref).files}
    if "seeds" not in report:  # of several tasks at once
        return page(request, "results.html", **shared, report=report, plot=plot)
    seeds = {entry["seed"]: entry for entry in report["seeds"]}
    chosen = seeds[seed if seed in seeds else report["best_seed"]]
    labels = report["labels"] if chosen["test"]["per_class"] else []  # of regression there are none
    return page(
        request, "results.html", **shared, report=report, plot=plot, chosen=chosen,
        matrix=_matrix(labels, chosen), confusions=_confusions(labels, chosen), paper_flops=PAPER_FLOPS,
        classes=list(zip(labels, chosen["test"]["per_class"], strict=True)), shown=scores_of(report["metric"]),
    )  # fmt: skip


@router.get("/{job}/plot.svg")
def plot(job: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """The picture that a study draws of its curves."""
    ref = artifact_of(parts.jobs, parts.jobs.get(tenant, job), "evaluate")
    with parts.artifacts.open(ref, _PLOT) as handle:
        return Response(handle.read(), media_type="image/svg+xml")


@router.get("/{job}/selection")
def selection(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    q: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[int, Query(ge=0, lt=2**40)] = 0,
) -> Response:
    """The passages that were selected, best rank first, and the train texts that asked for them."""
    record = parts.jobs.get(tenant, job)
    ref = _finished(parts, record, "select") if selects(record) else None
    if ref is None:
        return page(request, "not_yet.html", job=record, selects=selects(record), tab="selection", what="Selection",
                    stage="select")  # fmt: skip
    task = refs_of(parts.jobs, record).get("validate")
    found = selection_page(parts.artifacts, ref, after=after, limit=_PASSAGES, words=q.split(), task=task)
    return page(
        request, "_passages.html" if "hx-request" in request.headers else "selection.html", job=record, found=found,
        q=q.strip(), after=after, step=_PASSAGES, selects=True, tab="selection",
    )  # fmt: skip


@router.get("/{job}/model")
def model(request: Request, job: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """A box to try the model, its files, and the checkpoints there are."""
    record = parts.jobs.get(tenant, job)
    return page(request, "model.html", **_model_values(parts, record), answers=None, typed="", paired="")


@router.post("/{job}/predict")
def predict(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    texts: Annotated[str, Form(max_length=100_000)] = "",
    pair: Annotated[str, Form(max_length=100_000)] = "",
) -> Response:
    """Classify: one text a line; with a model that takes two, the whole of both boxes is one pair."""
    record = parts.jobs.get(tenant, job)
    ref = artifact_of(parts.jobs, record, "export")
    takes_pairs = _takes_pairs(parts, ref)
    rows = [texts.strip()] if takes_pairs else [line for line in texts.splitlines() if line.strip()]
    if not any(rows):
        raise InvalidRequest("there is no text; write one to classify")
    if len(rows) > _TEXTS:
        raise InvalidRequest(f"there are {len(rows)} lines; {_TEXTS} at once are shown here, the API takes more")
    labels, found = parts.predictor.predict(ref, rows, [pair.strip()] if takes_pairs else None)
    answers = []
    for text, row in zip(rows, found.tolist(), strict=True):
        if len(labels) == 1:
            answers.append({"text": text, "name": labels[0], "value": row[0]})
            continue
        ranked = sorted(zip(labels, row, strict=True), key=lambda entry: -entry[1])
        answers.append({"text": text, "ranked": ranked[:_LABELS_SHOWN], "more": len(ranked) - _LABELS_SHOWN})
    if "hx-request" in request.headers:
        return page(request, "_answers.html", answers=answers)
    values = _model_values(parts, record)
    return page(request, "model.html", **values, answers=answers, typed=texts, paired=pair)


@router.get("/{job}/files/{name:path}", response_class=FileResponse)
def file(job: str, name: str, parts: PartsDep, tenant: SignedIn) -> FileResponse:
    """One file of the exported model, as the API sends it."""
    return open_file(parts.artifacts, artifact_of(parts.jobs, parts.jobs.get(tenant, job), "export"), name)


def _model_values(parts: Parts, job: JobRecord) -> dict[str, Any]:
    ref = _finished(parts, job, "export")
    return {
        "job": job,
        "selects": selects(job),
        "tab": "model",
        "files": parts.artifacts.manifest(ref).files if ref else None,
        "pair": _takes_pairs(parts, ref) if ref else False,
        "checkpoints": checkpoint_views(parts.artifacts, checkpoints_of(parts.jobs, job)),
    }


def _takes_pairs(parts: Parts, ref: ManifestRef) -> bool:
    return bool(json_of(parts.artifacts, ref, "labels.json")["pair"])


def _finished(parts: Parts, job: JobRecord, stage: str) -> ManifestRef | None:
    """What a stage left, or None while it has not, or where the job's kind has no such stage."""
    try:
        return artifact_of(parts.jobs, job, stage)
    except (Conflict, NotFound):
        return None


def _matrix(labels: list[str], entry: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of the confusion matrix: each cell's count and shade by its share of the row. None for too many labels."""
    if len(labels) > _CLASSES_IN_MATRIX:
        return None
    rows = []
    for label, counts in zip(labels, entry["test"]["confusion"], strict=True):
        total = sum(counts)
        cells = [{"count": n, "shade": round(_SHADES * n / total) if total else 0} for n in counts]
        rows.append({"label": label, "cells": cells, "total": total})
    return rows


def _confusions(labels: list[str], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of labels that were taken for each other most often."""
    pairs = [
        {"true": labels[i], "predicted": labels[j], "count": n, "share": n / sum(counts)}
        for i, counts in enumerate(entry["test"]["confusion"])
        for j, n in enumerate(counts)
        if i != j and n
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:10]
