"""`tlm predict`, `models`, `alias`, `download`, `quantize`, `evaluate`, `convert`, `push`, `mlflow`: use models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tlm_client.console import JobId, TextColumn, open_client, print_result, session, shorten, stderr_console, table
from tlm_client.display import Display
from tlm_client.summary import format_score
from tlm_client.transfer import local_errors
from tlm_core.errors import Conflict, InvalidRequest
from tlm_core.evaluation.summary import model_title
from tlm_core.names import HUB
from tlm_core.tasks.metrics import scores_shown
from tlm_core.wording import counted, data_in_words, value_in_words


def download(
    job_id: JobId, folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: the job ID.")] = None
) -> None:
    """Download the model and the reports of a job, verified by SHA-256. Continues an interrupted download.

    Until the job returns a model, the command downloads the linear model.

    tlm download @latest
    tlm download ID model
    """
    target = folder or Path(job_id)
    with open_client() as client, Display(stderr_console()) as display:
        display.begin("downloading")
        model = client.model(job_id)
        files = client.download(job_id, target, display.bytes)
    served = target if model.final else target / "linear"
    lines = [f"{len(files)} files in {target}."]
    lines += [model.note] if model.note else []
    lines.append(f"Load the model with tlm_core.serving.load_model(Path('{served}')), or tlm_client.models.load_onnx")
    if (target / "model" / "config.json") in files:
        lines.append(f"Load its encoder with {_loading_code(target / 'model')}")
    print_result({"folder": target, "files": files, "final": model.final}, *lines)


def predict(
    job_id: JobId,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT…]", help="Texts to classify.")] = None,
    pair: Annotated[list[str] | None, typer.Option(help="Second text of a text pair. Repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Texts in CSV, JSON Lines or Parquet.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the rows and predictions, as CSV or JSON Lines.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out if it exists.")] = False,
    text_column: TextColumn = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of the file with the second texts.")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="A text whose highest probability is lower gets no label.")
    ] = None,
) -> None:
    """Predict labels or values with the model of a job. Until the final model exists, the linear model answers.

    tlm predict @latest "a text to classify"
    tlm predict reviews@production --file in.csv --out out.csv
    """
    if bool(texts) == (file is not None):
        raise typer.BadParameter("Give either texts, or a file with --file.")
    if file is None:
        of_file = {"--out": out, "--force": force, "--text-column": text_column, "--pair-column": pair_column}
        if unused := [option for option, value in of_file.items() if value]:
            raise typer.BadParameter(f"{unused[0]} needs --file.")
        _predict_texts(job_id, texts or [], pair, min_confidence)
        return
    if pair:
        raise typer.BadParameter("--pair does not work with --file. For the second texts, use --pair-column.")
    if out is None:
        raise typer.BadParameter("--file needs --out, the file to write.")
    if out.exists() and not force:
        raise Conflict(f"'{out}' exists. Name a new file, or replace this one with --force.")
    from tlm_client.prediction_files import predict_file

    with open_client() as client, Display(stderr_console()) as display:
        display.begin(f"classifying {file}")
        count = predict_file(
            client, job_id, file, out, text_column=text_column, pair_column=pair_column, min_confidence=min_confidence,
            on_row=lambda row: display.update("", 0, 0, counted(row, "row")), notify=display.line,
        )  # fmt: skip
        display.update("", count, count, counted(count, "row"))
    print_result({"file": out, "rows": count}, f"{counted(count, 'row')} in {out}")


def _predict_texts(job_id: str, texts: list[str], pairs: list[str] | None, min_confidence: float | None) -> None:
    with open_client() as client:
        answer = client.predict(job_id, texts, pairs or None, min_confidence=min_confidence)
    rows = [
        (
            "(none)" if p.abstained else p.label,
            format_score(p.probability) if p.value is None else value_in_words(p.value),
            shorten(text, width=120),
        )
        for p, text in zip(answer.data, texts, strict=True)
    ]
    columns = ("label", "probability" if answer.data[0].value is None else "value", "text")
    note = f"Model: {model_title(answer.model.name)}.{f' {answer.model.note}' if answer.model.note else ''}"
    print_result(answer, table(columns, rows), note)


def models() -> None:
    """List the models of finished jobs with their aliases, newest first.

    tlm models
    tlm models --json
    """
    with open_client() as client:
        listed = list(client.models())
    rows = [
        (model.job, ", ".join(model.aliases), model.name, data_in_words(model.dataset, model.corpus), model.scale,
         None if model.score is None else f"{model.score:.3f} {model.metric}")
        for model in listed
    ]  # fmt: skip
    empty = "No models. `tlm submit --dataset NAME --scale instant` trains one in seconds to minutes."
    print_result(listed, table(("id", "aliases", "name", "data", "scale", "score"), rows, empty=empty))


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME@NAME", help="The alias, such as reviews@production.")],
    job_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The job to whose model the alias points.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the alias, but not the model.")] = False,
) -> None:
    """Give a model a stable name for predictions. Commands accept the name in place of a job ID.

    tlm alias reviews@production ID
    tlm alias reviews@production --delete
    """
    if delete == (job_id is not None):
        raise typer.BadParameter("Give either the ID of a job or --delete, not both.")
    with open_client() as client:
        if job_id is None:
            client.delete_alias(name)
            print_result({"deleted": name}, f"Deleted {name}")
            return
        model = client.set_alias(name, client.job_id(job_id))
    print_result(model, f"{name} is the model of {model.job}")


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR|hub:ID", help="The folder of `tlm download`, or a stock model.")],
    dataset: Annotated[str, typer.Option(help="A folder or file, hub:ID, or the name of an uploaded dataset.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 64,
) -> None:
    """Score a model on a dataset, on this machine, with the same metrics as a job.

    tlm evaluate ID/model --dataset reviews
    tlm evaluate hub:OWNER/NAME --dataset test.csv --split test
    """
    from tlm_client.evaluation import evaluate_model, task_of
    from tlm_core.tasks.task import LABELED

    _check_folder(model)
    task = task_of(dataset, session())
    with Display(stderr_console()) as display:
        if split in LABELED:
            display.line(
                f"warning: If the model learned from {split} texts, its score on them is too high. Models of recipe "
                "fast learn from train and validation."
            )
        display.begin("evaluating")
        show_progress = partial(display.update, split)
        scores = evaluate_model(model, task, split=split, batch=batch, on_progress=show_progress)
    clean = scores["deduplicated"]
    columns, shown = ["score", "all rows"], [scores]
    if left_out := clean["rows_left_out"]:
        columns.append(f"without {counted(left_out, 'row')} that earlier splits contain")
        shown.append(clean)
    names = scores_shown(scores["metric"])
    rows = [(name, *(format_score(of_rows[name]) for of_rows in shown)) for name in names]
    title = f"{scores['rows']:,} {split} rows. Main metric: {scores['metric']}"
    print_result(scores, title, table(columns, rows))


def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL_DIR|hub:ID", help="A model of the original TLM release.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")],
    label: Annotated[list[str] | None, typer.Option(help="Label name, in order. Repeatable. Default: numbers.")] = None,
) -> None:
    """Convert a model of the original TLM release to a folder that stock classes load.

    tlm convert hub:OWNER/NAME converted
    tlm convert release converted --label negative --label positive
    """
    from tlm_core.training.release import convert as convert_release

    _check_folder(model)
    if folder.exists():
        raise Conflict(f"'{folder}' exists. Name a new folder.")
    convert_release(model, folder, label or None)
    print_result({"folder": folder}, f"Load the model with {_loading_code(folder)}")


def quantize(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model that `tlm download` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="NEW_DIR", help="The folder to create.")],
) -> None:
    """Copy a downloaded model, with 8-bit weights in its encoder.

    tlm quantize model small
    tlm quantize model small --json
    """
    from tlm_core.quantization import quantize as quantize_model

    _check_folder(str(folder))
    with local_errors(f"writing {out}"):
        before, after = quantize_model(folder, out)
    line = f"{out / 'model.onnx'} has {after / 1e6:.1f} MB instead of {before / 1e6:.1f} MB."
    print_result({"folder": out, "bytes": after}, line)


def _check_folder(source: str) -> None:
    """Raise InvalidRequest if the source is a local folder that does not exist."""
    if not source.startswith(HUB) and not Path(source).is_dir():
        raise InvalidRequest(f"The folder '{source}' does not exist. Check the path.")


def push(
    job_id: JobId,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub; created if missing.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")] = False,
) -> None:
    """Upload the model of a job to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN.

    tlm push @latest OWNER/reviews
    tlm push reviews@production OWNER/reviews --public
    """
    from tlm_client.publishing import push_to_hub

    with open_client() as client:
        address = push_to_hub(client, job_id, repository, private=not public)
    print_result({"url": address}, address)


def mlflow(
    job_id: JobId,
    experiment: Annotated[str, typer.Option(help="Name of the MLflow experiment.")] = "tlm",
    model: Annotated[bool, typer.Option("--model", help="Also log the files of the model.")] = False,
) -> None:
    """Log recipe, scores, costs and curves of a job to the MLflow server of MLFLOW_TRACKING_URI.

    tlm mlflow @latest
    tlm mlflow ID --experiment reviews --model
    """
    from tlm_client.publishing import log_to_mlflow

    with open_client() as client:
        run = log_to_mlflow(client, job_id, experiment=experiment, model=model)
    print_result({"run": run}, f"Logged run {run} of the experiment {experiment}")


def _loading_code(folder: Path) -> str:
    return f"AutoModelForSequenceClassification.from_pretrained('{folder}')"
