"""`tlm jobs`, `show`, `watch`, `logs`, `cancel`, `pause`, `resume`, `delete`: follow and control jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer

from tlm_client.client import TLMClient
from tlm_client.console import (
    FAILED,
    INTERRUPTED,
    Item,
    JobId,
    Yes,
    confirm_deletion,
    open_client,
    print_items,
    print_json,
    print_note,
    print_result,
    session,
    stderr_console,
    table,
)
from tlm_client.display import Display, duration, progress_facts, time_left
from tlm_core.errors import InvalidRequest, TLMError
from tlm_core.jobs.states import State
from tlm_core.wire import Job, JobEvent, JobSummary, JsonObject, LogLine, Series
from tlm_core.wording import data_in_words

_QUEUED = frozenset({"job.submitted", "job.requeued", "job.resumed"})
_REREAD_SECONDS = 10.0


def jobs(
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, such as train.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only jobs on this dataset (ID or name).")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label of the jobs. Repeatable.")] = None,
    search: Annotated[
        str | None, typer.Option(help="Only jobs whose name contains this text, or whose ID starts with it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 20,
) -> None:
    """List jobs, newest first.

    tlm jobs --state running
    tlm jobs --search nightly --limit 5
    """
    with open_client() as client:
        matches = client.jobs(state, kind=kind, dataset=dataset, labels=parse_labels(label), search=search)
        listed = list(islice(matches, limit))
    columns = ("id", "name", "state", "data", "recipe", "progress", "failures", "interruptions", "score", "submitted")
    rows = [_row(job) for job in listed]
    used = [index for index, name in enumerate(columns) if name == "id" or any(row[index] for row in rows)]
    empty = "No jobs. `tlm submit --help` shows how to create one."
    if any((state, kind, dataset, label, search)):
        empty = "No job matches. `tlm jobs` lists all."
    shown = table([columns[index] for index in used], [[row[index] for index in used] for row in rows], empty=empty)
    print_result(listed, shown, *(f"{job.id}: {note}" for job in listed for note in _notes(job)))


def _row(job: JobSummary) -> tuple[object, ...]:
    """Return the cells of a job in the order of the columns of `tlm jobs`."""
    live = None if job.is_over else job.progress
    left = time_left(live) if live and job.silent_seconds is None else ""
    return (
        job.id,
        job.name,
        job.state,
        data_in_words(job.dataset, job.corpus),
        f"{job.recipe}/{job.scale}",
        " ".join(filter(None, (f"{live.share:.0%} {live.node}", left))) if live else None,
        job.failures or None,
        job.interruptions or None,
        None if job.score is None else f"{job.score:.3f} {job.metric}",
        f"{job.created_at.astimezone():%Y-%m-%d %H:%M}",
    )


def _notes(job: JobSummary) -> list[str]:
    """Return the lines about a job below the table of `tlm jobs`. A running job has no line about its last error."""
    error = None if job.state is State.RUNNING else _error(job)
    return [*_standing(job), *([str(error["message"])] if error else [])]


def _error(job: JobSummary) -> JsonObject | None:
    """Return the last error of a failed or unfinished job, else None."""
    return job.error if job.state is State.FAILED or not job.is_over else None


def show(job_id: JobId) -> None:
    """Show the state, the stages and the scores of a job.

    tlm show @latest
    tlm show ID --json
    """
    with open_client() as client:
        job = client.job(job_id)
        report = client.report(job_id) if job.state is State.SUCCEEDED else None
    interruptions = f", interruptions: {job.interruptions}" if job.interruptions else ""
    attempts = f"attempt {job.attempt}, failures: {job.failures}{interruptions}"
    live = None if job.is_over else job.progress
    age = duration((datetime.now(UTC) - job.created_at).total_seconds())
    items: list[Item] = [
        f"{job.id}{f' ({job.name})' if job.name else ''}: {job.state}, {attempts}",
        *_standing(job),
        *([f"Progress: {live.share:.0%}  {live.node}  {progress_facts(live)}"] if live else []),
        f"Submitted: {job.created_at.astimezone():%Y-%m-%d %H:%M:%S} ({age} ago)",
        f"Dataset: {job.dataset} ({job.dataset_id})",
        f"Corpus: {f'{job.corpus} (version {job.corpus_version[:8]})' if job.corpus_version else 'none'}",
        f"Recipe: {job.recipe}, scale: {job.scale}, seeds: {', '.join(map(str, job.seeds))}",
        table(("stage", "done"), [(stage.name, "yes" if stage.done else "") for stage in job.stages]),
    ]
    if error := _error(job):
        items.append(f"{'Error' if job.is_over else 'Last error'}: {error.get('message')}")
        items += [f"Run `tlm show {job.id} --json` for the details."] if error.get("details") else []
    if report:
        from tlm_client.summary import report_items

        items += report_items(report)
    print_result({**job.model_dump(mode="json"), "report": report}, *items)


def watch(job_id: JobId) -> None:
    """Show the progress of a job until it ends. Ctrl-C does not stop the job. Exit code 1 if the job fails.

    tlm watch @latest
    tlm watch ID --json
    """
    with open_client() as client:
        watch_job(client, job_id)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the job ends.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=1, max=5000, help="Only the last N lines.")] = None,
) -> None:
    """Print the log of a job.

    tlm logs @latest --tail 20
    tlm logs ID --follow
    """

    def show_line(line: LogLine) -> None:
        print_result(line, f"{line.at.astimezone():%H:%M:%S} {line.line}")

    with open_client() as client:
        last_id = "0"
        for line in client.last_logs(job_id, tail) if tail is not None else client.logs(job_id):
            last_id = line.id
            show_line(line)
        if not follow:
            if last_id == "0":
                print_note(f"The log of {job_id} is empty.")
            return
        try:
            for line in client.follow_logs(job_id, after=last_id):
                show_line(line)
        except KeyboardInterrupt as error:
            stderr_console().print(f"\n{job_id} continues. Return with `tlm logs -f {job_id}`")
            raise typer.Exit(INTERRUPTED) from error


def cancel(job_id: JobId) -> None:
    """Cancel a job. The job stays `cancelling` until all its processes have stopped.

    tlm cancel ID
    tlm cancel @latest --json
    """
    with open_client() as client:
        _print_state(client.cancel(job_id))


def pause(job_id: JobId) -> None:
    """Pause a job. A running job first writes a checkpoint.

    tlm pause ID
    tlm pause @latest
    """
    with open_client() as client:
        _print_state(client.pause(job_id))


def resume(job_id: JobId) -> None:
    """Continue a paused job from its checkpoint, with the same result as without the pause.

    tlm resume ID
    tlm resume @latest
    """
    with open_client() as client:
        _print_state(client.resume(job_id))


def delete(job_id: JobId, yes: Yes = False) -> None:
    """Delete a finished job, its log, and the models and checkpoints that no other job uses.

    The command fails while an alias points to the job.

    tlm delete ID
    tlm delete ID --yes
    """
    confirm_deletion(f"{job_id} and its model", yes=yes)
    with open_client() as client:
        client.delete_job(job_id)
    print_result({"deleted": job_id}, f"Deleted {job_id}")


def watch_job(client: TLMClient, job_id: str) -> None:
    """Show the progress of a job until it ends. Raises typer.Exit after Ctrl-C, or if the job does not succeed."""
    try:
        job = _wait(client, job_id)
    except KeyboardInterrupt as error:
        stderr_console().print(
            f"\n{job_id} continues. Return with `tlm watch {job_id}`, or stop it with `tlm cancel {job_id}`"
        )
        raise typer.Exit(INTERRUPTED) from error
    if session().as_json:
        print_json({"job": job})
    elif job.state is State.SUCCEEDED:
        from tlm_client.summary import report_items

        hint = f". Download the model with `tlm download {job.id}`" if job.spec.definition.has_model else ""
        print_items(f"{job.id} succeeded after {duration(job.seconds)}{hint}", *report_items(client.report(job.id)))
    else:
        problem = _error(job)
        print_items(f"{job.id} is {job.state}{': ' + str(problem.get('message')) if problem else ''}")
    if job.state is not State.SUCCEEDED:
        raise typer.Exit(FAILED)


def _wait(client: TLMClient, job_id: str) -> Job:
    if session().as_json:
        return client.wait(job_id, lambda event: print_json({"event": event}))
    with Display(stderr_console()) as display:
        display.begin(job_id)

        def show_event(event: JobEvent) -> None:
            display.job_event(event)
            if event.type in _QUEUED:
                with suppress(TLMError):  # `_standing_shown` repeats the request.
                    display.standing(client.job(job_id))
            if event.type == "progress" and display.wants_curve():
                display.curve(_loss_curve(client, job_id, str(event.data.get("node", ""))))

        with _standing_shown(job_id, display):
            return client.wait(job_id, show_event)


@contextmanager
def _standing_shown(job_id: str, display: Display) -> Iterator[None]:
    """Read the job every 10 s during the block, and show why it waits or how long its workers have been silent."""
    over = threading.Event()

    def reread(client: TLMClient) -> None:
        with client:
            while not over.wait(_REREAD_SECONDS):
                with suppress(TLMError):  # The event stream reports an outage.
                    job = client.job(job_id)
                    if not over.is_set():
                        display.standing(job)

    # The thread has its own client, because a slow request may end after the block.
    threading.Thread(target=reread, args=(open_client(),), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _loss_curve(client: TLMClient, job_id: str, node: str) -> Series | None:
    """Return the loss of a node in at most 24 points. Return None without a loss or after an error of the request."""
    try:
        return next(iter(client.series(job_id, points=24, node=node, names=("mlm", "loss", "task"))), None)
    except TLMError:
        return None


def parse_labels(texts: list[str] | None) -> dict[str, str]:
    """Parse KEY=VALUE labels. Raises InvalidRequest for a key with two values."""
    labels: dict[str, str] = {}
    for key, value in (split_pair(text, "--label") for text in texts or []):
        if labels.setdefault(key, value) != value:
            raise InvalidRequest(f"The label '{key}' has two values, '{labels[key]}' and '{value}'. Give one value.")
    return labels


def split_pair(text: str, option: str) -> tuple[str, str]:
    """Return (key, value) of KEY=VALUE. option: the option with `text`, such as `--set`. Raises InvalidRequest."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidRequest(f"Invalid {option} '{text}'. Expected KEY=VALUE.")
    return key, value


def _print_state(job: Job) -> None:
    print_result(job, f"{job.id} is {job.state}")


def _standing(job: JobSummary) -> list[str]:
    """Return why the job does not run now, or how long its workers have been silent."""
    if job.waiting:
        return [f"Waiting: {job.waiting.reason}"]
    return [f"The workers last reported {duration(job.silent_seconds)} ago"] if job.silent_seconds is not None else []
