"""Demo of the whole service on this machine: `python -m tlm_client.demo [--task PATH] [--corpus PATH]`.

It starts the stack, submits two jobs over HTTP, downloads the TLM model and classifies texts with it. It compares the
encoder with the same encoder trained on the task alone, with the linear model, with the combination that a job may
return, and with the majority class. It writes build/demo/result.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tlm_client.client import TLMClient
from tlm_client.console import print_items, table
from tlm_client.display import Display, duration
from tlm_client.sources import corpus_files, dataset_files
from tlm_client.stack.control import StackHandle, launch_stack
from tlm_client.stack.folder import StackFolder
from tlm_client.stack.parts import StackOptions
from tlm_client.summary import format_score, total_cost
from tlm_core.errors import AlreadyRunning, InvalidRequest, TLMError, error_from_dict
from tlm_core.evaluation.summary import MAJORITY, ModelRow, model_rows, sentences
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import State
from tlm_core.tasks.metrics import METRICS
from tlm_core.wire import Job

FOLDER = Path("build/demo")
NAME = "demo"
SEEDS = (0, 1, 2)
SCORES = ("macro_f1", "accuracy")
# The trainer runs both jobs at once, so that the second job starts while the first one trains.
JOBS_AT_ONCE = 2
ARMS = {
    # This budget lets the demo end within six minutes on two cores.
    "TLM": JobSpec(dataset=NAME, corpus=NAME, seeds=SEEDS, overrides={"joint.budget.tokens": 850_000}),
    "task only": JobSpec(
        dataset=NAME, corpus=None, seeds=SEEDS, overrides={"joint.enabled": False, "selection.selector": "none"}
    ),
}


@dataclass(frozen=True)
class Arm:
    """A finished job of the comparison. seconds: wall-clock time from start to end."""

    job: Job
    report: Mapping[str, Any]
    seconds: float

    def summary(self) -> dict[str, object]:
        """Return the arm's part of result.json."""
        seeds = [
            {"seed": seed["seed"]}
            | {split: {score: seed[split][score] for score in SCORES} for split in ("validation", "test")}
            for seed in self.report["seeds"]
        ]
        facts = {key: self.report[key] for key in ("mean", "spread", "cost", "best_seed", "returned", "models")}
        recipe = self.job.resolved_recipe.model_dump(mode="json")
        return {"job": self.job.id, "recipe": recipe, "seconds": self.seconds, **facts, "seeds": seeds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit code."""
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
    """Run all steps and print the comparison. The stack always stops."""
    start = time.monotonic()
    for path in (own_task, own_corpus):
        if path is not None and not path.exists():
            raise InvalidRequest(f"No file or folder '{path}'. Check the path.")
    with Display(Console(highlight=False, soft_wrap=True)) as display:
        with _stack(display) as stack:
            task, corpus = _prepare_data(own_task, own_corpus, display)
            stack.wait(display.line)
            with TLMClient(stack.url, stack.token) as client:
                _upload(client, task, corpus, display)
                jobs = {name: client.submit(spec) for name, spec in ARMS.items()}
                arms = {"TLM": _wait(client, jobs["TLM"], "TLM", display)}
                model = _download(client, arms["TLM"].job, display)
                predictions = _classify(model, task)
                arms["task only"] = _wait(client, jobs["task only"], "task only", display)
        display.line("the stack has stopped")
    _print_comparison(arms, predictions)
    seconds = time.monotonic() - start
    result = _result(arms, own_task, own_corpus) | {"seconds": seconds, "classified": predictions, "model": str(model)}
    (FOLDER / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"The demo took {duration(seconds)}. Results: {FOLDER / 'result.json'}\n")
    sys.stdout.write(f"Model: {model}. Continue with: .venv/bin/tlm up --data-dir {FOLDER / 'stack'}\n")


@contextmanager
def _stack(display: Display) -> Iterator[StackHandle]:
    """Launch an empty stack without caches of earlier runs, and stop it at the end."""
    folder = StackFolder(FOLDER / "stack")
    if folder.running():
        raise AlreadyRunning(f"A stack runs on {folder.root}. Stop it with: tlm down --data-dir {folder.root}")
    shutil.rmtree(folder.root, ignore_errors=True)
    os.environ["TLM_TRAINER_CONCURRENCY"] = str(JOBS_AT_ONCE)
    stack = launch_stack(StackOptions(folder.root, port=0), tied=True)
    try:
        yield stack
    finally:
        display.begin("stopping the stack")
        stack.stop()


def _prepare_data(own_task: Path | None, own_corpus: Path | None, display: Display) -> tuple[dict[str, Path], Path]:
    """Return the files of the task by split, and the corpus; generate what the user does not provide."""
    folder = FOLDER / "data"
    if own_task is None or own_corpus is None:
        from tlm_client.demo_data import generate_demo

        display.begin("generating data:")
        demo = generate_demo(folder, progress=lambda stage, done, total: display.update(stage, done, total, ""))
        rows = ", ".join(f"{split} {count:,}" for split, count in demo.rows.items())
        display.line(f"corpus: {demo.corpus.count:,} passages of documentation on this machine")
        display.line(f"task: which of {len(demo.labels)} libraries does a text document? Rows: {rows}")
    return dataset_files(own_task or folder / "task", notify=display.line), own_corpus or folder / "corpus"


def _upload(client: TLMClient, task: dict[str, Path], corpus: Path, display: Display) -> None:
    display.begin("loading:")
    with corpus_files([str(corpus)], language="en", display=display) as files:
        load = client.add_corpus(NAME, files, near_duplicates="keep")  # as for the published figures
    dataset = client.add_dataset(NAME, task)
    for warning in (dataset.report or {}).get("warnings", [])[:5]:
        display.line(f"warning: {warning['message']}")
    client.wait_corpus(NAME, load.id, display.load)


def _wait(client: TLMClient, job: Job, name: str, display: Display) -> Arm:
    """Show a job until it ends. Raises its error if it fails."""
    display.begin(f"{name}:")
    job = client.wait(job.id, display.job_event)
    if job.state is not State.SUCCEEDED:
        raise error_from_dict(job.error) if job.error else TLMError(f"The job '{name}' ended as {job.state}.")
    display.line(f"{name}: {job.id} succeeded after {duration(job.seconds)}")
    return Arm(job, client.report(job.id), job.seconds)


def _download(client: TLMClient, job: Job, display: Display) -> Path:
    folder = FOLDER / "model"
    shutil.rmtree(folder, ignore_errors=True)
    display.begin("downloading:")
    files = client.download(job.id, folder, display.bytes)
    display.line(f"downloaded {len(files)} files and verified their SHA-256 digests")
    return folder / "model"


def _classify(model: Path, task: dict[str, Path]) -> list[dict[str, Any]]:
    """Classify three test texts with different labels, with the downloaded model in stock classes."""
    from tlm_client.evaluation import Classifier
    from tlm_core.tasks.validate import load_task

    data = load_task({"train" if split == "file" else split: path for split, path in task.items()})[0]
    texts, pairs, labels = data.texts("test"), data.text_pairs("test"), data.label_ids("test").tolist()
    rows = sorted(labels.index(label) for label in set(labels))[:3]
    predictions = Classifier(str(model)).classify(
        [texts[row] for row in rows], None if pairs is None else [pairs[row] for row in rows]
    )
    return [
        {"text": texts[row], "label": label, "probability": probability, "true_label": data.labels[labels[row]]}
        for row, (label, probability) in zip(rows, predictions, strict=True)
    ]


def _result(arms: Mapping[str, Arm], own_task: Path | None, own_corpus: Path | None) -> dict[str, object]:
    generated = "generated from documentation on this machine"
    data = None if own_task and own_corpus else json.loads((FOLDER / "data" / "demo.json").read_text(encoding="utf-8"))
    return {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "task": str(own_task or generated),
        "corpus": str(own_corpus or generated),
        "data": data,
        "arms": {name: arm.summary() for name, arm in arms.items()},
        "majority": {score: arms["TLM"].report["majority"]["test"][score] for score in SCORES},
    }


def _print_comparison(arms: Mapping[str, Arm], predictions: Sequence[Mapping[str, Any]]) -> None:
    texts = [(p["text"][:160], p["label"], f"{p['probability']:.2f}", p["true_label"]) for p in predictions]
    columns = ("test text", "predicted", "probability", "true")
    print_items(table(columns, texts, title="Three predictions"))
    report = arms["TLM"].report
    alone = [row for row in model_rows(report) if row.name in (MAJORITY, "linear")]
    rows: list[tuple[str, ...]] = [(row.name, *_cells(row), "", "", row.file) for row in alone]
    for name, arm in arms.items():
        seconds, flops = (total_cost(arm.report, quantity) for quantity in ("seconds", "flops"))
        cost = ("n/a" if seconds is None else f"{seconds:,.0f}", "n/a" if flops is None else f"{flops:.2e}")
        for row in model_rows(arm.report):
            if row.name in ("encoder", "combined"):
                rows.append(
                    (f"{name}, {row.name}", *_cells(row), *(cost if row.name == "encoder" else ("", "")), row.file)
                )
    title = f"{report['seeds'][0]['test']['rows']:,} test rows, mean ± spread of {len(SEEDS)} seeds"
    header = ("", *(METRICS[score].title for score in SCORES), "training seconds", "FLOPs", "returned as")
    print_items(table(header, rows, title=title))
    for name, arm in arms.items():
        print_items(*(f"{name}: {sentence}" for sentence in sentences(arm.report)))


def _cells(row: ModelRow) -> list[str]:
    return [format_score(row.mean.get(score), row.spread.get(score)) for score in SCORES]


if __name__ == "__main__":
    sys.exit(main())
