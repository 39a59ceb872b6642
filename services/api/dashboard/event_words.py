"""Events of a job as sentences for its pages."""

from __future__ import annotations

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
class Described:
    """An event for readers. words: a sentence, or the type and data of an event that has none."""

    at: float
    words: str


def described(event: Event, plan: Plan) -> Described:
    """Return an event as a sentence. Types without one, and events without the data of theirs, show type and data."""
    data: dict[str, object] = {**event.data, "attempt": event.attempt}
    if isinstance(step := data.get("step"), int):
        data["step"] = f"{step:,}"
    if isinstance(delay := data.get("delay_seconds"), int | float):
        data["delay"] = duration(delay)
    if "node" in data:
        data["node"] = _title(str(data["node"]), plan)
    try:
        return Described(event.at, _SENTENCES[event.type].format_map(data))
    except KeyError:
        return Described(event.at, " · ".join(filter(None, (event.type, facts(event.data)))))


def _title(name: str, plan: Plan) -> str:
    """Return the stage of a node with its seed and rate, such as `joint (seed 0)`. Other nodes must not share it."""
    titles = {node.name: _stage_with_values(node) for node in plan.nodes}
    title = titles.get(name, name)
    return name if list(titles.values()).count(title) > 1 else title


def _stage_with_values(node: Node) -> str:
    values = [f"{word} {value:g}" for word, value in (("seed", node.seed), ("rate", node.rate)) if value is not None]
    return words(node.stage.name) + (f" ({', '.join(values)})" if values else "")
