"""`tlm compare`, `why`, `suspects`: compare jobs, explain which passages a job selected, and list suspect labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.text import Text

from tlm_client.console import JobId, JobIds, open_client, print_result, printable, shorten, table
from tlm_client.display import spark
from tlm_client.summary import format_score, format_verdict
from tlm_core.evaluation.summary import model_title, time_in_words
from tlm_core.selection.stop_words import STOP_WORDS
from tlm_core.tasks.metrics import scores_shown
from tlm_core.wire import Comparison, Outcome
from tlm_core.wording import data_in_words

_CURVES = ("mlm", "loss", "task", "validation_loss", "score")  # --json has the others, such as learning rates
_LONGEST_TEXT = 200
_NUMBER = re.compile(r"(\d+)")
_WORD = re.compile(r"\w{4,}")  # shorter words of a query say little


def compare(job_ids: JobIds) -> None:
    """Compare two to ten jobs: settings that differ, scores, cost and curves.

    tlm compare ID OTHER_ID
    tlm compare ID OTHER_ID --json
    """
    with open_client() as client:
        comparison = client.compare(job_ids, points=40)
    columns = ("", *(f"{job.name or data_in_words(job.dataset, job.corpus)}\n{job.id}" for job in comparison.jobs))
    differences = [
        (d.key, *(shorten("" if value is None else str(value), width=40) for value in d.values))
        for d in comparison.differences
    ]
    tables = {
        "Test scores of the returned models, and cost": _score_rows(comparison),
        "Test scores of all models, by the task's metric": _model_rows(comparison),
        "Curves": _curve_rows(comparison),
    }
    print_result(
        comparison,
        table(columns, differences, title="Differences", empty="No differences."),
        *(table(columns, rows, title=title) for title, rows in tables.items() if rows),
        *(f"{outcome.job}: {outcome.reason}" for outcome in comparison.outcomes if outcome.reason),
    )


def why(
    job_id: JobId,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD…]", help="Words in each passage.")] = None,
    row: Annotated[int | None, typer.Option(min=1, help="Only passages that this train row retrieved.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of passages.")] = 5,
    full: Annotated[bool, typer.Option("--full", help="Whole passages, each with up to three train rows.")] = False,
) -> None:
    """Show selected passages, and the train rows that retrieved each of them.

    tlm why @latest
    tlm why ID water boils --full
    """
    with open_client() as client:
        selection = client.selection(job_id, words=" ".join(words or []), train_row=row, limit=limit)
    rows = []
    for passage in selection.data:
        sources = passage.provenance[: 3 if full else 1]
        of_queries = _WORD.findall(" ".join(query.texts for query in sources))
        terms = words or [word for word in of_queries if word.lower() not in STOP_WORDS]
        queries = "\n".join(f"row {q.train_row} ({q.label or '?'}) {q.texts}" for q in sources)
        cells = [passage.text, queries] if full else [shorten(passage.text, terms), shorten(queries)]
        rows.append((passage.rank, passage.source, *(_highlighted(cell, terms) for cell in cells)))
    passages = table(("rank", "source", "passage", "retrieved by"), rows, empty="No passage matches.")
    count = f"{len(rows)} of {selection.total:,} passages. Rank: the best rank that a train row gives the passage."
    print_result(selection, passages, *([count] if rows else []))


def suspects(
    job_id: JobId, limit: Annotated[int, typer.Option(min=1, max=2_000, help="Maximum number of rows.")] = 20
) -> None:
    """List the train and validation rows whose labels are probably wrong, most suspect first.

    tlm suspects @latest
    tlm suspects ID --limit 50 --json
    """
    with open_client() as client:
        ranking = client.suspects(job_id, limit=limit)
    rows = []
    for suspect in ranking.data:
        text = " ║ ".join(
            shorten(part, width=_LONGEST_TEXT) for part in (suspect.text, suspect.text_pair) if part is not None
        )
        rows.append((suspect.split, suspect.row, suspect.label, suspect.suggested, f"{suspect.score:.3f}", text))
    count = f"{len(rows)} of {ranking.total:,} rows with a more probable label."
    note = f"{count} Many given labels are right: read the texts."
    columns = ("split", "row", "label", "suggested", "score", "text")
    labels = table(columns, rows, empty="No row has a more probable label.")
    print_result(ranking, labels, *([note] if rows else []))


def _highlighted(text: str, terms: Sequence[str]) -> Text:
    result = Text(printable(text))
    if terms:
        result.highlight_regex(rf"(?i)\b({'|'.join(map(re.escape, terms))})\b", "bold")
    return result


def _score_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    outcomes = comparison.outcomes
    scores = dict.fromkeys(score for outcome in outcomes if outcome.metric for score in scores_shown(outcome.metric))
    rows = [(score, *(_format_mean(o, score) for o in outcomes)) for score in scores or scores_shown("macro_f1")]
    rows.append((f"against {comparison.jobs[0].id}", "", *map(format_verdict, comparison.verdicts)))
    for title, quantity, form in (
        ("FLOPs", "flops", "{:.3g}".format), ("tokens", "tokens", "{:,.0f}".format), ("time", "seconds", time_in_words)
    ):  # fmt: skip
        totals = [(outcome.cost or {}).get("total", {}).get(quantity) for outcome in outcomes]
        rows.append((title, *("n/a" if total is None else form(total) for total in totals)))
    return rows


def _model_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    names = dict.fromkeys(model.name for outcome in comparison.outcomes for model in outcome.models)
    return [(model_title(name), *(_format_model(outcome, name) for outcome in comparison.outcomes)) for name in names]


def _format_model(outcome: Outcome, name: str) -> str:
    """Return the score and the file of a model, such as `0.612 (model.onnx)`, or "" if the job lacks the model."""
    model = next((model for model in outcome.models if model.name == name), None)
    if model is None or outcome.metric is None:
        return ""
    score = format_score(model.mean.get(outcome.metric), model.spread.get(outcome.metric))
    return f"{score} ({model.file})" if model.file else score


def _format_mean(outcome: Outcome, score: str) -> str:
    mean, spread = (outcome.mean or {}).get("test", {}), (outcome.spread or {}).get("test")
    return format_score(mean.get(score), spread.get(score) if isinstance(spread, dict) else None)


def _curve_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    curves = [{f"{s.node} {s.name}": s.values for s in job.series if s.name in _CURVES} for job in comparison.curves]
    return [
        (name, *(f"{spark(curve[name])} {curve[name][-1]:.3g}" if name in curve else "" for curve in curves))
        for name in _in_order(dict.fromkeys(name for curve in curves for name in curve))
    ]


def _in_order(names: Iterable[str]) -> list[str]:
    """Sort names such as `joint.s0 mlm` by stage, seed and metric. The order of stages is that in `names`."""
    parts = {name: _NUMBER.split(name) for name in names}  # text, number, text, …
    stages = list(dict.fromkeys(text for text, *_ in parts.values()))

    def key(name: str) -> tuple[object, ...]:
        text, *rest = parts[name]
        return (stages.index(text), *(int(part) if part.isdigit() else part for part in rest))

    return sorted(parts, key=key)
