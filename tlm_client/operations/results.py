"""What a job leaves, and what there is to know of the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tlm_client.download import Part, fetch_archive, fetch_file
from tlm_client.operations.base import at, model
from tlm_client.steps import Ask, call
from tlm_core.artifacts import FileEntry
from tlm_core.wire import Checkpoint, Prediction, Selection, Webhook, WebhookCreated


def checkpoints(job_id: str) -> Ask[list[Checkpoint]]:
    """The checkpoints there are, with node, step, metrics and files."""
    found = yield from call("GET", at("/v1/jobs/{job}/checkpoints", job=job_id), repeat=True)
    return [model(Checkpoint, one) for one in found["data"]]


def download_checkpoint(
    job_id: str, checkpoint: Checkpoint, folder: Path, on_bytes: Callable[[Part], None] | None = None
) -> Ask[list[Path]]:
    """Fetch every file of a checkpoint into `folder`, as `download` does."""
    base = at("/v1/jobs/{job}/checkpoints/{node}/{step}", job=job_id, node=checkpoint.node, step=str(checkpoint.step))
    found = []
    for file in checkpoint.files:
        found.append((yield from fetch_file(f"{base}/{_name(file)}", file, folder, on_bytes=on_bytes)))
    return found


def report(job_id: str) -> Ask[dict[str, Any]]:
    """Test scores for each seed with mean and spread, the majority baseline, and the cost of each stage."""
    return dict((yield from call("GET", at("/v1/jobs/{job}/report", job=job_id), repeat=True)))


def model_files(job_id: str) -> Ask[list[FileEntry]]:
    """The files of the result. Raises Conflict while there is none, NotFound if the job ended without."""
    answer = yield from call("GET", at("/v1/jobs/{job}/model", job=job_id), repeat=True)
    return [model(FileEntry, entry) for entry in answer["files"]]


def download(job_id: str, folder: Path, on_bytes: Callable[[Part], None] | None = None) -> Ask[list[Path]]:
    """Fetch every file of the result into `folder`, checked against its SHA-256; what is there already is kept.

    An interrupted download goes on where it stopped. Raises CorruptArtifact if the bytes do not match.
    """
    base = at("/v1/jobs/{job}/model/files", job=job_id)
    found = []
    for file in (yield from model_files(job_id)):
        found.append((yield from fetch_file(f"{base}/{_name(file)}", file, folder, on_bytes=on_bytes)))
    return found


def download_archive(job_id: str, target: Path) -> Ask[Path]:
    """Fetch the whole result as one tar file. `download` goes on where it was cut and checks every file."""
    return fetch_archive(at("/v1/jobs/{job}/model/archive", job=job_id), target)


def download_checkpoint_archive(job_id: str, checkpoint: Checkpoint, target: Path) -> Ask[Path]:
    """Fetch a whole checkpoint as one tar file."""
    parts = {"job": job_id, "node": checkpoint.node, "step": str(checkpoint.step)}
    return fetch_archive(at("/v1/jobs/{job}/checkpoints/{node}/{step}", **parts), target)


def selection(
    job_id: str, *, words: str = "", train_row: int | None = None, after: int = 0, limit: int = 20
) -> Ask[Selection]:
    """Why are these passages in the model's diet? words: that a passage must hold; train_row: only what it asked for;
    after: how many to pass over."""
    params: dict[str, Any] = {"q": words, "after": after, "limit": limit}
    params |= {} if train_row is None else {"train_row": train_row}
    found = yield from call("GET", at("/v1/jobs/{job}/selection", job=job_id), params=params, repeat=True)
    return model(Selection, found)


def predict(job_id: str, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Ask[list[Prediction]]:
    """Labels and probabilities by the job's model; pairs: second texts, where the task has them."""
    body: dict[str, Any] = {"texts": list(texts)} | ({"pairs": list(pairs)} if pairs is not None else {})
    answer = yield from call("POST", at("/v1/jobs/{job}/predict", job=job_id), json=body, repeat=True)
    return [model(Prediction, one) for one in answer["data"]]


def add_webhook(url: str, events: Sequence[str] = ()) -> Ask[WebhookCreated]:
    """Have events posted to `url`; the answer alone holds the secret that signatures are checked with."""
    body: dict[str, Any] = {"url": url} | ({"events": list(events)} if events else {})
    return model(WebhookCreated, (yield from call("POST", "/v1/webhooks", json=body)))


def webhooks() -> Ask[list[Webhook]]:
    """All of them, oldest first."""
    return [model(Webhook, one) for one in (yield from call("GET", "/v1/webhooks", repeat=True))["data"]]


def webhook(webhook_id: str) -> Ask[Webhook]:
    """`disabled` says why nothing is sent to it any more."""
    return model(Webhook, (yield from call("GET", at("/v1/webhooks/{one}", one=webhook_id), repeat=True)))


def webhook_attempts(webhook_id: str) -> Ask[list[dict[str, Any]]]:
    """Its latest deliveries, newest first."""
    return list((yield from call("GET", at("/v1/webhooks/{one}/attempts", one=webhook_id), repeat=True))["data"])


def delete_webhook(webhook_id: str) -> Ask[None]:
    """Nothing more is sent to it."""
    yield from call("DELETE", at("/v1/webhooks/{one}", one=webhook_id))


def info() -> Ask[dict[str, Any]]:
    """Version and limits of the gateway."""
    return dict((yield from call("GET", "/v1/info", repeat=True)))


def ready() -> Ask[dict[str, str]]:
    """Whether each component answers. Raises Unavailable, saying which does not."""
    return dict((yield from call("GET", "/readyz")))


def _name(file: FileEntry) -> str:
    # Slashes stay: a name may lie in a folder of the artifact.
    return "/".join(at("{part}", part=part) for part in file.name.split("/"))
