"""The whole way over HTTP: data in, a worker killed, a model out that scores what the report says."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlm_client.client import TLMClient
from tlm_client.stack.control import launch_stack
from tlm_client.stack.parts import StackOptions
from tlm_client.stack.processes import FOLDER_MARK, find_processes
from tlm_core.artifacts import sha256_file
from tlm_core.jobs.spec import JobSpec
from tlm_core.tasks.metrics import score
from tlm_core.wire import Job, JobEvent

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(420)]

TOPICS = {
    "weather": ["rain", "cloud", "storm", "wind", "thunder", "sunshine", "fog", "snow", "hail", "breeze"],
    "kitchen": ["oven", "knife", "pepper", "onion", "butter", "simmer", "roast", "flour", "spoon", "recipe"],
    "harbour": ["ship", "anchor", "sail", "crane", "dock", "tide", "captain", "cargo", "rope", "lighthouse"],
}
COMMON = ["the", "a", "of", "and", "with", "near", "under", "some", "old", "every", "quiet", "again", "before", "after"]
SPEC: dict[str, Any] = {
    "dataset": "topics", "corpus": "notes", "seeds": (0,),
    "overrides": {
        "model.layers": 2, "model.hidden": 64, "model.heads": 2, "model.intermediate": 128, "model.max_length": 64,
        "tokenizer.vocab_size": 400, "joint.budget.steps": 1000, "joint.batch_rows": 8, "joint.task_batch": 16,
        "finetune.epochs": 2, "checkpoint_steps": 50, "selection.top_k": 5,
    },
}  # fmt: skip


def sentence(rng: random.Random, topic: str, words: int) -> str:
    """Words of which a third belong to the topic, so that the task can be learnt but is not trivial."""
    return " ".join(rng.choice(TOPICS[topic] if rng.random() < 0.34 else COMMON) for _ in range(words))


def make_data(folder: Path) -> None:
    rng = random.Random(1)
    for split, rows in (("train", 120), ("validation", 60), ("test", 240)):
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as handle:
            for _ in range(rows):
                topic = rng.choice(list(TOPICS))
                handle.write(json.dumps({"text": sentence(rng, topic, 12), "label": topic}) + "\n")
    with open(folder / "notes.jsonl", "w", encoding="utf-8") as handle:
        for n in range(400):
            topic = rng.choice(list(TOPICS))
            handle.write(json.dumps({"text": f"Note {n}. {sentence(rng, topic, 40)}.", "source": topic}) + "\n")


def command_of(pid: int) -> bytes:
    """The command line of a process; empty when it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Stack:
    client: TLMClient
    folder: Path

    def training_workers(self, command: bytes = b"\0services.trainer.program\0") -> list[int]:
        """Pids of the programs of this stack's attempts, which are their workers where these are single."""
        return [pid for pid in find_processes({FOLDER_MARK: str(self.folder)}) if command in command_of(pid)]

    def wait_for_no_worker(self, *which: bytes) -> None:
        deadline = time.monotonic() + 60
        while self.training_workers(*which):
            assert time.monotonic() < deadline, "a worker is left"
            time.sleep(0.1)

    def events(self, job_id: str, kind: str) -> list[JobEvent]:
        return [event for event in self.client.past_events(job_id) if event.type == kind]

    def selected(self, job_id: str) -> list[str]:
        """Ids of the passages that were selected, best rank first."""
        ids: list[str] = []
        while True:
            page = self.client.selection(job_id, after=len(ids), limit=100)
            ids += [passage.id for passage in page.data]
            if not page.has_more:
                return ids

    def weights(self, job_id: str) -> str:
        """SHA-256 of the exported weights."""
        return next(f.sha256 for f in self.client.model(job_id) if f.name == "model/model.safetensors")


@contextmanager
def running(folder: Path, data: Path, opensearch_url: str | None = None) -> Iterator[Stack]:
    """A stack with the task and the corpus in it."""
    handle = launch_stack(StackOptions(folder, port=0, opensearch_url=opensearch_url), tied=True)
    handle.wait(lambda _: None)
    try:
        with TLMClient(handle.url, handle.token) as client:
            stack = Stack(client, folder)
            client.add_dataset("topics", {name: data / f"{name}.jsonl" for name in ("train", "validation", "test")})
            client.wait_corpus("notes", client.add_corpus("notes", [data / "notes.jsonl"]).id)
            yield stack
    finally:
        handle.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("embedded") / "data", data) as stack:
        yield stack


def kill_in_joint_stage(stack: Stack, job_id: str, *which: bytes) -> int:
    """Kill a training worker once a checkpoint of the joint stage is there; returns that checkpoint's step."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        found = [e.data["step"] for e in stack.events(job_id, "checkpoint.published")]
        if found and (workers := stack.training_workers(*which)):
            os.kill(workers[0], signal.SIGKILL)
            return int(max(found))
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint came: {stack.client.job(job_id)}")


@pytest.fixture(scope="module")
def killed(embedded: Stack) -> tuple[Job, int]:
    """A job whose worker was killed once, when it has ended; and the step of the checkpoint that was there."""
    job = embedded.client.submit(JobSpec(**SPEC))
    step = kill_in_joint_stage(embedded, job.id)
    return embedded.client.wait(job.id), step


def test_a_job_whose_worker_was_killed_goes_on_from_its_checkpoint_and_succeeds(
    embedded: Stack, killed: tuple[Job, int]
) -> None:
    job, step = killed
    assert (job.state, job.attempt) == ("succeeded", 2)
    resumed = embedded.events(job.id, "stage.resumed")
    assert [(e.attempt, e.data["node"]) for e in resumed] == [(2, "joint.s0")]
    assert resumed[0].data["step"] >= step > 0
    again = [p["step"] for p in embedded.client.metrics(job.id) if p["attempt"] == 2 and p["node"] == "joint.s0"]
    assert min(again) > resumed[0].data["step"], "no step was done twice"
    assert max(again) > 950


def test_the_downloaded_model_loads_with_stock_classes_and_scores_what_was_reported(
    embedded: Stack, killed: tuple[Job, int], data: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    job, _ = killed
    embedded.client.download(job.id, tmp_path)
    for file in embedded.client.model(job.id):
        assert sha256_file(tmp_path / file.name) == file.sha256
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    encoded = tokenizer([r["text"] for r in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
    predicted = model(**encoded).logits.argmax(-1).numpy()
    true = np.array([model.config.label2id[r["label"]] for r in rows])
    own = score(true, predicted, 3, "macro_f1")
    reported = embedded.client.report(job.id)["seeds"][0]["test"]
    assert own["macro_f1"] == pytest.approx(reported["macro_f1"], abs=1e-4)
    assert own["accuracy"] == pytest.approx(reported["accuracy"], abs=1e-4)
    assert reported["macro_f1"] > 0.5, "the task can be learnt"
    texts = [r["text"] for r in rows[:20]]
    served = [p.label for p in embedded.client.predict(job.id, texts)]
    assert served == [model.config.id2label[int(p)] for p in predicted[:20]]


def test_the_same_request_again_takes_everything_from_the_cache(embedded: Stack, killed: tuple[Job, int]) -> None:
    begun = time.monotonic()
    again = embedded.client.wait(embedded.client.submit(JobSpec(**SPEC)).id)
    assert again.state == "succeeded"
    assert embedded.events(again.id, "workers.submitted") == []
    assert embedded.client.report(again.id) == embedded.client.report(killed[0].id)
    assert time.monotonic() - begun < 20


def test_a_running_job_is_cancelled_and_leaves_no_worker(embedded: Stack) -> None:
    spec = SPEC | {"seeds": (7,)}
    job = embedded.client.submit(JobSpec(**spec))
    deadline = time.monotonic() + 120
    while not embedded.training_workers():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    embedded.client.cancel(job.id)
    assert embedded.client.wait(job.id).state == "cancelled"
    embedded.wait_for_no_worker()


def test_one_of_two_workers_is_killed_and_both_go_on_from_the_checkpoint(embedded: Stack) -> None:
    member = b"ray::_Member"
    short = SPEC["overrides"] | {"joint.budget.steps": 300}
    job = embedded.client.submit(JobSpec(**SPEC | {"seeds": (11,), "workers": 2, "overrides": short}))
    step = kill_in_joint_stage(embedded, job.id, member)
    ended = embedded.client.wait(job.id)
    assert (ended.state, ended.attempt) == ("succeeded", 2)
    (resumed,) = embedded.events(job.id, "stage.resumed")
    assert (resumed.attempt, resumed.data["node"]) == (2, "joint.s11")
    assert resumed.data["step"] >= step > 0
    embedded.wait_for_no_worker(member)


@pytest.mark.opensearch
def test_the_same_job_through_opensearch_selects_and_scores_the_same(
    embedded: Stack, killed: tuple[Job, int], data: Path, opensearch_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running(tmp_path_factory.mktemp("opensearch") / "data", data, opensearch_url) as stack:
        job = stack.client.wait(stack.client.submit(JobSpec(**SPEC)).id)
        assert (job.state, job.attempt) == ("succeeded", 1)
        assert stack.selected(job.id) == embedded.selected(killed[0].id)
        # Killed and resumed on the one side, never stopped on the other: the same model to the last bit.
        assert stack.weights(job.id) == embedded.weights(killed[0].id)
