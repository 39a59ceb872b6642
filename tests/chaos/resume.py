"""`python -m tests.chaos.resume [--run RUN | --all] [--kills N] [--ray]`: real training that is killed and resumes.

The worker is killed N times in each stage that writes checkpoints. The files of each stage must equal those of a job
that nobody interrupts, byte for byte. With --ray, the killed worker runs on a real Ray node.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from services.common.situation import Situation
from tests.chaos import processes
from tests.chaos.harness import Chaos, say
from tests.chaos.ray import send
from tests.contract.gateway import T
from tests.e2e.stack import OVERRIDES
from tests.support import wait_for
from tlm_core.jobs.plan import Node, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import TERMINAL, State

# Run → the kind of its job, the stages to kill, and the options.
RUNS: dict[str, tuple[str, tuple[str, ...], dict[str, object]]] = {
    "train": ("train", ("joint", "finetune"), {}),
    "refit": ("train", ("refit",), {}),
    "learning_curve": (
        "learning_curve",
        ("bilstm",),
        {"models": ["bilstm"], "sizes": [0.5, 1.0], "lstm": {"layers": 1, "hidden": 64}},
    ),
    "prune": ("prune", ("ticket",), {"levels": [0.5], "tickets": ["winning"]}),
    "share_tickets": ("share_tickets", ("share",), {"others": ["more"]}),
}
_RECIPE = {name: value for name, value in OVERRIDES.items() if not name.startswith("selection.")} | {
    "selection.selector": "none", "joint.budget.steps": 1000, "finetune.epochs": 300, "finetune.evaluations": 30,
    "checkpoint_steps": 2,
}  # fmt: skip
_PATIENCE, _PATIENCE_PER_KILL = 240.0, 40.0


def run(folder: Path, name: str, kills: int, rng: random.Random, *, ray: bool = False) -> dict[str, dict[str, str]]:
    """Train with `kills` kills in each stage of RUNS. Return node → file → SHA-256."""
    _, stages, _ = RUNS[name]
    times = {"poll_seconds": "0.2"}  # Other times: the defaults, because imports of torch take seconds.
    chaos = Chaos(folder, coordinators=1, gateways=1, times=times, ray=ray)
    with chaos.running():
        for dataset in ("toy", "more"):
            chaos.add_dataset(dataset)
        job = _submit(chaos, name)
        done, deadline = dict.fromkeys(stages, 0), time.monotonic() + _PATIENCE + 2 * kills * _PATIENCE_PER_KILL
        nodes = [node for node in plan_of(chaos.store.get(T, job)).nodes if node.stage.name in stages]
        while len(files := _files(chaos, record := chaos.store.get(T, job), nodes)) < len(nodes):
            assert record.state not in TERMINAL and time.monotonic() < deadline, (record.state, record.error, done)
            stage = _training_stage(chaos, record)
            if done.get(stage, kills) < kills:
                time.sleep(rng.uniform(0.0, 0.6))
                for worker in chaos.cluster.running():
                    send(worker.process, signal.SIGKILL)
                done[stage] += 1
                wait_for(lambda now=record: chaos.store.get(T, job).attempt > now.attempt, 120)  # type: ignore[misc]
            time.sleep(0.05)
        say(f"attempt {record.attempt}, {record.failures} failures, killed {done}")
        assert min(done.values()) >= kills, "A stage ended before its kills. Train for more steps."
        return files


def _submit(chaos: Chaos, name: str) -> str:
    kind, _, options = RUNS[name]
    with httpx.Client(timeout=30, trust_env=False) as client:
        own = _RECIPE if name == "train" else _RECIPE | {"joint.enabled": False, "finetune.epochs": 900}
        if name == "refit":  # With one validation, `refit` trains for as many epochs as `finetune`.
            own |= {"finetune.evaluations": 1}
        body = {"kind": kind, "dataset": "toy", "overrides": own, "options": options, "max_attempts": 10}
        answer = chaos.request(client, "POST", "/v1/jobs", random.Random(0), json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _training_stage(chaos: Chaos, record: JobRecord) -> str:
    """Return the stage that has written a checkpoint in this attempt and still runs, or an empty string."""
    events = chaos.store.events(T, record.id, after=max(0, record.last_event - 20))
    checkpoints = [
        event for event in events if event.type == "checkpoint.published" and event.attempt == record.attempt
    ]
    if record.state is not State.RUNNING or not checkpoints:
        return ""
    node = str(checkpoints[-1].data["node"])
    ended = node in Situation.read(chaos.store, record).done
    return "" if ended else plan_of(record).node(node).stage.name


def _files(chaos: Chaos, record: JobRecord, nodes: Sequence[Node]) -> dict[str, dict[str, str]]:
    """Return node → file → SHA-256 for the finished nodes. history.json does not count, because it has seconds."""
    done = Situation.read(chaos.store, record).done
    return {
        node.name: {
            file.name: file.sha256
            for file in chaos.artifacts.manifest(done[node.name]).files
            if file.name != "history.json"
        }
        for node in nodes
        if node.name in done
    }


def differs(name: str, options: argparse.Namespace) -> bool:
    """Run with and without kills. Return whether a file differs."""
    folder = Path(tempfile.mkdtemp(prefix="resume-"))
    say(f"{name}, seed {options.seed}, logs in {folder}")
    whole = run(folder / "whole", name, 0, random.Random())
    killed = run(folder / "killed", name, options.kills, random.Random(options.seed), ray=options.ray)
    for node in whole:
        different = sorted(file for file in whole[node] if whole[node][file] != killed[node].get(file))
        say(f"{node}: {len(whole[node])} files, different: {', '.join(different) or 'none'}")
    return whole != killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=RUNS, default="train")
    parser.add_argument("--all", action="store_true", help="all runs, one after another")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ray", action="store_true", help="run the killed workers on a real Ray node")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    processes.preload("tlm_core.training.encoder_stages", "tlm_core.training.evaluate", "tlm_core.training.export")
    return int(max([differs(name, options) for name in (RUNS if options.all else [options.run])]))


if __name__ == "__main__":
    sys.exit(main())
