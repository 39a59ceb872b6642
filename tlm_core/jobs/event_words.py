"""Events of a job as sentences, for the dashboard and the command line."""

from __future__ import annotations

from collections.abc import Mapping

from tlm_core.jobs.plan import SEED_GROUP

# By event type. {message} is a complete sentence; {node} is the title of the event's node; {purpose} names the seed,
# if the workers of several seeds run at the same time.
_SENTENCES = {
    "job.submitted": "Submitted",
    "job.claimed": "A coordinator started attempt {attempt}",
    "job.adopted": "Another coordinator continues attempt {attempt}",
    "job.requeued": "Attempt {attempt} ended: {message} The next attempt starts in {delay_seconds:g} s.",
    "job.waiting": "Waiting: {message}",
    "job.pause_requested": "Pause requested",
    "job.paused": "Paused",
    "job.resumed": "Resumed",
    "job.cancel_requested": "Cancellation requested",
    "job.cancelled": "Cancelled",
    "job.succeeded": "Succeeded",
    "job.failed": "Failed: {message}",
    "workers.submitted": "Starting workers{purpose}",
    "stage.started": "Started {node}",
    "stage.resumed": "Resumed {node} at step {step:,}",
    "stage.warning": "Warning: {message}",
    "baseline": "Fitting the linear model on {rows:,} rows",
    "self_training": "Labeling {pieces:,} pieces of passages with the linear model",
    "tokenizer": "The tokenizer has {vocab_size:,} tokens",
    "step.skipped": "Skipped step {step:,}, because its loss or gradient is not finite",
    "memory.stepped_down": "Out of memory at step {step:,}; now with micro-batches of at most {rows:,} rows",
    "refit": "Fitting the {model} model again, also on validation",
    "checkpoint.published": "Stored a checkpoint of {node} at step {step:,}",
    "artifact.published": "Finished {node}",
    "attempt.error": "Error in attempt {attempt}: {message}",
}


def sentence(event_type: str, attempt: int | None, data: Mapping[str, object], titles: Mapping[str, str]) -> str | None:
    """Return an event as a sentence, or None if the type is unknown or the sentence needs a value that `data` lacks.

    titles: name of a node → title for readers. For a node without a title, the sentence has the name.
    """
    values = {**data, "attempt": attempt}
    group = str(data.get("group", ""))
    values["purpose"] = f" for seed {group.removeprefix(SEED_GROUP)}" if group.startswith(SEED_GROUP) else ""
    if "model" in data:
        values["model"] = str(data["model"]).replace("_", "-")
    if "node" in data:
        name = str(data["node"])
        values["node"] = titles.get(name, name)
    try:
        return _SENTENCES[event_type].format_map(values)
    except (KeyError, ValueError, TypeError):
        return None
