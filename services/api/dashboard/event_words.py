"""Events of a job as sentences for its pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from services.api.dashboard.present import duration, facts, words
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import Event

# By type. {message} is a sentence of its own; {node} is the title of the event's node.
_SENTENCES = {
    "job.submitted": "Submitted",
    "job.claimed": "A coordinator started attempt {attempt}",
    "job.adopted": "Another coordinator continues attempt {attempt}",
    "job.requeued": "Attempt {attempt} ended: {message} The next one starts in {delay}.",
    "job.waiting": "Waiting: {message}",
    "job.pause_requested": "Pause requested",
    "job.paused": "Paused",
    "job.resumed": "Resumed",
    "job.cancel_requested": "Cancellation requested",
    "job.cancelled": "Cancelled",
    "job.succeeded": "Succeeded",
    "job.failed": "Failed: {message}",
    "workers.submitted": "Starting workers",
    "stage.started": "Started {node}",
    "stage.resumed": "Resumed {node} at step {step}",
    "stage.warning": "Warning: {message}",
    "checkpoint.published": "Stored a checkpoint of {node} at step {step}",
    "artifact.published": "Finished {node}",
    "attempt.error": "Error in attempt {attempt}: {message}",
}


@dataclass(frozen=True)
class EventLine:
    """An event for readers. words: a sentence, or the type and data of an event that has none."""

    at: float
    words: str


def event_line(event: Event, titles: Mapping[str, str]) -> EventLine:
    """Return an event as a sentence. An event shows type and data if its type or its data give no sentence.

    titles: from `node_titles`.
    """
    data: dict[str, object] = {**event.data, "attempt": event.attempt}
    if isinstance(step := data.get("step"), int):
        data["step"] = f"{step:,}"
    if isinstance(delay := data.get("delay_seconds"), int | float):
        data["delay"] = duration(delay)
    if "node" in data:
        name = str(data["node"])
        data["node"] = titles.get(name, name)
    try:
        return EventLine(event.at, _SENTENCES[event.type].format_map(data))
    except KeyError:
        return EventLine(event.at, " · ".join(filter(None, (event.type, facts(event.data)))))


def node_titles(plan: Plan) -> dict[str, str]:
    """Return the stage of each node with seed and rate, such as `joint (seed 0)`, or its name if others share that."""
    titles = {node.name: _stage_with_values(node) for node in plan.nodes}
    counts = Counter(titles.values())
    return {name: title if counts[title] == 1 else name for name, title in titles.items()}


def _stage_with_values(node: Node) -> str:
    values = [f"{word} {value:g}" for word, value in (("seed", node.seed), ("rate", node.rate)) if value is not None]
    return words(node.stage.name) + (f" ({', '.join(values)})" if values else "")
