"""`tlm submit`, `estimate`, `jobs`, `show`, `watch`, `cancel`, `pause`, `resume`."""

from __future__ import annotations

import json
import time
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tlm_client.client import TLMClient
from tlm_client.console import FAILED, INTERRUPTED, AsJson, emit, guarded, notes, say, session_of, table
from tlm_client.display import Display, duration
from tlm_client.models import Job, JobEvent
from tlm_client.results import say_estimate, say_report
from tlm_core.compression.masks import Mask
from tlm_core.errors import InvalidRequest, TLMError
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import State

JobId = Annotated[str, typer.Argument(metavar="ID")]


DatasetName = Annotated[str, typer.Option("--dataset", help="Name or id of a data set.")]
CorpusName = Annotated[
    str | None, typer.Option("--corpus", help="NAME or NAME@VERSION; left out: trained on the task alone.")
]
Scale = Annotated[str | None, typer.Option("--scale", help="tiny (as is), small, medium or large.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="fast (as is) or paper.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="One run each; may be given several times.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Recipe override; the value is JSON.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Data-parallel workers.")]
Options = Annotated[
    str | None, typer.Option("--options", metavar="JSON|FILE", help="What the kind asks for beyond the recipe.")
]


@guarded
def submit(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Name or id; left out where the option `job` of prune brings it.")
    ] = None,
    corpus: CorpusName = None,
    scale: Scale = None,
    recipe: RecipeName = None,
    seed: Seeds = None,
    set_: Overrides = None,
    workers: Workers = 1,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Your own label on the job.")
    ] = None,
    priority: Annotated[int, typer.Option(min=-10, max=10, help="Of jobs that wait, higher ones are taken first.")] = 0,
    max_runtime: Annotated[float | None, typer.Option(help="Seconds of running after which it is ended.")] = None,
    kind: Annotated[str, typer.Option(help="train, learning_curve, prune or share_tickets.")] = "train",
    options: Options = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; submit nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show how it goes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    more: dict[str, Any] = {
        "metadata": labels_of(label),
        "priority": priority,
        "max_runtime_seconds": max_runtime,
        "kind": kind,
    }
    if options is not None:
        more[kind] = options_of(options, kind)
    if dataset is None and "job" not in more.get(kind, {}):
        raise typer.BadParameter("name a data set", param_hint="--dataset")
    spec = _spec(dataset, corpus, scale, recipe, seed, set_, workers=workers, **more)
    with session_of(context).client() as client:
        if dry_run:
            told = client.dry_run(spec)
            emit(told) if as_json else say_estimate(told.estimate)
            return
        job = client.submit(spec)
        if not watch:
            if as_json:
                emit(job)
            else:
                say(f"{job.id} is {job.state}; `tlm watch {job.id}` shows how it goes")
            return
        notes().print(f"submitted {job.id}")
        watch_job(client, job.id, as_json)


@guarded
def estimate(
    context: typer.Context,
    dataset: DatasetName,
    corpus: CorpusName = None,
    scale: Scale = None,
    recipe: RecipeName = None,
    seed: Seeds = None,
    set_: Overrides = None,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Tell what a job would take, and where each figure is from."""
    with session_of(context).client() as client:
        told = client.estimate(_spec(dataset, corpus, scale, recipe, seed, set_, workers=workers))
    emit(told) if as_json else say_estimate(told)


@guarded
def jobs(
    context: typer.Context,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only those of this kind, such as train.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only those on this data set, by id or name.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Only those with these labels.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with session_of(context).client() as client:
        every = client.jobs(state, kind=kind, dataset=dataset, labels=labels_of(label))
        found = list(islice(every, limit))
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
        watch_job(client, job_id, as_json)


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


def watch_job(client: TLMClient, job_id: str, as_json: bool) -> None:
    """Show how a job goes until it is over. Raises typer.Exit if it does not succeed, or on Ctrl-C."""
    try:
        job = _followed(client, job_id, as_json)
    except KeyboardInterrupt as error:
        notes().print(f"\n{job_id} goes on; come back with `tlm watch {job_id}`, or end it with `tlm cancel {job_id}`")
        raise typer.Exit(INTERRUPTED) from error
    if as_json:
        emit({"job": job.model_dump(mode="json")})
    elif job.state is State.SUCCEEDED:
        took = duration((job.finished_at or 0) - job.created_at)
        fetch = "" if job.spec.kind == "share_tickets" else f"; `tlm download {job.id}` fetches the model"
        say(f"{job.id} succeeded after {took}{fetch}")
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

        def show(event: JobEvent) -> None:
            display.job_event(event)
            if event.type == "progress" and display.wants_curve():
                display.curve(_curve(client, job_id, str(event.data.get("node", ""))))

        return client.wait(job_id, show)


def _curve(client: TLMClient, job_id: str, node: str) -> tuple[str, tuple[float, ...]] | None:
    """The loss of the stage under way, for the spark line; a picture is not worth an error."""
    try:
        found = client.series(job_id, points=24, node=node, names=("mlm", "loss", "task"))
    except TLMError:
        return None
    return (found[0].name, found[0].values) if found else None


def _tell(job: Job, as_json: bool) -> None:
    if as_json:
        emit(job)
    else:
        say(f"{job.id} is {job.state}")


def _spec(
    dataset: str | None,
    corpus: str | None,
    scale: str | None,
    recipe: str | None,
    seeds: list[int] | None,
    overrides: list[str] | None,
    **more: Any,
) -> JobSpec:
    """What was given, and nothing else: of the rest the gateway has the defaults, or a job that is pruned brings it."""
    chosen = overrides_of(overrides)
    if corpus is None and dataset is not None:
        chosen.setdefault("selection.selector", "none")
    asked = {"dataset": dataset, "corpus": corpus, "scale": scale, "recipe": recipe, "seeds": seeds, "set": chosen}
    try:
        given = {name: value for name, value in (asked | more).items() if value is not None and value != {}}
        return JobSpec.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidRequest(f"the job cannot be submitted so: {faults}") from error


def options_of(given: str, kind: str) -> dict[str, Any]:
    """The options of a kind of job: a JSON object, or a file that holds one. Raises InvalidRequest.

    A ticket of `share_tickets` may be the path of a file with its mask, which is read here.
    """
    try:
        text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"--options takes a JSON object or a file with one: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequest("--options takes a JSON object, such as '{\"levels\": [0.2, 0.4]}'")
    if kind == "share_tickets" and isinstance(tickets := found.get("tickets"), dict):
        found["tickets"] = {name: _ticket(name, ticket) for name, ticket in tickets.items()}
    return found


def _ticket(name: str, given: Any) -> Any:
    """A ticket as the gateway takes it. Raises InvalidRequest for a text that is neither a job's id nor a mask file."""
    if not isinstance(given, str) or given.startswith("job_"):
        return given
    try:
        mask = json.loads(Path(given).read_text(encoding="utf-8"))
        return Mask.from_dict(mask if isinstance(mask, dict) else {}).as_dict()
    except (OSError, ValueError, RecursionError, InvalidRequest) as error:
        raise InvalidRequest(
            f"the ticket of '{name}' is '{given}', no level, no job's id (job_…) and no file with a mask: {error}"
        ) from error


def overrides_of(given: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE recipe overrides; a value is JSON, or else the text itself."""
    return {key: _value(text) for key, text in map(_pair, given or [])}


def labels_of(given: list[str] | None) -> dict[str, str]:
    """KEY=VALUE labels. Raises InvalidRequest for a key with two values, as a job has one of each."""
    found: dict[str, str] = {}
    for key, value in map(_pair, given or []):
        if found.setdefault(key, value) != value:
            raise InvalidRequest(f"the label '{key}' is given as '{found[key]}' and as '{value}'; give it once")
    return found


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidRequest(f"'{text}' is not KEY=VALUE")
    return key, value


def _value(text: str) -> Any:
    """JSON if it is some, else the text itself, so that names need no quotes within quotes."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InvalidRequest(f"the value {text[:20]}… is nested too deep; send it flatter") from error
    except ValueError:
        return text


def _age(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S} ({duration(time.time() - at)} ago)"
