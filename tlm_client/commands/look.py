"""`tlm logs`, `compare`, `why`: looking closer at jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from tlm_client.commands.jobs import JobId
from tlm_client.console import INTERRUPTED, AsJson, emit, guarded, notes, say, session_of, table
from tlm_client.display import spark
from tlm_client.models import Comparison, Outcome
from tlm_client.results import number
from tlm_core.tasks.metrics import scores_shown


@guarded
def logs(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job is over.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=1, max=5000, help="Only the last lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a job; it outlives the workers. With --follow a broken connection is taken up again."""
    with session_of(context).client() as client:
        last = "0"
        lines = client.last_logs(job_id, tail) if tail is not None else client.logs(job_id)
        for line in lines:
            last = line["id"]
            _print(line, as_json)
        if not follow:
            return
        try:
            for line in client.follow_logs(job_id, after=last):
                _print(line, as_json)
        except KeyboardInterrupt as error:
            notes().print(f"\n{job_id} goes on; come back with `tlm logs -f {job_id}`")
            raise typer.Exit(INTERRUPTED) from error


@guarded
def compare(
    context: typer.Context,
    job_ids: Annotated[list[str], typer.Argument(metavar="ID ID…")],
    as_json: AsJson = False,
) -> None:
    """Put two to ten jobs side by side: what differs, scores, cost, curves."""
    with session_of(context).client() as client:
        found = client.compare(job_ids, points=40)
    if as_json:
        emit(found)
        return
    columns = ("", *(f"{job.id}" for job in found.jobs))
    table(columns, [(d.key, *map(_value, d.values)) for d in found.differences], title="what differs")
    table(columns, list(_scores(found)), title="on test, and the cost")
    table(columns, list(_curves(found)), title="curves, from start to end")
    for one in found.outcomes:
        if one.reason:
            say(f"{one.job}: {one.reason}")


@guarded
def why(
    context: typer.Context,
    job_id: JobId,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD…]", help="That a passage must hold.")] = None,
    row: Annotated[int | None, typer.Option(min=1, help="Only what this train row asked for.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show passages of a job's selection, and the train rows for whose sake each is in the model's diet."""
    with session_of(context).client() as client:
        found = client.selection(job_id, words=" ".join(words or []), train_row=row, limit=limit)
    if as_json:
        emit(found)
        return
    rows = []
    for one in found.data:
        asked = "\n".join(f"row {a.train_row} ({a.label or '?'}) {(a.text or '')[:80]}" for a in one.asked_by[:3])
        rows.append((one.rank, one.source, one.text[:300], asked))
    table(("rank", "source", "passage", "asked for by"), rows)
    say(f"{len(found.data)} of {found.total if found.total is not None else '?'} passages")


def _print(line: dict[str, Any], as_json: bool) -> None:
    emit(line) if as_json else say(f"{datetime.fromtimestamp(line['at']):%H:%M:%S} {line['line']}")


def _scores(found: Comparison) -> list[tuple[str, ...]]:
    shown = dict.fromkeys(score for one in found.outcomes if one.metric for score in scores_shown(one.metric))
    rows = [(score, *(_mean(one, score) for one in found.outcomes)) for score in shown or scores_shown("macro_f1")]
    for what in ("flops", "tokens", "seconds"):
        totals = [(one.cost or {}).get("total", {}).get(what) for one in found.outcomes]
        rows.append((what, *("n/a" if total is None else f"{total:.3g}" for total in totals)))
    return rows


def _mean(one: Outcome, score: str) -> str:
    mean, spread = (((part or {}).get("test") or {}).get(score) for part in (one.mean, one.spread))
    return number(mean) if spread is None else f"{mean:.3f} ± {spread:.3f}"


def _curves(found: Comparison) -> list[tuple[str, ...]]:
    names = list(dict.fromkeys(f"{s.node} {s.name}" for job in found.curves for s in job.series))
    lines = [{f"{s.node} {s.name}": s.values for s in job.series} for job in found.curves]
    return [
        (name, *(f"{spark(line[name])} {line[name][-1]:.3g}" if name in line else "" for line in lines))
        for name in names
    ]


def _value(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
