"""Job reports and estimates as lines and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlm_client.console import Item, table
from tlm_client.display import duration
from tlm_core.tasks.metrics import scores_shown
from tlm_core.wire import Estimate

Report = Mapping[str, Any]


def format_score(value: float | None, spread: float | None = None) -> str:
    """Return `0.612`, `0.612 ± 0.008` with a spread, or `n/a`."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def mean_and_spread(report: Report, score: str) -> str:
    """Return the mean and spread of a test score over all seeds; one seed has no spread."""
    return format_score(report_score(report, "mean", score), report_score(report, "spread", score))


def report_score(report: Report, part: str, score: str) -> float | None:
    """Return a test score; part: mean, spread or majority."""
    value = report[part]["test"].get(score)
    return None if value is None else float(value)


def total_cost(report: Report, quantity: str) -> float | None:
    """Return the total `flops`, `tokens`, `seconds` or `gpu_seconds` of all stages and seeds; None if unknown."""
    value = report["cost"].get("total", {}).get(quantity)
    return None if value is None else float(value)


def report_items(report: Report) -> list[Item]:
    """Return the test scores beside the majority baseline, or the text of a study; then the warnings and the cost."""
    flops, tokens, seconds = (total_cost(report, quantity) for quantity in ("flops", "tokens", "seconds"))
    parts = (
        "FLOPs unknown" if flops is None else f"{flops:.2e} FLOPs",
        "tokens unknown" if tokens is None else f"{tokens:,.0f} tokens",
        "time unknown" if seconds is None else f"{seconds:,.0f} s",
    )
    rest = [*(f"Warning: {message}" for message in report.get("warnings", ())), f"Cost: {', '.join(parts)}"]
    if "words" in report:
        return [str(report["words"]), *rest]
    rows = [
        (score, mean_and_spread(report, score), format_score(report_score(report, "majority", score)))
        for score in scores_shown(report["metric"])
    ]
    seeds = len(report["seeds"])
    return [table(("test score", f"mean of {seeds} seed{'s' if seeds != 1 else ''}", "majority class"), rows), *rest]


def estimate_items(estimate: Estimate) -> list[Item]:
    """Return each stage with the source of its figures, then the totals."""
    rows = [(s.stage, _format_time(s.seconds), _format_flops(s.flops), s.basis, s.reason) for s in estimate.stages]
    passages = "unknown"
    if estimate.passages is not None:
        passages = f"{estimate.passages:,} of at most {estimate.passages_at_most or 0:,}"
    return [
        table(("stage", "time", "FLOPs", "basis", "reason"), rows),
        f"Time: {_format_time(estimate.seconds)}",
        f"FLOPs: {_format_flops(estimate.flops)}",
        f"Passages: {passages}",
        f"GPU hours: {'unknown' if estimate.gpu_hours is None else f'{estimate.gpu_hours:.2f}'}",
        f"Memory per worker: {_format_bytes(estimate.memory_bytes)}",
        f"Disk: {_format_bytes(estimate.disk_bytes)}",
        *(f"{figure}: {reason}" for figure, reason in estimate.reasons.items()),
    ]


def _format_time(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def _format_flops(flops: float | None) -> str:
    return "unknown" if flops is None else f"{flops:.2e}"


def _format_bytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.0f} MB"
