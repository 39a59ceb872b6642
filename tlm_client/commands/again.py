"""`tlm retry`, `clone`, `delete`: what is done with jobs that are there already."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tlm_client.commands.jobs import JobId, Options, Overrides, Seeds, labels_of, options_of, overrides_of, watch_job
from tlm_client.console import AsJson, Yes, confirm_deletion, emit, guarded, notes, say, session_of
from tlm_client.models import Job

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Stay and show how it goes.")]


@guarded
def retry(context: typer.Context, job_id: JobId, watch: Watch = False, as_json: AsJson = False) -> None:
    """Try a job that failed or was cancelled again; stages that are done are not done again."""
    with session_of(context).client() as client:
        job = client.retry(job_id)
        if watch:
            notes().print(f"submitted {job.id}")
            watch_job(client, job.id, as_json)
        else:
            _tell(job, job_id, as_json)


@guarded
def clone(
    context: typer.Context,
    job_id: JobId,
    dataset: Annotated[str | None, typer.Option(help="Another data set, or its newest version.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Another corpus, or its newest version.")] = None,
    scale: Annotated[str | None, typer.Option(help="tiny, small, medium or large.")] = None,
    seed: Seeds = None,
    set_: Overrides = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Instead of its own.")] = None,
    priority: Annotated[int | None, typer.Option(help="-10 to 10; higher ones are taken first.")] = None,
    max_runtime: Annotated[float | None, typer.Option(help="Seconds after which it is ended.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="train, learning_curve, prune or share_tickets; another begins without options.")
    ] = None,
    options: Options = None,
    watch: Watch = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job like another, with changes. What is not changed means the same data as before."""
    given: dict[str, Any] = {
        "dataset": dataset, "corpus": corpus, "scale": scale, "seeds": seed or None,
        "set": overrides_of(set_) or None, "metadata": labels_of(label) or None, "priority": priority,
        "max_runtime_seconds": max_runtime, "kind": kind,
    }  # fmt: skip
    with session_of(context).client() as client:
        if options is not None:
            of = kind or client.job(job_id).spec.kind
            given[of] = options_of(options, of)
        job = client.clone(job_id, {name: value for name, value in given.items() if value is not None})
        if watch:
            notes().print(f"submitted {job.id}")
            watch_job(client, job.id, as_json)
        else:
            _tell(job, job_id, as_json)


@guarded
def delete(
    context: typer.Context,
    job_id: JobId,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a job that is over, with its log, and the model and checkpoints that no other job shares."""
    confirm_deletion(f"{job_id} and its model", yes=yes)
    with session_of(context).client() as client:
        client.delete_job(job_id)
    emit({"deleted": job_id}) if as_json else say(f"deleted {job_id}")


def _tell(job: Job, earlier: str, as_json: bool) -> None:
    emit(job) if as_json else say(f"{job.id} is {job.state}, made from {earlier}; `tlm watch {job.id}` shows it")
