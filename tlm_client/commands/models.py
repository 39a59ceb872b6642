"""`tlm download`, `tlm predict`, `tlm evaluate`, `tlm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tlm_client.commands.jobs import JobId
from tlm_client.console import AsJson, emit, guarded, notes, say, session_of, table
from tlm_client.display import Display
from tlm_client.results import number
from tlm_core.errors import Conflict
from tlm_core.tasks.metrics import scores_shown


@guarded
def download(
    context: typer.Context,
    job_id: JobId,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: a folder named as the job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a job's model and reports, checked by SHA-256. What was cut goes on where it stopped."""
    target = folder or Path(job_id)
    with session_of(context).client() as client, Display(notes()) as display:
        display.begin("downloading")
        files = client.download(job_id, target, display.bytes)
    if as_json:
        emit({"folder": target, "files": files})
    else:
        say(f"{len(files)} files in {target}; AutoModelForSequenceClassification.from_pretrained('{target / 'model'}')")


@guarded
def predict(
    context: typer.Context,
    job_id: JobId,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT…")],
    pair: Annotated[list[str] | None, typer.Option(help="Second text of each, where the task has pairs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Classify texts with a job's model, in the gateway."""
    with session_of(context).client() as client:
        answers = client.predict(job_id, texts, pair or None)
    if as_json:
        emit(answers)
        return
    amounts = answers[0].value is not None
    found = [(a.label, number(a.value if amounts else a.probability)) for a in answers]
    rows = [(*one, text[:120]) for one, text in zip(found, texts, strict=True)]
    table(("label", "value" if amounts else "probability", "text"), rows)


@guarded
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL_DIR|hub:ID", help="A stock sequence-classification model.")],
    dataset: Annotated[str, typer.Option(help="A folder or file, hub:ID, or the name of an uploaded data set.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    batch: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Score a stock model on a data set's test split, on this machine, with the measures that jobs report."""
    from tlm_client.evaluation import evaluate_model, task_of

    task = task_of(dataset, session_of(context))
    with Display(notes()) as display:
        display.begin("evaluating")
        scores = evaluate_model(
            model,
            task,
            split=split,
            batch=batch,
            on_progress=lambda done, total: display.update(split, done, total, ""),
        )
    if as_json:
        emit(scores)
        return
    say(f"{scores['rows']:,} rows of {split}; {scores['metric']} decides")
    clean = scores["deduplicated"]
    rows = [(name, number(scores[name]), number(clean[name])) for name in scores_shown(scores["metric"])]
    table(("score", "all rows", f"without {clean['rows_left_out']} rows that stand in train"), rows)


@guarded
def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL_DIR|hub:ID", help="A model of the original TLM release.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; must not be there yet.")],
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Names of the labels in order; default: their numbers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model of the original TLM release as a folder that stock classes load."""
    from tlm_core.training.release import convert as convert_release

    if folder.exists():
        raise Conflict(f"'{folder}' is there already; give a new folder")
    convert_release(model, folder, label or None)
    if as_json:
        emit({"folder": folder})
    else:
        say(f"AutoModelForSequenceClassification.from_pretrained('{folder}') loads it")
