"""Demo of the whole service on this machine: `python -m tlm_client.demo [--task PATH] [--corpus PATH]`.

The demo starts the stack and submits two jobs over HTTP, at scale `quick`. The first job trains an encoder on the task
alone. The linear model of this job classifies five test texts within a minute. Meanwhile, the demo writes and loads the
corpus. The second job trains with TLM, and its returned model classifies the texts again.

The demo compares the returned model with the majority class, the linear model, the encoder trained on the task alone,
and the TLM encoder. Then the demo downloads the model and writes build/demo/result.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from tlm_client.client import TLMClient
from tlm_client.console import print_items, shorten, table
from tlm_client.demo_data import DEMO, Documentation, Splits, write_corpus_of, write_task
from tlm_client.display import Display, duration
from tlm_client.sources import corpus_files, dataset_files
from tlm_client.stack.control import StackHandle, launch_stack
from tlm_client.stack.folder import StackFolder
from tlm_client.stack.parts import StackOptions
from tlm_client.summary import format_score
from tlm_core.errors import AlreadyRunning, InvalidRequest, TLMError, error_from_dict
from tlm_core.evaluation.bootstrap import Difference
from tlm_core.evaluation.combine import LINEAR
from tlm_core.evaluation.summary import (
    LINEAR_NODES,
    MAJORITY,
    ModelRow,
    model_in_words,
    model_rows,
    model_title,
    nodes_behind,
    returned_model,
    sentences,
)
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import State
from tlm_core.tasks.metrics import METRICS
from tlm_core.tasks.validate import load_task
from tlm_core.wire import Job, JsonObject
from tlm_core.wording import interval_in_words

FOLDER = Path("build/demo")
DATA = FOLDER / "data"
NAME = "demo"
SEEDS = (0, 1, 2)
SCORES = ("macro_f1", "accuracy")
SAMPLES = 5
PLAIN_SECONDS = 60.0  # without a terminal, minimum time between two lines about a running stage
PLAN = """\
The demo trains classifiers on this machine, and compares their scores on test texts:
1. Start the service on 127.0.0.1, with all data in {folder}.
2. Prepare {data}.
3. Train on the task alone: a linear model, which then classifies {samples} test texts, and an encoder with one seed.
4. Train with TLM: encoders with {seeds} seeds, on the task and on passages of the corpus.
5. Print the scores of all models, and which model the service returns.
With generated data, this takes 4 to 8 minutes on two idle cores and 0.3 GB of disk. `make demo` runs the set-up first:
the set-up needs 6.5 GB of disk, and its time is not included.
"""
ENCODER_STAGES = ("prepare", "joint", "finetune", "refit")
ARMS = {
    "task only": JobSpec(
        dataset=NAME,
        corpus=None,
        scale="quick",
        seeds=SEEDS[:1],  # to save time, this job has only one seed
        overrides={"joint.enabled": False, "selection.selector": "none"},
    ),
    "TLM": JobSpec(dataset=NAME, corpus=NAME, scale="quick", seeds=SEEDS),
}


class Sample(NamedTuple):
    """A test text of the demo. pair: the second text, if the task has text pairs."""

    text: str
    pair: str | None
    label: str


class Arm(NamedTuple):
    """A finished job of the comparison."""

    job: Job
    report: JsonObject


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Return the exit code."""
    parser = argparse.ArgumentParser(prog="tlm_client.demo", description=__doc__)
    parser.add_argument("--task", type=Path, help="your dataset: a file, or a folder with train, dev and test files")
    parser.add_argument("--corpus", type=Path, help="your corpus: a file or a folder")
    options = parser.parse_args(arguments)
    logs = StackFolder(FOLDER / "stack").logs
    try:
        run(options.task, options.corpus)
    except TLMError as error:
        sys.stderr.write(f"The demo failed: {error.message}\nSee the logs in {logs}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"Interrupted. The stack has stopped. Its logs are in {logs}\n")
        return 130
    return 0


def run(own_task: Path | None, own_corpus: Path | None) -> None:
    """Run all steps of the demo and stop the stack. own_task, own_corpus: paths of the data; None: generate data."""
    start = time.monotonic()
    for path in (own_task, own_corpus):
        if path is not None and not path.exists():
            raise InvalidRequest(f"No file or folder '{path}'. Check the path.")
    sys.stdout.write(_plan(own_task, own_corpus))
    sys.stdout.flush()
    with Display(Console(highlight=False, soft_wrap=True), plain_seconds=PLAIN_SECONDS) as display:
        with _stack(display) as stack:
            documentation = None if own_task and own_corpus else Documentation(display.update)
            rows = _generate_task(documentation, display) if documentation else {}
            task = dataset_files(own_task or DATA / "task", notify=display.line)
            stack.wait(display.line)
            with TLMClient(stack.url, stack.token) as client:
                dataset = client.add_dataset(NAME, task)
                for warning in (dataset.report or {}).get("warnings", [])[:5]:
                    display.line(f"warning: {warning['message']}")
                samples = _samples(task)
                jobs = {"task only": client.submit(ARMS["task only"])}
                with ThreadPoolExecutor(1) as pool:  # the job trains while this process writes the corpus
                    early = pool.submit(_answer_early, client, jobs["task only"], samples, display, start)
                    if documentation:
                        _generate_corpus(documentation, rows, display)
                    _load(client, own_corpus or DATA / "corpus", display)
                    early.result()
                jobs["TLM"] = client.submit(ARMS["TLM"])
                later = {"task only": client.estimate(ARMS["TLM"]).seconds or 0.0, "TLM": 0.0}
                arms = {name: _wait(client, job, name, display, later[name]) for name, job in jobs.items()}
                predictions = _classify(client, arms["TLM"].job, samples)
                model = _download(client, arms["TLM"].job, display)
        display.line("the stack has stopped")
    _print_predictions(predictions)
    _print_comparison(arms)
    seconds = time.monotonic() - start
    result = _result(arms, own_task, own_corpus) | {"seconds": seconds, "classified": predictions, "model": str(model)}
    (FOLDER / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(_ending(arms["TLM"].report, model, seconds))


def _plan(own_task: Path | None, own_corpus: Path | None) -> str:
    """Return the steps of the demo, with their time and disk space."""
    data = f"{own_task or 'a task'} and {own_corpus or 'a corpus'}"
    generated = "" if own_task and own_corpus else ", generated from the documentation of the installed packages"
    return PLAN.format(folder=FOLDER, data=data + generated, samples=SAMPLES, seeds=len(SEEDS))


def _ending(report: JsonObject, model: Path, seconds: float) -> str:
    """Return the last lines of the demo: the files that it wrote, how to continue, and the conclusion."""
    data_dir = shlex.quote(str((FOLDER / "stack").resolve()))  # each command of `tlm` reads it
    return (
        f"The demo took {duration(seconds)}, without the set-up. Results: {FOLDER / 'result.json'}\n"
        f"Returned model: {model / 'model.onnx'}. Its encoder: {model / 'model'}.\n"
        f"Continue with: export TLM_DATA_DIR={data_dir}; .venv/bin/tlm up --detach; .venv/bin/tlm jobs\n"
        f"{_conclusion(report)}\n"
    )


@contextmanager
def _stack(display: Display) -> Iterator[StackHandle]:
    """Launch an empty stack without caches of earlier runs, and stop it at the end."""
    folder = StackFolder(FOLDER / "stack")
    if folder.running():
        raise AlreadyRunning(f"A stack runs on {folder.root}. Stop it with: tlm down --data-dir {folder.root}")
    shutil.rmtree(folder.root, ignore_errors=True)
    stack = launch_stack(StackOptions(folder.root, port=0), tied=True)
    try:
        yield stack
    finally:
        display.begin("stopping the stack")
        stack.stop()


def _generate_task(documentation: Documentation, display: Display) -> Splits:
    """Write the task and return its rows. The corpus follows later, so that the first job starts early."""
    display.begin("generating data:")
    splits = write_task(documentation, DATA, DEMO)
    labels = len({row.label for row in splits["train"]})
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
    display.line(f"task: which of {labels} libraries does a text document? Rows: {counts}")
    return splits


def _generate_corpus(documentation: Documentation, splits: Splits, display: Display) -> None:
    corpus = write_corpus_of(documentation, splits, DATA)
    documentation.by_file.clear()  # frees memory for the training
    display.line(f"corpus: {corpus.count:,} passages of documentation on this machine")


def _load(client: TLMClient, corpus: Path, display: Display) -> None:
    """Upload the corpus and wait until jobs can use it."""
    display.begin("loading:")
    with corpus_files([str(corpus)], language="en", display=display) as files:
        load = client.add_corpus(NAME, files, near_duplicates="keep")  # as in the published figures
    client.wait_corpus(NAME, load.id, display.load)


def _samples(task: dict[str, Path]) -> list[Sample]:
    """Return the longest test text of each of the first SAMPLES labels. Raises InvalidRequest for regression."""
    data = load_task({"train" if split == "file" else split: path for split, path in task.items()})[0]
    if not data.type.has_classes:
        raise InvalidRequest("The demo compares classifiers. Give a dataset with labels instead of regression targets.")
    texts, pairs, labels = data.texts("test"), data.text_pairs("test"), data.label_ids("test").tolist()
    lengths = [len(text) + len(pair) for text, pair in zip(texts, pairs or [""] * len(texts), strict=True)]
    of_label = {label: [row for row, other in enumerate(labels) if other == label] for label in sorted(set(labels))}
    rows = sorted(max(rows, key=lengths.__getitem__) for rows in list(of_label.values())[:SAMPLES])
    return [Sample(texts[row], pairs[row] if pairs else None, data.labels[labels[row]]) for row in rows]


def _answer_early(client: TLMClient, job: Job, samples: Sequence[Sample], display: Display, start: float) -> None:
    """Wait for the linear model of a job. Print how many labels of samples are right, and the time since `start`."""
    published = (event.data.get("node") for event in client.events(job.id) if event.type == "artifact.published")
    if "baseline" not in published:
        _succeeded(client.job(job.id), "task only")
    right = sum(prediction["label"] == prediction["true_label"] for prediction in _classify(client, job, samples))
    display.line(
        f"after {duration(time.monotonic() - start)} the linear model answers: {right} of {len(samples)} labels "
        "are right. Training of the encoder follows."
    )


def _classify(client: TLMClient, job: Job, samples: Sequence[Sample]) -> list[JsonObject]:
    """Classify the samples with the best model of the job. Return text, label, probability and true_label of each."""
    pairs = [sample.pair for sample in samples if sample.pair is not None] or None
    predictions = client.predict(job.id, [sample.text for sample in samples], pairs).data
    return [
        {"text": sample.text, "label": answer.label, "probability": answer.probability, "true_label": sample.label}
        for sample, answer in zip(samples, predictions, strict=True)
    ]


def _wait(client: TLMClient, job: Job, name: str, display: Display, later: float) -> Arm:
    """Wait until a job has succeeded. Raises the error of a failed job. later: expected seconds of later jobs."""
    display.begin(f"{name}:", later)
    job = _succeeded(client.wait(job.id, display.job_event), name)
    display.line(f"{name}: {job.id} succeeded after {duration(job.seconds)}")
    return Arm(job, client.report(job.id))


def _succeeded(job: Job, name: str) -> Job:
    """Return the job. Raises the error of the job if it has not succeeded."""
    if job.state is not State.SUCCEEDED:
        remedy = f"Read the logs in {StackFolder(FOLDER / 'stack').logs}, and start the demo again."
        raise error_from_dict(job.error) if job.error else TLMError(f"The job '{name}' ended as {job.state}. {remedy}")
    return job


def _download(client: TLMClient, job: Job, display: Display) -> Path:
    """Download the model of a job and return its folder."""
    folder = FOLDER / "model"
    shutil.rmtree(folder, ignore_errors=True)
    display.begin("downloading:")
    files = client.download(job.id, folder, display.bytes)
    display.line(f"downloaded {len(files)} files and verified their SHA-256 digests")
    return folder


def _result(arms: Mapping[str, Arm], own_task: Path | None, own_corpus: Path | None) -> dict[str, object]:
    """Return the content of result.json, without the values that `run` adds."""
    generated = "generated from documentation on this machine"
    data = None if own_task and own_corpus else json.loads((DATA / "demo.json").read_text(encoding="utf-8"))
    return {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "task": str(own_task or generated),
        "corpus": str(own_corpus or generated),
        "data": data,
        "arms": {
            name: {"job": arm.job.model_dump(mode="json"), "seconds": arm.job.seconds, "report": arm.report}
            for name, arm in arms.items()
        },
    }


def _print_predictions(predictions: Sequence[JsonObject]) -> None:
    """Print the samples with their predicted labels, and mark the wrong ones."""
    rows = []
    for p in predictions:
        mark = "" if p["label"] == p["true_label"] else "wrong"
        rows.append((shorten(p["text"], width=160), p["label"], f"{p['probability']:.2f}", p["true_label"], mark))
    right = sum(not mark for *_, mark in rows)
    title = f"Predictions of the returned model: {right} of {len(rows)} labels are right"
    print_items(table(("test text", "predicted", "probability", "true", ""), rows, title=title))


def _print_comparison(arms: Mapping[str, Arm]) -> None:
    """Print one row for each model: majority, linear models, encoders and combination. Mark the returned model.

    The encoder that is trained on the task alone has one seed. For a fair comparison, the table also has the encoder of
    TLM with this seed.
    """
    report, alone = arms["TLM"].report, arms["task only"].report
    of_tlm, of_alone = ({row.name: row for row in model_rows(of_arm)} for of_arm in (report, alone))
    cost, first = report["cost"], report["seeds"][0]
    first_cost = _cost({**cost, **first["cost"]}, *ENCODER_STAGES)
    mark = {report["returned"]["model"]: " (returned)"}
    rows = [
        (MAJORITY, *_cells(of_tlm[MAJORITY]), "", ""),
        *(
            (f"{model_title(name)}{mark.get(name, '')}", *_cells(of_tlm[name]), *_cost(cost, *nodes_behind(name)))
            for name in LINEAR_NODES
            if name in of_tlm
        ),
        (f"task only, seed {SEEDS[0]}", *_cells(of_alone["encoder"]), *_cost(alone["cost"], *ENCODER_STAGES)),
        (f"TLM, seed {SEEDS[0]}", *_cells(ModelRow("", first["test"], {})), *first_cost),
        (f"TLM, mean of {len(SEEDS)} seeds", *_cells(of_tlm["encoder"]), *_cost(cost, *ENCODER_STAGES)),
        (
            f"TLM, {len(SEEDS)} seeds averaged{mark.get('ensemble', '')}",
            *_cells(of_tlm["ensemble"]),
            *_cost(cost, *ENCODER_STAGES),
        ),
        (f"combined{mark.get('combined', '')}", *_cells(of_tlm["combined"]), *_cost(cost, "total")),
    ]
    title = f"{first['test']['rows']:,} test rows, ± spread over {len(SEEDS)} seeds"
    print_items(
        table(("", *(METRICS[score].title for score in SCORES), "seconds of training", "FLOPs"), rows, title=title)
    )
    print_items(*sentences(report))


def _conclusion(report: JsonObject) -> str:
    """Return a line that names the returned model, and compares this model with the linear model on test."""
    gain, returned, linear = report["gain"], returned_model(report), model_in_words(LINEAR)
    opening = f"Conclusion: the demo returns {returned}."
    if returned == linear or "value" not in gain:
        return f"{opening} {report['returned']['reason']}"
    difference = Difference(*(gain[key] for key in ("value", "low", "high", "error")))
    amount = f"{difference.value:+.3f} in {METRICS[report['metric']].title}"
    interval = interval_in_words(difference.low, difference.high)
    return f"{opening} It is {difference.relation} {linear} on test: {amount} ({interval})."


def _cost(costs: Mapping[str, Mapping[str, float]], *stages: str) -> tuple[str, str]:
    """Return the total seconds and FLOPs of some stages as texts. FLOPs of 0, as of linear models, become "–"."""
    chosen = [costs[stage] for stage in stages if stage in costs]
    seconds, flops = (sum(cost[quantity] for cost in chosen) for quantity in ("seconds", "flops"))
    return f"{seconds:,.0f}", f"{flops:.1e}" if flops else "–"


def _cells(row: ModelRow) -> list[str]:
    return [format_score(row.mean.get(score), row.spread.get(score)) for score in SCORES]


if __name__ == "__main__":
    sys.exit(main())
