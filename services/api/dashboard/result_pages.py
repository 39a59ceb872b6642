"""Pages of a job's results: scores, suspect labels, model files and predictions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import FileResponse, Response

from services.api.dashboard.present import colors, scores_of
from services.api.dashboard.snippets import own_url, prediction_snippets
from services.api.dashboard.web import PageJob, page
from services.api.job_artifacts import (
    artifact_of,
    artifact_or_none,
    checkpoint_views,
    checkpoints_of,
    model_file_response,
    served_model,
)
from services.api.parts import Parts, PartsDep
from services.api.suspects import suspect_labels
from tlm_core.errors import Conflict, InvalidRequest, NotFound
from tlm_core.evaluation.summary import REPORT, model_rows, refit_in_words, sentences
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.serving import METADATA
from tlm_core.stages import BASELINE
from tlm_core.tasks.metrics import SINGLE_LABEL
from tlm_core.tasks.types import TASK_TYPES

router = APIRouter(prefix="/jobs")

_CLASSES_IN_MATRIX = 24
_SHADES = 5
_LABELS_SHOWN = 12
_TEXTS = 20
_SUSPECTS = 50
_PLOT = "plot.svg"
PAPER_FLOPS = 2.74e18  # of one seed at the scale small, mean over eight tasks (arXiv 2111.04130, table 2)


@router.get("/{job}/results")
def results(
    request: Request, job: PageJob, parts: PartsDep, seed: Annotated[int | None, Query(ge=0, lt=2**32)] = None
) -> Response:
    """Show scores, spread and costs. Scores per class and confusion matrix are of `seed`, or of the returned model."""
    common: dict[str, object] = {"job": job, "tab": "results"}
    ref = artifact_or_none(parts.jobs, job, "evaluate")
    if ref is None:
        return page(request, "not_yet.html", common, what="Results", stage=plan_of(job).report)
    report = parts.artifacts.read_json(ref, REPORT)
    plot = _PLOT in {file.name for file in parts.artifacts.manifest(ref).files}
    if "seeds" not in report:  # ticket sharing: several tasks
        return page(request, "results.html", common, report=report, plot=plot)
    seeds = {entry["seed"]: entry["test"] for entry in report["seeds"]}
    returned = report["returned"]["scores"]["test"] if "returned" in report else seeds[report["best_seed"]]
    chosen = seeds.get(seed, returned) if seed is not None else returned
    labels = report["labels"] if chosen["per_class"] else []  # regression has none
    confusion = chosen["confusion"]
    return page(
        request, "results.html", common, report=report, plot=plot, seed=seed if seed in seeds else None,
        matrix=_matrix(labels, confusion), confusions=_confusions(labels, confusion), paper_flops=PAPER_FLOPS,
        classes=list(zip(labels, chosen["per_class"], strict=True)), shown=scores_of(report["metric"]),
        models=model_rows(report), sentences=sentences(report), refit=refit_in_words(report), colors=colors(labels),
    )  # fmt: skip


@router.get("/{job}/plot.svg")
def plot(job: PageJob, parts: PartsDep) -> Response:
    """Return the plot of a study, such as a learning curve, as SVG."""
    ref = artifact_of(parts.jobs, job, "evaluate")
    with parts.artifacts.open(ref, _PLOT) as handle:
        return Response(handle.read(), media_type="image/svg+xml")


@router.get("/{job}/labels")
def labels(
    request: Request, job: PageJob, parts: PartsDep, limit: Annotated[int, Query(ge=1, le=200)] = _SUSPECTS
) -> Response:
    """Show the most suspect labels with their texts, and the words with the highest weights for each label."""
    ranking = suspect_labels(parts.jobs, parts.artifacts, job, limit=limit)
    report = parts.artifacts.read_json(artifact_of(parts.jobs, job, "evaluate"), REPORT)
    return page(
        request, "labels.html", job=job, tab="results", ranking=ranking, limit=limit,
        top_ngrams=report["linear"]["top_ngrams"],
    )  # fmt: skip


@router.get("/{job}/model")
def model(request: Request, job: PageJob, parts: PartsDep) -> Response:
    """Show a prediction form, the model files and the current checkpoints."""
    values = _model_values(request, parts, job)
    return page(request, "model.html", values, answers=None, typed="", paired="", confidence="")


@router.post("/{job}/predict")
def predict(
    request: Request,
    job: PageJob,
    parts: PartsDep,
    texts: Annotated[str, Form(max_length=100_000)] = "",
    pair: Annotated[str, Form(max_length=100_000)] = "",
    confidence: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Show the predictions for each line of `texts`, or for the text pair (`texts`, `pair`).

    confidence: the minimum probability of a label. A text gets no label if no label has this probability.
    """
    served = served_model(parts.jobs, job)
    pairs = bool(parts.artifacts.read_json(served.ref, METADATA)["pair"])
    rows = [texts.strip()] if pairs else [line for line in texts.splitlines() if line.strip()]
    if not any(rows):
        raise InvalidRequest("The form has no text. Enter a text.")
    if len(rows) > _TEXTS:
        raise InvalidRequest(f"The form has {len(rows)} lines. Enter at most {_TEXTS}, or use the API.")
    second = [pair.strip()] if pairs else None
    model, predictions = parts.predictor.predict(served.ref, rows, second, _confidence(confidence))
    answers = []
    for text, prediction in zip(rows, predictions, strict=True):
        ranked = sorted(prediction.probabilities.items(), key=lambda entry: -entry[1])
        more = len(ranked) - _LABELS_SHOWN
        answers.append({"text": text, "prediction": prediction, "ranked": ranked[:_LABELS_SHOWN], "more": more})
    if "hx-request" in request.headers:
        return page(request, "_answers.html", answers=answers, served=served, model=model)
    context = _model_values(request, parts, job)
    return page(
        request, "model.html", context, answers=answers, model=model, typed=texts, paired=pair, confidence=confidence
    )


@router.get("/{job}/files/{name:path}", response_class=FileResponse)
def file(job: PageJob, name: str, parts: PartsDep) -> FileResponse:
    """Download one file of the model."""
    return model_file_response(parts.jobs, parts.artifacts, job, name)


def _confidence(text: str) -> float | None:
    """Return the number in the field of the minimum confidence, or None for a blank field. Raises InvalidRequest."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InvalidRequest(f"Invalid confidence '{text.strip()}'. Enter a number from 0 to 1, or empty the field.")
    return value


def _model_values(request: Request, parts: Parts, job: JobRecord) -> dict[str, object]:
    try:
        served = served_model(parts.jobs, job)
    except (Conflict, NotFound):
        served = None
    labels = parts.artifacts.read_json(served.ref, METADATA) if served else {}
    files = served.files(parts.artifacts) if served else None
    evaluated = artifact_or_none(parts.jobs, job, "evaluate")
    report = parts.artifacts.read_json(evaluated, REPORT) if evaluated else {}
    aliases = parts.models.aliases_of(job.tenant, job.id)
    return {
        "job": job,
        "tab": "model",
        "served": served,
        "linear": any(node.name == BASELINE.name for node in plan_of(job).nodes),
        "files": files,
        "encoder": files is not None and "model/config.json" in files,
        "aliases": aliases,
        "snippets": prediction_snippets(aliases[0] if aliases else job.id, own_url(request)),
        "headline": next(iter(sentences(report)), None),
        "pair": labels.get("pair", False),
        "classes": TASK_TYPES[labels.get("task_type", SINGLE_LABEL)].has_classes,
        "checkpoints": checkpoint_views(parts.artifacts, checkpoints_of(parts.jobs, job)),
    }


def _matrix(labels: list[str], confusion: list[list[int]]) -> list[dict[str, object]] | None:
    """Return the rows of the confusion matrix: true label, cells, total. Return None for more than 24 labels.

    A cell has its `count`, and its share of the row as `shade`, from 0 to 5 (all texts of the row).
    """
    if len(labels) > _CLASSES_IN_MATRIX:
        return None
    rows = []
    for label, counts in zip(labels, confusion, strict=True):
        total = sum(counts)
        cells = [{"count": n, "shade": round(_SHADES * n / total) if total else 0} for n in counts]
        rows.append({"label": label, "cells": cells, "total": total})
    return rows


def _confusions(labels: list[str], confusion: list[list[int]]) -> list[dict[str, object]]:
    """Return the ten most frequent confusions of labels. `share`: part of all texts with the true label."""
    pairs = [(n, i, j) for i, counts in enumerate(confusion) for j, n in enumerate(counts) if i != j and n]
    return [
        {"true": labels[i], "predicted": labels[j], "count": n, "share": n / sum(confusion[i])}
        for n, i, j in sorted(pairs, key=lambda pair: -pair[0])[:10]
    ]
