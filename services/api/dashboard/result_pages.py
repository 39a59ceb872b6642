"""Pages of a job's results: scores, selection, model files and predictions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import FileResponse, Response

from services.api.dashboard.present import scores_of
from services.api.dashboard.progress import selects
from services.api.dashboard.web import SignedIn, page
from services.api.job_artifacts import (
    artifact_of,
    artifacts_by_node,
    checkpoint_views,
    checkpoints_of,
    file_response,
)
from services.api.parts import Parts, PartsDep
from services.api.selections import selection_page
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
# Joint stage of the paper's release at small scale: steps, rows and tokens from its scripts; 6 FLOPs per token and
# parameter; BERT base has 110 million parameters.
PAPER_FLOPS = 6 * 110e6 * 150_000 * 256 * 128


@router.get("/{job}/results")
def results(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    seed: Annotated[int | None, Query(ge=0, lt=2**32)] = None,
) -> Response:
    """Scores with spread, scores per class and the confusion matrix of one seed, and costs."""
    record = parts.jobs.get(tenant, job)
    common: dict[str, object] = {"job": record, "selects": selects(record), "tab": "results"}
    ref = _finished(parts, record, "evaluate")
    if ref is None:
        return page(request, "not_yet.html", common, what="Results", stage=plan_of(record).report)
    report = parts.artifacts.read_json(ref, "report.json")
    plot = _PLOT in {file.name for file in parts.artifacts.manifest(ref).files}
    if "seeds" not in report:  # ticket sharing: several tasks
        return page(request, "results.html", common, report=report, plot=plot)
    seeds = {entry["seed"]: entry for entry in report["seeds"]}
    chosen = seeds[seed if seed in seeds else report["best_seed"]]
    labels = report["labels"] if chosen["test"]["per_class"] else []  # regression has none
    confusion = chosen["test"]["confusion"]
    return page(
        request, "results.html", common, report=report, plot=plot, chosen=chosen,
        matrix=_matrix(labels, confusion), confusions=_confusions(labels, confusion), paper_flops=PAPER_FLOPS,
        classes=list(zip(labels, chosen["test"]["per_class"], strict=True)), shown=scores_of(report["metric"]),
    )  # fmt: skip


@router.get("/{job}/plot.svg")
def plot(job: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """The plot of a study."""
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
    """The selected passages, best rank first, with the training texts that retrieved them."""
    record = parts.jobs.get(tenant, job)
    ref = _finished(parts, record, "select") if selects(record) else None
    if ref is None:
        return page(request, "not_yet.html", job=record, selects=selects(record), tab="selection", what="Selection",
                    stage="select")  # fmt: skip
    task = artifacts_by_node(parts.jobs, record).get("validate")
    passages = selection_page(parts.artifacts, ref, after=after, limit=_PASSAGES, words=q.split(), task=task)
    return page(
        request, "_passages.html" if "hx-request" in request.headers else "selection.html", job=record, found=passages,
        q=q.strip(), after=after, step=_PASSAGES, selects=True, tab="selection",
    )  # fmt: skip


@router.get("/{job}/model")
def model(request: Request, job: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """A prediction form, the model files and the current checkpoints."""
    record = parts.jobs.get(tenant, job)
    return page(request, "model.html", _model_values(parts, record), answers=None, typed="", paired="")


@router.post("/{job}/predict")
def predict(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    texts: Annotated[str, Form(max_length=100_000)] = "",
    pair: Annotated[str, Form(max_length=100_000)] = "",
) -> Response:
    """Classify one text per line, or the pair of texts in the two fields."""
    record = parts.jobs.get(tenant, job)
    ref = artifact_of(parts.jobs, record, "export")
    pairs = _has_pairs(parts, ref)
    rows = [texts.strip()] if pairs else [line for line in texts.splitlines() if line.strip()]
    if not any(rows):
        raise InvalidRequest("The form has no text. Enter a text to classify.")
    if len(rows) > _TEXTS:
        raise InvalidRequest(f"The form has {len(rows)} lines. Enter at most {_TEXTS}, or use the API.")
    labels, values = parts.predictor.predict(ref, rows, [pair.strip()] if pairs else None)
    answers = []
    for text, row in zip(rows, values.tolist(), strict=True):
        if len(labels) == 1:
            answers.append({"text": text, "name": labels[0], "value": row[0]})
            continue
        ranked = sorted(zip(labels, row, strict=True), key=lambda entry: -entry[1])
        answers.append({"text": text, "ranked": ranked[:_LABELS_SHOWN], "more": len(ranked) - _LABELS_SHOWN})
    if "hx-request" in request.headers:
        return page(request, "_answers.html", answers=answers)
    context = _model_values(parts, record)
    return page(request, "model.html", context, answers=answers, typed=texts, paired=pair)


@router.get("/{job}/files/{name:path}", response_class=FileResponse)
def file(job: str, name: str, parts: PartsDep, tenant: SignedIn) -> FileResponse:
    """Download one file of the exported model."""
    return file_response(parts.artifacts, artifact_of(parts.jobs, parts.jobs.get(tenant, job), "export"), name)


def _model_values(parts: Parts, job: JobRecord) -> dict[str, object]:
    ref = _finished(parts, job, "export")
    return {
        "job": job,
        "selects": selects(job),
        "tab": "model",
        "files": parts.artifacts.manifest(ref).files if ref else None,
        "pair": _has_pairs(parts, ref) if ref else False,
        "checkpoints": checkpoint_views(parts.artifacts, checkpoints_of(parts.jobs, job)),
    }


def _has_pairs(parts: Parts, ref: ManifestRef) -> bool:
    return bool(parts.artifacts.read_json(ref, "labels.json")["pair"])


def _finished(parts: Parts, job: JobRecord, stage: str) -> ManifestRef | None:
    """The artifact of a stage, or None if it does not exist (yet)."""
    try:
        return artifact_of(parts.jobs, job, stage)
    except (Conflict, NotFound):
        return None


def _matrix(labels: list[str], confusion: list[list[int]]) -> list[dict[str, object]] | None:
    """The confusion matrix: count and shade (share of the row) per cell. None for too many labels."""
    if len(labels) > _CLASSES_IN_MATRIX:
        return None
    rows = []
    for label, counts in zip(labels, confusion, strict=True):
        total = sum(counts)
        cells = [{"count": n, "shade": round(_SHADES * n / total) if total else 0} for n in counts]
        rows.append({"label": label, "cells": cells, "total": total})
    return rows


def _confusions(labels: list[str], confusion: list[list[int]]) -> list[dict[str, object]]:
    """The pairs of labels that are confused most often."""
    pairs = [(n, i, j) for i, counts in enumerate(confusion) for j, n in enumerate(counts) if i != j and n]
    return [
        {"true": labels[i], "predicted": labels[j], "count": n, "share": n / sum(confusion[i])}
        for n, i, j in sorted(pairs, key=lambda pair: -pair[0])[:10]
    ]
