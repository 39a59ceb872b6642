"""Job reports and estimates as lines and tables."""

from __future__ import annotations

from tlm_client.console import Item, table
from tlm_client.display import duration
from tlm_core.evaluation.summary import (
    Report,
    averaged_seeds,
    few_rows,
    model_rows,
    model_title,
    sentences,
    training_time,
)
from tlm_core.tasks.metrics import scores_shown
from tlm_core.wire import Estimate, Verdict
from tlm_core.wording import interval_in_words


def format_score(value: float | None, spread: float | None = None) -> str:
    """Return a score such as `0.612`, with a spread `0.612 ± 0.008`, or `n/a` for None."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def format_verdict(verdict: Verdict) -> str:
    """Return `better: +0.021 (95 % interval +0.004 to +0.038)`, or why there is no verdict."""
    if verdict.low is None or verdict.high is None:
        return verdict.reason or "no verdict"
    return f"{verdict.verdict}: {verdict.value:+.3f} ({interval_in_words(verdict.low, verdict.high)})"


def report_items(report: Report) -> list[Item]:
    """Return the results, the warnings and the cost of a report.

    The results of the kind `train` are a table with the scores of all models, and sentences about the returned model.
    The results of other kinds are a text.
    """
    warnings = [f"Warning: {message}" for message in report.get("warnings", ())]
    if "words" in report:
        return [str(report["words"]), *few_rows(report), *warnings, *_cost(report)]
    scores = scores_shown(report["metric"])
    rows = [
        (model_title(row.name), *(format_score(row.mean.get(name), row.spread.get(name)) for name in scores), row.file)
        for row in model_rows(report)
    ]
    seeds = len(averaged_seeds(report["seeds"]))
    title = f"Test scores, {f'± spread over {seeds} seeds' if seeds != 1 else 'one seed'}"
    return [table(("model", *scores, "file"), rows, title=title), *sentences(report), *warnings, *_cost(report)]


def _cost(report: Report) -> list[str]:
    """Return a list of one line with the cost of all stages and seeds, or [] if the words of `gain` state all costs."""
    total = report["cost"].get("total", {})
    flops, tokens = total.get("flops"), total.get("tokens")
    parts = []
    if not flops == tokens == 0:
        parts.append("FLOPs unknown" if flops is None else f"{flops:.2e} FLOPs")
        parts.append("tokens unknown" if tokens is None else f"{tokens:,.0f} tokens")
    if (time := training_time(report)) not in report.get("gain", {}).get("words", ""):
        parts.append(time)
    return [f"Cost: {', '.join(parts)}"] if parts else []


def estimate_items(estimate: Estimate) -> list[Item]:
    """Return a table of the stages, and lines with the totals of all stages and the sources of these figures."""
    rows = [
        (s.stage, _format_time(s.seconds), "cached" if s.basis == "cached" else _format_flops(s.flops), s.basis)
        for s in estimate.stages
    ]
    gpu_hours = "unknown" if estimate.gpu_hours is None else f"{estimate.gpu_hours:.2f}"
    passages = "unknown"
    if estimate.passages is not None:
        passages = f"{estimate.passages:,} of at most {estimate.passages_at_most or 0:,}"
    return [
        table(("stage", "time", "FLOPs", "basis"), rows),
        f"Time: {_format_range(estimate)}",
        f"FLOPs: {_format_flops(estimate.flops)}",
        f"Passages: {passages}",
        *([] if estimate.gpu_hours == 0 else [f"GPU hours: {gpu_hours}"]),
        f"Memory per worker: {_format_bytes(estimate.memory_bytes)}",
        f"Disk: {_format_bytes(estimate.disk_bytes)}",
        *(f"{', '.join(names)}: {reason}" for reason, names in estimate.sources().items()),
    ]


def _format_range(estimate: Estimate) -> str:
    """Return the bounds of the expected time, such as "2:05 to 4:10", and their source; one time if both look equal."""
    low, high = _format_time(estimate.seconds_at_least), _format_time(estimate.seconds_at_most)
    return _format_time(estimate.seconds) if low == high else f"{low} to {high}, {estimate.reasons['seconds']}"


def _format_time(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def _format_flops(flops: float | None) -> str:
    return "unknown" if flops is None else f"{flops:.2e}" if flops else "0"


def _format_bytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.0f} MB"
