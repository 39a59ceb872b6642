"""`tlm submit`, `jobs`, `show`, `watch`, `cancel`, `pause`, `resume`."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tlm_client.client import TLMClient
from tlm_client.console import FAILED, INTERRUPTED, AsJson, emit, guarded, notes, say, session_of, table
from tlm_client.display import Display, duration
from tlm_client.models import Job, JobEvent
from tlm_client.results import say_report
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import State

JobId = Annotated[str, typer.Argument(metavar="ID")]


@guarded
def submit(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(help="Name or id of a data set.")],
    corpus: Annotated[
        str | None, typer.Option(help="NAME or NAME@VERSION; left out: trained on the task alone.")
    ] = None,
    scale: Annotated[str, typer.Option(help="tiny, small, medium or large.")] = "tiny",
    recipe: Annotated[str, typer.Option(help="fast or paper.")] = "fast",
    seed: Annotated[list[int] | None, typer.Option(help="One run each; may be given several times.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Recipe override; the value is JSON.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Data-parallel workers.")] = 1,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Your own label on the job.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show how it goes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    overrides = {key: _value(text) for key, text in map(_pair, set_ or [])}
    if corpus is None:
        overrides.setdefault("selection.selector", "none")
    spec = _spec(
        dataset=dataset,
        corpus=corpus,
        scale=scale,
        recipe=recipe,
        seeds=seed or [0],
        set=overrides,
        workers=workers,
        metadata=dict(map(_pair, label or [])),
    )
    with session_of(context).client() as client:
        job = client.submit(spec)
        if not watch:
            if as_json:
                emit(job)
            else:
                say(f"{job.id} is {job.state}; `tlm watch {job.id}` shows how it goes")
            return
        notes().print(f"submitted {job.id}")
        _watch(client, job.id, as_json)


@guarded
def jobs(
    context: typer.Context,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with session_of(context).client() as client:
        found = [job for _, job in zip(range(limit), client.jobs(state), strict=False)]
    if as_json:
        emit(found)
        return
    rows = [
        (
            j.id,
            j.state,
            j.dataset,
            j.corpus,
            f"{j.recipe}/{j.scale}",
            j.progress.node if j.progress else None,
            _age(j.created_at),
        )
        for j in found
    ]
    table(("id", "state", "dataset", "corpus", "recipe", "at", "submitted"), rows)


@guarded
def show(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job: its state, stages and, when it is done, its scores."""
    with session_of(context).client() as client:
        job = client.job(job_id)
        report = client.report(job_id) if job.state is State.SUCCEEDED else None
    if as_json:
        emit({**job.model_dump(mode="json"), "report": report})
        return
    say(f"{job.id} is {job.state} (attempt {job.attempt}, {job.failures} failed), submitted {_age(job.created_at)}")
    corpus = f"{job.corpus} (version {job.corpus_version})" if job.corpus_version else "none"
    say(f"data set {job.dataset} ({job.dataset_id}), corpus {corpus}, recipe {job.recipe}, scale {job.scale}")
    say(f"seeds {', '.join(map(str, job.seeds))}")
    table(("stage", "done"), [(stage.name, "yes" if stage.done else "") for stage in job.stages])
    if job.error:
        say(f"error: {job.error.get('message')}")
    if report:
        say_report(report)


@guarded
def watch(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show how a job goes until it is over. Ctrl-C leaves the job running. Exit code 1 if it does not succeed."""
    with session_of(context).client() as client:
        _watch(client, job_id, as_json)


@guarded
def cancel(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job; it is over when nothing of it runs any more."""
    with session_of(context).client() as client:
        _tell(client.cancel(job_id), as_json)


@guarded
def pause(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Pause a job; it leaves a checkpoint from which `tlm resume` goes on exactly."""
    with session_of(context).client() as client:
        _tell(client.pause(job_id), as_json)


@guarded
def resume(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Let a paused job go on."""
    with session_of(context).client() as client:
        _tell(client.resume(job_id), as_json)


def _watch(client: TLMClient, job_id: str, as_json: bool) -> None:
    try:
        job = _followed(client, job_id, as_json)
    except KeyboardInterrupt as error:
        notes().print(f"\n{job_id} goes on; come back with `tlm watch {job_id}`, or end it with `tlm cancel {job_id}`")
        raise typer.Exit(INTERRUPTED) from error
    if as_json:
        emit({"job": job.model_dump(mode="json")})
    elif job.state is State.SUCCEEDED:
        took = duration((job.finished_at or 0) - job.created_at)
        say(f"{job.id} succeeded after {took}; `tlm download {job.id}` fetches the model")
        say_report(client.report(job.id))
    else:
        say(f"{job.id} is {job.state}{': ' + str(job.error.get('message')) if job.error else ''}")
    if job.state is not State.SUCCEEDED:
        raise typer.Exit(FAILED)


def _followed(client: TLMClient, job_id: str, as_json: bool) -> Job:
    if as_json:

        def line(event: JobEvent) -> None:
            emit({"event": event.model_dump(mode="json")})

        return client.wait(job_id, line)
    with Display(notes()) as display:
        display.begin(job_id)
        return client.wait(job_id, display.job_event)


def _tell(job: Job, as_json: bool) -> None:
    if as_json:
        emit(job)
    else:
        say(f"{job.id} is {job.state}")


def _spec(**values: Any) -> JobSpec:
    try:
        return JobSpec.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidRequest(f"the job cannot be submitted so: {faults}") from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidRequest(f"'{text}' is not KEY=VALUE")
    return key, value


def _value(text: str) -> Any:
    """JSON if it is some, else the text itself, so that names need no quotes within quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _age(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S} ({duration(time.time() - at)} ago)"
