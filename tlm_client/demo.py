"""The whole way once, on this machine: `python -m tlm_client.demo [--task PATH] [--corpus PATH]`.

Starts the stack, submits a job over HTTP, takes the model away, and compares it with the same encoder trained on the
task alone and with the majority class. Whatever comes out is printed and written to result.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tlm_client.client import TLMClient
from tlm_client.console import print_table
from tlm_client.display import Display, duration
from tlm_client.sources import corpus_files, dataset_files
from tlm_client.stack.control import StackHandle, launch_stack
from tlm_client.stack.folder import StackFolder
from tlm_client.stack.parts import StackOptions
from tlm_client.summary import format_score, mean_and_spread, report_score, total_cost
from tlm_core.errors import AlreadyRunning, InvalidRequest, TLMError, error_from_dict
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import State
from tlm_core.wire import Job

FOLDER = Path("build/demo")
NAME = "demo"
SEEDS = (0, 1, 2)
# How many of the two jobs the trainer drives at once: the second one's start-up falls into the first one's training.
JOBS_AT_ONCE = 2
ARMS = {
    # As much joint training as leaves the whole demo under six minutes on two cores.
    "TLM": JobSpec(dataset=NAME, corpus=NAME, seeds=SEEDS, set={"joint.budget.tokens": 850_000}),
    "task only": JobSpec(
        dataset=NAME, corpus=None, seeds=SEEDS, set={"joint.enabled": False, "selection.selector": "none"}
    ),
}


@dataclass(frozen=True)
class Arm:
    """What one job came to. seconds: from its start to its end, on the clock."""

    job: Job
    report: dict[str, Any]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tlm_client.demo", description=__doc__)
    parser.add_argument("--task", type=Path, help="your data set: a file, or a folder with train, dev and test files")
    parser.add_argument("--corpus", type=Path, help="your general corpus: a file or a folder")
    given = parser.parse_args(arguments)
    logs = StackFolder(FOLDER / "stack").logs
    try:
        run(given.task, given.corpus)
    except TLMError as error:
        sys.stderr.write(f"the demo failed: {error.message}\nlogs are in {logs}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; everything has been stopped. Logs are in {logs}\n")
        return 130
    return 0


def run(own_task: Path | None, own_corpus: Path | None) -> None:
    """The five steps, with one progress display. Raises the project's errors; the stack is stopped in any case."""
    begun = time.monotonic()
    for own in (own_task, own_corpus):
        if own is not None and not own.exists():
            raise InvalidRequest(f"there is no file or folder '{own}'; check the path")
    with Display(Console(highlight=False, soft_wrap=True)) as display:
        with _stack(display) as stack:
            task, corpus = _data(own_task, own_corpus, display)
            stack.wait(display.line)
            with TLMClient(stack.url, stack.token) as client:
                _upload(client, task, corpus, display)
                jobs = {name: client.submit(spec) for name, spec in ARMS.items()}
                arms = {"TLM": _finished(client, jobs["TLM"], "TLM", display)}
                model = _download(client, arms["TLM"].job, display)
                classified = _classify(model, task)
                arms["task only"] = _finished(client, jobs["task only"], "task only", display)
        display.line("the stack has been stopped")
    _show(arms, classified)
    result = _result(arms, classified, model, own_task, own_corpus, time.monotonic() - begun)
    (FOLDER / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _line(f"The demo took {duration(result['seconds'])}; the same in numbers: {FOLDER / 'result.json'}")
    _line(f"The model is in {model}. To go on with it: .venv/bin/tlm up --data-dir {FOLDER / 'stack'}")


@contextmanager
def _stack(display: Display) -> Iterator[StackHandle]:
    """A fresh stack that is coming up, stopped at the end. Nothing of an earlier run is taken from a cache."""
    folder = StackFolder(FOLDER / "stack")
    if folder.running():
        raise AlreadyRunning(f"a stack is running on {folder.root}; stop it: tlm down --data-dir {folder.root}")
    shutil.rmtree(folder.root, ignore_errors=True)
    os.environ["TLM_TRAINER_CONCURRENCY"] = str(JOBS_AT_ONCE)
    stack = launch_stack(StackOptions(folder.root, port=0), tied=True)
    try:
        yield stack
    finally:
        display.begin("stopping the stack")
        stack.stop()


def _data(own_task: Path | None, own_corpus: Path | None, display: Display) -> tuple[dict[str, Path], Path]:
    """Files of the task by split, and of the corpus: the user's own, else made of what is on this machine."""
    if own_task is None or own_corpus is None:
        from tlm_client.demo_data import make_demo

        display.begin("making the data:")
        made = make_demo(FOLDER / "data", progress=lambda what, done, total: display.update(what, done, total, ""))
        rows = ", ".join(f"{split} {count:,}" for split, count in made.rows.items())
        display.line(f"corpus: {made.corpus.count:,} passages of documentation found on this machine")
        display.line(f"task: which of {len(made.labels)} libraries does this text document? rows: {rows}")
    task = dataset_files(own_task if own_task is not None else FOLDER / "data" / "task", say=display.line)
    return task, own_corpus if own_corpus is not None else FOLDER / "data" / "corpus"


def _upload(client: TLMClient, task: dict[str, Path], corpus: Path, display: Display) -> None:
    display.begin("loading:")
    with corpus_files([str(corpus)], language="en", display=display) as files:
        load = client.add_corpus(NAME, files, near_duplicates="keep")  # as the corpus was when its figures were taken
    dataset = client.add_dataset(NAME, task)
    for warning in (dataset.report or {}).get("warnings", [])[:5]:
        display.line(f"warning: {warning['message']}")
    client.wait_corpus(NAME, load.id, display.load)


def _finished(client: TLMClient, job: Job, name: str, display: Display) -> Arm:
    """Follow a job to its end. Raises the error for which it failed."""
    display.begin(f"{name}:")
    job = client.wait(job.id, display.job_event)
    if job.state is not State.SUCCEEDED:
        raise error_from_dict(job.error) if job.error else TLMError(f"the job '{name}' ended as {job.state}")
    seconds = (job.finished_at or 0.0) - (job.started_at or job.created_at)
    display.line(f"{name}: {job.id} succeeded after {duration(seconds)}")
    return Arm(job, client.report(job.id), seconds)


def _download(client: TLMClient, job: Job, display: Display) -> Path:
    folder = FOLDER / "model"
    shutil.rmtree(folder, ignore_errors=True)
    display.begin("downloading:")
    files = client.download(job.id, folder, display.bytes)
    display.line(f"downloaded {len(files)} files, each checked by its SHA-256")
    return folder / "model"


def _classify(model: Path, task: dict[str, Path]) -> list[dict[str, Any]]:
    """Three test texts of three labels through the downloaded model, loaded by stock classes."""
    from tlm_client.evaluation import Classifier
    from tlm_core.tasks.validate import load_task

    known = load_task({"train" if split == "file" else split: path for split, path in task.items()})[0]
    texts, pairs, labels = known.texts("test"), known.text_pairs("test"), known.label_ids("test").tolist()
    rows = sorted({label: row for row, label in reversed(list(enumerate(labels)))}.values())[:3]
    answers = Classifier(str(model)).classify(
        [texts[row] for row in rows], None if pairs is None else [pairs[row] for row in rows]
    )
    return [
        {"text": texts[row], "label": label, "probability": probability, "true_label": known.labels[labels[row]]}
        for row, (label, probability) in zip(rows, answers, strict=True)
    ]


def _show(arms: dict[str, Arm], classified: list[dict[str, Any]]) -> None:
    answers = [(c["text"][:160], c["label"], f"{c['probability']:.2f}", c["true_label"]) for c in classified]
    print_table(("text of the test split", "model says", "probability", "true"), answers, title="Three texts")
    rows = [
        (name, *(mean_and_spread(arm.report, s) for s in ("macro_f1", "accuracy")), *_cost(arm))
        for name, arm in arms.items()
    ]
    majority = [format_score(report_score(arms["TLM"].report, "majority", score)) for score in ("macro_f1", "accuracy")]
    title = f"On {arms['TLM'].report['seeds'][0]['test']['rows']:,} test rows, mean ± spread of {len(SEEDS)} seeds"
    columns = ("", "macro-F1", "accuracy", "training seconds", "FLOPs")
    print_table(columns, [*rows, ("majority class", *majority, "0", "0")], title=title)


def _cost(arm: Arm) -> tuple[str, str]:
    seconds, flops = total_cost(arm.report, "seconds"), total_cost(arm.report, "flops")
    return "n/a" if seconds is None else f"{seconds:,.0f}", "n/a" if flops is None else f"{flops:.2e}"


def _result(
    arms: dict[str, Arm],
    classified: list[dict[str, Any]],
    model: Path,
    own_task: Path | None,
    own_corpus: Path | None,
    seconds: float,
) -> dict[str, Any]:
    made = FOLDER / "data" / "demo.json"
    return {
        "seconds": seconds,
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "task": str(own_task) if own_task else "made of documentation on this machine",
        "corpus": str(own_corpus) if own_corpus else "made of documentation on this machine",
        "data": json.loads(made.read_text(encoding="utf-8")) if not (own_task and own_corpus) else None,
        "arms": {
            name: {
                "job": arm.job.id,
                "recipe": arm.job.resolved_recipe,
                "seconds": arm.seconds,
                **{key: arm.report[key] for key in ("mean", "spread", "cost", "best_seed")},
                "seeds": [
                    {"seed": seed["seed"]}
                    | {split: {s: seed[split][s] for s in ("macro_f1", "accuracy")} for split in ("validation", "test")}
                    for seed in arm.report["seeds"]
                ],
            }
            for name, arm in arms.items()
        },
        "majority": {s: arms["TLM"].report["majority"]["test"][s] for s in ("macro_f1", "accuracy")},
        "classified": classified,
        "model": str(model),
    }


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
