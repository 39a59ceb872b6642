"""Real tasks through the whole service, over HTTP, with OpenSearch: `python -m benchmarks.quality.tasks sciie acl_arc`.

For each task a job with retrieval and one on the task alone, with the same finetuning, beside the majority class;
and one on the task alone that finetunes three times as long, since it has not had the joint stage's share of the work.
Stopped and started again with the same arguments it goes on: the stack's folder is kept, and a submission with the
same key is the same job. OPENSEARCH_URL names a running OpenSearch; else one is started as the tests start it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.report import figure, remark
from benchmarks.shared import shared_data
from tests.opensearch_server import OpenSearchServer
from tlm_client.client import TLMClient
from tlm_client.display import Display
from tlm_client.sources import corpus_files, dataset_files
from tlm_client.stack.control import launch_stack
from tlm_client.stack.parts import StackOptions
from tlm_core.errors import NotFound, TLMError, error_from_dict
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import State

FOLDER = Path("build/quality")
CORPUS = "shared"
TASK_ONLY = {"joint.enabled": False, "selection.selector": "none"}
SCORES = ("macro_f1", "accuracy")


def main() -> None:
    """Run what is missing and print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help="folders under tasks/ of the shared data")
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="cores for training")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of both arms")
    given = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    data, seeds = shared_data(), tuple(range(given.seeds))
    with _service(given.cpus) as (client, display):
        _load_corpus(client, data / "corpus", display)
        for name in given.tasks:
            _load_task(client, name, data / "tasks" / name)
            arms = {
                "tlm": (CORPUS, changes),
                "task_only": (None, changes | TASK_ONLY),
                "task_only_long": (None, changes | TASK_ONLY | {"finetune.epochs": 30}),
            }
            for arm, (corpus, own) in arms.items():
                spec = JobSpec(dataset=name, corpus=corpus, scale=given.scale, seeds=seeds, overrides=own)
                _tell(f"{name}_{arm}", *_run(client, f"{name} {arm}", spec, display))


@contextmanager
def _service(cpus: int) -> Iterator[tuple[TLMClient, Display]]:
    """A stack over OpenSearch; both stop at the end, and their folders stay."""
    folder = FOLDER.resolve()
    (folder / "opensearch").mkdir(parents=True, exist_ok=True)
    server = None if os.environ.get("OPENSEARCH_URL") else OpenSearchServer(folder / "opensearch", port=19293)
    if server:
        server.start()
    try:
        url = server.url if server else os.environ["OPENSEARCH_URL"]
        with Display(Console(stderr=True, highlight=False, soft_wrap=True)) as display:
            stack = launch_stack(StackOptions(folder / "stack", port=0, opensearch_url=url, cpus=cpus), tied=True)
            try:
                stack.wait(display.line)
                with TLMClient(stack.url, stack.token) as client:
                    yield client, display
            finally:
                stack.stop()
    finally:
        if server:
            server.stop()


def _load_corpus(client: TLMClient, folder: Path, display: Display) -> None:
    try:
        if client.corpus(CORPUS).version:
            return
    except NotFound:
        pass
    began = time.monotonic()
    with corpus_files([str(folder)], language="en", display=display) as files:
        load = client.add_corpus(CORPUS, files, near_duplicates="keep")  # every arm has all of the corpus
    client.wait_corpus(CORPUS, load.id, display.load)
    remark(f"corpus loaded after {time.monotonic() - began:.0f} s")


def _load_task(client: TLMClient, name: str, folder: Path) -> None:
    try:
        client.dataset(name)
    except NotFound:
        client.add_dataset(name, dataset_files(folder, notify=remark))


def _run(client: TLMClient, what: str, spec: JobSpec, display: Display) -> tuple[dict[str, Any], float]:
    """The job's report and its seconds from start to end. Raises the error for which it failed."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    tries = (hashlib.sha256(f"{text} {number}".encode()).hexdigest() for number in itertools.count())
    while (job := client.submit(spec, key=next(tries))).state in (State.FAILED, State.CANCELLED):
        remark(f"{what}: {job.id} ended as {job.state} earlier and is run anew")
    display.begin(f"{what}:")
    job = client.wait(job.id, display.job_event)
    if job.state is not State.SUCCEEDED:
        raise error_from_dict(job.error) if job.error else TLMError(f"{what} ended as {job.state}")
    return client.report(job.id), (job.finished_at or 0.0) - (job.started_at or job.created_at)


def _tell(name: str, report: dict[str, Any], seconds: float) -> None:
    for score in SCORES:
        for split in ("test", "validation"):
            figure(f"{name}_{split}_{score}", [seed[split][score] for seed in report["seeds"]], unit="score")
        majority = report["majority"]["test"][score]
        figure(f"{name}_majority_{score}", [majority], unit="score")
    cost = report["cost"]["total"]
    figure(f"{name}_training_seconds", [cost["seconds"]], unit="s, all seeds", better="lower")
    figure(f"{name}_flops", [cost["flops"]], unit="FLOP, all seeds", better="lower")
    figure(f"{name}_job_seconds", [seconds], unit="s, selection to tested model", better="lower")
    with open(FOLDER / "tasks.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "seconds": seconds, "report": report}) + "\n")


if __name__ == "__main__":
    main()
