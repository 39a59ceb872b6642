"""Train on real tasks over HTTP with OpenSearch: `python -m benchmarks.quality.tasks sciie acl_arc`.

Each task has three jobs. The first job uses retrieval. The second job trains on the task alone, with the same
finetuning. The third job finetunes for 30 epochs, to replace the joint stage. The reports also score the majority
class.

To resume, run the same command again: the stack's folder remains, and an equal submission returns the same job.
OPENSEARCH_URL names a running OpenSearch; without it, a server starts as in the tests.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.quality.data import FOLDER
from benchmarks.quality.runs import TASK_ONLY, argument_parser
from benchmarks.report import figure, remark
from benchmarks.retrieval.retrieval_data import opensearch_url
from benchmarks.shared import shared_data
from benchmarks.stack import add_dataset, finish, running_stack, submit
from tlm_client.client import TLMClient
from tlm_client.display import Display
from tlm_client.sources import corpus_files
from tlm_client.stack.parts import StackOptions
from tlm_core.errors import NotFound
from tlm_core.jobs.spec import JobSpec

CORPUS = "shared"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="cores for training")
    options = parser.parse_args()
    overrides, folder = dict(options.overrides), FOLDER.resolve()
    jobs: dict[str, tuple[str | None, dict[str, Any]]] = {
        "tlm": (CORPUS, overrides),
        "task_only": (None, overrides | TASK_ONLY),
        "task_only_long": (None, overrides | TASK_ONLY | {"finetune.epochs": 30}),
    }
    with (
        opensearch_url(folder / "opensearch", port=19293) as url,
        Display(Console(stderr=True, highlight=False, soft_wrap=True)) as display,
        running_stack(StackOptions(folder / "stack", 0, url, options.cpus), display.line) as client,
    ):
        load_corpus(client, shared_data() / "corpus", display)
        for task in options.tasks:
            try:
                client.dataset(task)
            except NotFound:
                add_dataset(client, task, task)
            for arm, (corpus, changes) in jobs.items():
                spec = JobSpec(dataset=task, corpus=corpus, seeds=range(options.seeds), overrides=changes)
                job = finish(client, submit(client, spec).id, f"{task} {arm}", display)
                print_report(f"{task}_{arm}", client.report(job.id), job.seconds)


def load_corpus(client: TLMClient, folder: Path, display: Display) -> None:
    """Load the corpus unless the stack has it. Near-duplicates remain, so that every job has the same passages."""
    try:
        if client.corpus(CORPUS).version:
            return
    except NotFound:
        pass
    start = time.monotonic()
    with corpus_files([str(folder)], language="en", display=display) as files:
        load = client.add_corpus(CORPUS, files, near_duplicates="keep")
    client.wait_corpus(CORPUS, load.id, display.load)
    remark(f"loaded the corpus in {time.monotonic() - start:.0f} s")


def print_report(name: str, report: dict[str, Any], seconds: float) -> None:
    for score in ("macro_f1", "accuracy"):
        for split in ("test", "validation"):
            figure(f"{name}_{split}_{score}", [seed[split][score] for seed in report["seeds"]], unit="score")
        figure(f"{name}_majority_{score}", [report["majority"]["test"][score]], unit="score")
    cost = report["cost"]["total"]
    figure(f"{name}_training_seconds", [cost["seconds"]], unit="s, all seeds", better="lower")
    figure(f"{name}_flops", [cost["flops"]], unit="FLOP, all seeds", better="lower")
    figure(f"{name}_job_seconds", [seconds], unit="s from selection to evaluated model", better="lower")


if __name__ == "__main__":
    main()
