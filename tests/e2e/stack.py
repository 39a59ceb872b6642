"""A running stack for end-to-end tests, its data, and a request for a very small model."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import wait_for
from tlm_client.client import TLMClient
from tlm_client.stack.control import launch_stack
from tlm_client.stack.parts import StackOptions
from tlm_client.stack.processes import FOLDER_MARK, list_processes
from tlm_core.jobs.spec import JobSpec
from tlm_core.wire import Job, JobEvent

TOPICS = {
    "weather": ["rain", "cloud", "storm", "wind", "thunder", "sunshine", "fog", "snow", "hail", "breeze"],
    "kitchen": ["oven", "knife", "pepper", "onion", "butter", "simmer", "roast", "flour", "spoon", "recipe"],
    "harbour": ["ship", "anchor", "sail", "crane", "dock", "tide", "captain", "cargo", "rope", "lighthouse"],
}
COMMON = ["the", "a", "of", "and", "with", "near", "under", "some", "old", "every", "quiet", "again", "before", "after"]
SPLITS = {"train": 120, "validation": 60, "test": 240}
STEPS = 300
OVERRIDES: dict[str, Any] = {
    "model.layers": 2,
    "model.hidden": 64,
    "model.heads": 2,
    "model.intermediate": 128,
    "model.max_length": 64,
    "tokenizer.vocab_size": 400,
    "joint.budget.steps": STEPS,
    "joint.batch_rows": 8,
    "joint.task_batch": 16,
    "finetune.epochs": 4,
    "finetune.evaluations": 2,
    "checkpoint_steps": 25,
    "selection.top_k": 5,
}
WORKER = b"\0services.trainer.program\0"


def make_spec(overrides: dict[str, Any] | None = None, **fields: Any) -> JobSpec:
    """Return a request for the small model, with changes."""
    return JobSpec(**{"dataset": "topics", "corpus": "notes", "overrides": OVERRIDES | (overrides or {}), **fields})


def write_data(folder: Path) -> None:
    """Write the splits and the corpus. A third of the words belong to the topic, so the task can be learned."""
    rng = random.Random(1)

    def sentence(topic: str, words: int) -> str:
        return " ".join(rng.choice(TOPICS[topic] if rng.random() < 0.34 else COMMON) for _ in range(words))

    def rows(count: int, words: int) -> Iterator[tuple[str, str]]:
        for _ in range(count):
            topic = rng.choice(list(TOPICS))
            yield topic, sentence(topic, words)

    for split, count in SPLITS.items():
        lines = [json.dumps({"text": text, "label": topic}) for topic, text in rows(count, 12)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    notes = enumerate(rows(400, 40))
    lines = [json.dumps({"text": f"Note {n}. {text}.", "source": topic}) for n, (topic, text) in notes]
    (folder / "notes.jsonl").write_text("\n".join(lines), encoding="utf-8")


def command_of(pid: int) -> bytes:
    """Return the command line of a process, or no bytes if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Stack:
    """A running stack. folder: its data."""

    client: TLMClient
    folder: Path

    def workers(self) -> list[int]:
        """Return the process ids of the stack's training workers."""
        return [pid for pid in list_processes({FOLDER_MARK: str(self.folder)}) if WORKER in command_of(pid)]

    def wait_for_no_worker(self) -> None:
        wait_for(lambda: not self.workers(), 60)

    def events(self, job_id: str, event_type: str) -> list[JobEvent]:
        return [event for event in self.client.past_events(job_id) if event.type == event_type]

    def started_nodes(self, job_id: str) -> list[str]:
        return [event.data["node"] for event in self.events(job_id, "stage.started")]

    def selected(self, job_id: str) -> list[str]:
        """Return the ids of the selected passages, best rank first."""
        ids: list[str] = []
        while (page := self.client.selection(job_id, after=len(ids), limit=100)).data:
            ids += [passage.id for passage in page.data]
        return ids

    def weights(self, job_id: str) -> str:
        """Return the SHA-256 of the exported weights."""
        return next(file.sha256 for file in self.client.model(job_id).files if file.name == "model/model.safetensors")

    def finish(self, spec: JobSpec) -> Job:
        """Submit a job and wait for its end."""
        return self.client.wait(self.client.submit(spec).id)

    def kill_worker(self, job_id: str) -> int:
        """Kill a training worker after a checkpoint of the joint stage, and return the step of that checkpoint."""
        steps: list[int] = []

        def has_checkpoint() -> bool:
            steps[:] = [event.data["step"] for event in self.events(job_id, "checkpoint.published")]
            return bool(steps and self.workers())

        wait_for(has_checkpoint, 240)
        os.kill(self.workers()[0], signal.SIGKILL)
        return max(steps)


@contextmanager
def run_stack(folder: Path, data: Path, opensearch_url: str | None = None) -> Iterator[Stack]:
    """Run a stack that has the task and the corpus."""
    handle = launch_stack(StackOptions(folder, port=0, opensearch_url=opensearch_url), tied=True)
    handle.wait(lambda _: None)
    try:
        with TLMClient(handle.url, handle.token) as client:
            client.add_dataset("topics", {split: data / f"{split}.jsonl" for split in SPLITS})
            client.wait_corpus("notes", client.add_corpus("notes", [data / "notes.jsonl"]).id)
            yield Stack(client, folder)
    finally:
        handle.stop()
