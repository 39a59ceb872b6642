"""`tlm submit`, `estimate`, `retry`, `clone`: create jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import ValidationError

from tlm_client.client import TLMClient
from tlm_client.commands.jobs import parse_labels, split_pair, watch_job
from tlm_client.console import JobId, Watch, open_client, print_result, resolve_job
from tlm_client.summary import estimate_items
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import JobSpec
from tlm_core.kinds import KINDS
from tlm_core.training.recipe import Scale as ScaleName
from tlm_core.wire import Job
from tlm_core.wording import message_of

_KINDS = f"{', '.join(KINDS)}."

DatasetName = Annotated[
    str | None, typer.Option("--dataset", help="Name or ID. Omit it if --options names a job to start from.")
]
CorpusName = Annotated[
    str | None, typer.Option("--corpus", help="NAME or NAME@VERSION. Default: no corpus, train only on the dataset.")
]
_SCALES = f"{', '.join(get_args(ScaleName))}; instant trains only the linear model."
Scale = Annotated[str | None, typer.Option("--scale", help=f"{_SCALES} Default: tiny.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="fast or paper. Default: fast.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Seed. Default: 0. Repeatable, to measure the spread.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; VALUE is JSON or text. Repeatable."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Number of data-parallel workers.")]
Options = Annotated[str | None, typer.Option("--options", metavar="JSON|FILE", help="Options of the job kind.")]
Name = Annotated[str | None, typer.Option("--name", help="Your name for the job, for lists and searches.")]
Kind = Annotated[str, typer.Option(help=f"Job kind: {_KINDS}")]
MaxAttempts = Annotated[int | None, typer.Option(help="Number of failed attempts after which the job fails.")]
MaxRuntime = Annotated[float | None, typer.Option(help="Maximum running time in seconds.")]


def submit(
    dataset: DatasetName = None,
    corpus: CorpusName = None,
    scale: Scale = None,
    recipe: RecipeName = None,
    seed: Seeds = None,
    set_: Overrides = None,
    workers: Workers = 1,
    max_workers: Annotated[int | None, typer.Option(help="Start as many workers as fit, up to this number.")] = None,
    name: Name = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label of the job. Repeatable.")] = None,
    priority: Annotated[int, typer.Option(min=-10, max=10, help="Higher priorities start first.")] = 0,
    max_attempts: MaxAttempts = None,
    max_runtime: MaxRuntime = None,
    kind: Kind = "train",
    options: Options = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and estimate without submitting.")] = False,
    watch: Watch = False,
) -> None:
    """Submit a job.

    tlm submit --dataset reviews --corpus docs --watch
    tlm submit --dataset reviews --scale instant --name first-try
    """
    spec = _build_spec(
        dataset=dataset, corpus=corpus, scale=scale, recipe=recipe, seeds=seed, overrides=_parse_overrides(set_),
        workers=workers, max_workers=max_workers, max_attempts=max_attempts, max_runtime_seconds=max_runtime, name=name,
        metadata=parse_labels(label), priority=priority, kind=kind, options=_kind_options(kind, options, dataset),
    )  # fmt: skip
    with open_client() as client:
        if dry_run:
            result = client.dry_run(spec)
            print_result(result, *estimate_items(result.estimate))
            return
        _report_new_job(client, client.submit(spec), "", watch=watch)


def estimate(
    dataset: DatasetName = None,
    corpus: CorpusName = None,
    scale: Scale = None,
    recipe: RecipeName = None,
    seed: Seeds = None,
    set_: Overrides = None,
    workers: Workers = 1,
    kind: Kind = "train",
    options: Options = None,
) -> None:
    """Estimate the time, compute and memory of a job, with the source of each figure.

    tlm estimate --dataset reviews --corpus docs --scale small
    tlm estimate --kind prune --options '{"job": "@latest"}'
    """
    spec = _build_spec(
        dataset=dataset, corpus=corpus, scale=scale, recipe=recipe, seeds=seed, overrides=_parse_overrides(set_),
        workers=workers, kind=kind, options=_kind_options(kind, options, dataset),
    )  # fmt: skip
    with open_client() as client:
        result = client.estimate(spec)
    print_result(result, *estimate_items(result))


def retry(job_id: JobId, watch: Watch = False) -> None:
    """Run a failed or cancelled job again. The new job reuses finished stages.

    tlm retry @latest
    tlm retry ID --watch
    """
    with open_client() as client:
        _report_new_job(client, client.retry(job_id), f", a retry of {job_id}", watch=watch)


def clone(
    job_id: JobId,
    dataset: Annotated[str | None, typer.Option(help="Dataset. NAME means its newest version.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Corpus. NAME means its newest version.")] = None,
    scale: Annotated[str | None, typer.Option(help=_SCALES)] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Replace the seeds. Repeatable.")] = None,
    set_: Overrides = None,
    name: Name = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Replace the labels. Repeatable.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="-10 to 10. Higher priorities start first.")] = None,
    max_attempts: MaxAttempts = None,
    max_runtime: MaxRuntime = None,
    kind: Annotated[str | None, typer.Option(help=f"{_KINDS} Another kind drops the old options.")] = None,
    options: Options = None,
    watch: Watch = False,
) -> None:
    """Submit a copy of a job, with changes. By default, the copy uses the same versions of the data.

    tlm clone ID --seed 1 --seed 2
    tlm clone @latest --set finetune.epochs=20 --watch
    """
    changes: dict[str, object] = {
        "name": name, "dataset": dataset, "corpus": corpus, "scale": scale, "seeds": seed or None,
        "overrides": _parse_overrides(set_) or None, "metadata": parse_labels(label) or None, "priority": priority,
        "max_attempts": max_attempts, "max_runtime_seconds": max_runtime, "kind": kind,
    }  # fmt: skip
    with open_client() as client:
        if options is not None:
            changes["options"] = _parse_options(options, kind or client.job(job_id).spec.kind)
        job = client.clone(job_id, {name: value for name, value in changes.items() if value is not None})
        _report_new_job(client, job, f", a clone of {job_id}", watch=watch)


def _report_new_job(client: TLMClient, job: Job, origin: str, *, watch: bool) -> None:
    if watch:
        watch_job(client, job.id)
        return
    print_result(job, f"{job.id} is {job.state}{origin}. Follow it with `tlm watch {job.id}`")


def _build_spec(**fields: object) -> JobSpec:
    """Return a JobSpec of the fields that are neither None nor {}. The gateway or a source job sets the other fields.

    Raises InvalidRequest for an invalid field.
    """
    try:
        return JobSpec.model_validate({name: value for name, value in fields.items() if value not in (None, {})})
    except ValidationError as error:
        messages = (message_of(e).removesuffix(".") for e in error.errors())
        places = (".".join(map(str, e["loc"])) for e in error.errors())
        problems = "; ".join(": ".join(filter(None, parts)) for parts in zip(places, messages, strict=True))
        raise InvalidRequest(f"Invalid job: {problems}.") from error


def _kind_options(kind: str, text: str | None, dataset: str | None) -> dict[str, object]:
    """Return the options of a job from `--options`. Raises BadParameter without a dataset and without a source job."""
    options = {} if text is None else _parse_options(text, kind)
    if dataset is None and not (kind in KINDS and KINDS[kind].names_source(options)):
        starts_from_job = kind in KINDS and "job" in KINDS[kind].options.model_fields
        other = """, or a job that succeeded: --options '{"job": "ID"}'""" if starts_from_job else ""
        raise typer.BadParameter(f"Name a dataset{other}.", param_hint="--dataset")
    return options


def _parse_options(text: str, kind: str) -> dict[str, object]:
    """Return options from a JSON object, or from the path of a file with a JSON object. Raises InvalidRequest.

    The result has the id of a source job, not its alias, and the content of a mask file, not its path.
    """
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        options = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"Invalid --options: {error}. Expected a JSON object or a JSON file.") from error
    if not isinstance(options, dict):
        raise InvalidRequest("Invalid --options. Expected a JSON object such as '{\"levels\": [0.2, 0.4]}'.")
    if isinstance(source := options.get("job"), str):
        options["job"] = resolve_job(source)
    return KINDS[kind].read_files(options) if kind in KINDS else options


def _parse_overrides(texts: list[str] | None) -> dict[str, object]:
    """Parse KEY=VALUE recipe overrides. A value that is not JSON stays text: `bm25` needs no extra quotes."""
    overrides = {}
    for key, text in (split_pair(pair, "--set") for pair in texts or []):
        try:
            overrides[key] = json.loads(text)
        except RecursionError as error:
            message = f"Invalid --set '{key}={text[:20]}…'. The value has too many nested levels. Give a flatter value."
            raise InvalidRequest(message) from error
        except ValueError:
            overrides[key] = text
    return overrides
