"""A gateway for tests of the dashboard: datasets, a corpus, and a job in every state."""

from __future__ import annotations

import itertools
import json
import math
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from services.common.catalog_records import CorpusVersion
from services.common.jobstore import CheckpointRef
from services.common.progress import progress_of
from services.common.situation import Situation
from tests.contract.gateway import Gateway, T, add_dataset, make_gateway
from tests.contract.job_results import make_export, make_linear, publish
from tests.factories import make_spec
from tests.redis_server import RedisServer
from tlm_core.artifacts import ManifestRef
from tlm_core.corpus.states import CorpusState, LoadState
from tlm_core.errors import NonFiniteLoss
from tlm_core.evaluation.combine import LINEAR
from tlm_core.evaluation.report import HELD_OUT, EncoderResult, LinearResult, job_report, report_meta, write_report
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord, Resolved
from tlm_core.tasks.task import Task, task_schema
from tlm_core.training.recipe import resolve

HOSTILE = """<script>document.title='owned'</script><img src=x onerror="document.title='owned'">"'&amp;"""
HOSTILE_DATASET = "films"  # it has hostile texts and labels
TOPICS = {
    "billing": "invoice charge payment amount twice month",
    "delivery": "parcel courier late address tracking window",
    "returns": "refund exchange label box send back",
    "account": "password login email reset locked profile",
    "fault": "broken screen noise battery stops crack",
    "praise": "thank great helpful friendly quick pleased",
}
LABELS = tuple(sorted(TOPICS))
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Contents:
    """The ids of the datasets and jobs. jobs: by name, which is the state for most of them."""

    dataset: str
    hostile_dataset: str
    jobs: dict[str, str]


def sentence(rng: random.Random, label: str) -> str:
    words = rng.sample(TOPICS[label].split(), 3)
    return rng.choice(
        ("my {} and the {} but no {}", "the {} about a {} was {}", "please see {} with {} after {}")
    ).format(*words)


def table(rows: int, seed: int, labels: tuple[str, ...] = LABELS) -> str:
    rng = random.Random(seed)
    lines = [
        f'"{sentence(rng, label)} no. {n}",{label}'
        for n, label in enumerate(rng.choices(labels, [9, 7, 5, 5, 3, 1], k=rows))
    ]
    return "text,label\n" + "\n".join(lines)


@contextmanager
def filled_gateway(folder: Path) -> Iterator[tuple[Gateway, Contents]]:
    """Yield a filled gateway. It has a separate Redis server, because other tests flush the shared one."""
    server = RedisServer(folder / "redis")
    server.folder.mkdir()
    server.start()
    client = server.client()
    try:
        gateway = make_gateway(client, folder / "gateway")
        yield gateway, fill(gateway)
    finally:
        client.close()
        server.kill()


def fill(gateway: Gateway) -> Contents:
    """Add all datasets, the corpus and the jobs. The gateway must not run yet."""
    sizes = {"train": 420, "validation": 90, "test": 120}
    dataset = add_dataset(
        gateway, "tickets", {name: table(rows, seed) for seed, (name, rows) in enumerate(sizes.items())}
    )
    quoted = HOSTILE.replace('"', '""')
    rows = "".join(f'"{quoted} good film {n}","{quoted}"\n"plain text {n}",other\n' for n in range(20))
    hostile = add_dataset(gateway, HOSTILE_DATASET, {"train": "text,label\n" + rows})
    make_corpus(gateway)
    jobs = {}
    for name in ("cancelled", "failed", "succeeded", "alone", "hostile", "running", "paused", "queued"):
        jobs[name] = make_job(gateway, name, hostile if name == "hostile" else dataset)
    return Contents(dataset, hostile, jobs)


def make_corpus(gateway: Gateway) -> None:
    catalog, artifacts = gateway.parts.catalog, gateway.parts.artifacts
    folder = gateway.root / "files" / "upload"
    folder.mkdir(parents=True)
    (folder / "x.txt").write_text("x")
    load = catalog.add_load(
        T, "manuals", "en", artifacts.write("default/uploads/1", folder, artifact="u", stage="corpus")
    )
    assert catalog.lease_load(T, load.id, "maker", 60)
    version = CorpusVersion(
        version="4f1c2a9be07d",
        language="en",
        passages=load.upload,
        count=93_518,
        state=CorpusState.READY,
        created_at=load.created_at,
    )
    over = load.model_copy(
        update={"state": LoadState.READY, "version": version.version, "done": 93_518, "total": 93_518}
    )
    catalog.save_load(over, "maker", version)


def make_job(gateway: Gateway, name: str, dataset: str) -> str:
    """Add a job in the state `name`. `alone` and `hostile` have succeeded."""
    store, record = gateway.parts.jobs, gateway.parts.catalog.dataset(T, dataset)
    alone = name == "alone"
    changes: dict[str, Any] = {"selection.selector": "none"} if alone else {}
    if name in ("running", "paused", "failed"):
        # Another recipe, so that they do not reuse the artifacts of the succeeded job.
        changes = {"joint.rho2": {"running": 2, "paused": 3, "failed": 4}[name]}
    spec = make_spec(
        dataset=record.name,
        corpus=None if alone else "manuals",
        overrides=changes,
        seeds=SEEDS if name == "succeeded" else (0,),
        metadata={"team": HOSTILE} if name == "hostile" else {},
    )
    resolved = Resolved(
        dataset_id=record.id,
        dataset=record.raw,
        corpus_name=None if alone else "manuals",
        corpus_version=None if alone else "4f1c2a9be07d",
        recipe=resolve("fast", "tiny", changes),
    )
    job, _ = store.submit(T, spec, resolved)
    if name == "queued":
        return job.id
    if name == "cancelled":
        store.cancel(T, job.id)
        return job.id
    claimed = store.claim("maker", 3_600)
    assert claimed is not None and claimed.id == job.id
    begin(gateway, claimed)
    match name:
        case "succeeded" | "alone" | "hostile":
            finish(gateway, claimed, (HOSTILE, "other") if name == "hostile" else LABELS, skill=0.5 if alone else 0.8)
        case "failed":
            store.fail(
                claimed,
                "maker",
                NonFiniteLoss("The loss is not finite at step 120. Lower the learning rate.", step=120),
            )
        case "paused":
            report_progress(gateway, claimed, 0.3)
            store.pause(T, job.id)
            store.confirm_paused(store.get(T, job.id), "maker")
        case "running":
            report_progress(gateway, claimed, 0.45)
    return job.id


def begin(gateway: Gateway, job: JobRecord) -> None:
    """Publish the stages before training, and report the first lines of a worker."""
    for node in plan_of(job).nodes:
        if node.stage.name not in ("validate", "baseline", "select", "self_train", "prepare"):
            break
        if node.name in published_of(gateway, job):
            continue
        folder = gateway.root / "files" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        if node.stage.name == "validate":
            tickets((HOSTILE, "other") if job.spec.dataset == HOSTILE_DATASET else LABELS).write(folder)
        elif node.stage.name == "baseline":
            hostile = {HOSTILE: ["plain"], "other": ["text"]}
            usual = {label: TOPICS[label].split() for label in LABELS}
            make_linear(folder, hostile if job.spec.dataset == HOSTILE_DATASET else usual)
        elif node.stage.name == "select":
            make_selection(folder, HOSTILE if job.spec.dataset == HOSTILE_DATASET else "")
        else:
            (folder / "data.json").write_text(json.dumps({"job": job.id}))
        publish(gateway.parts.jobs, gateway.parts.artifacts, job, node.name, folder)
    lines = [f"step {step}: mlm {9 * 0.99**step:.3f}, task {1.8 * 0.98**step:.3f}" for step in range(0, 60, 5)]
    gateway.parts.jobs.report(
        T,
        job.id,
        job.attempt,
        logs=["tokenizer: 8,192 tokens", *([HOSTILE] if job.spec.dataset == HOSTILE_DATASET else []), *lines],
        events=[("stage.started", {"node": "joint.s0", "stage": "joint"})],
    )


def report_progress(gateway: Gateway, job: JobRecord, share: float) -> None:
    """Report points, progress and a checkpoint of a joint stage. share: the finished part, from 0 to 1."""
    nodes = plan_of(job).nodes
    joint = next(node for node in nodes if node.stage.name == "joint")
    total = 900
    step = round(total * share)
    seconds = {"joint": 126.0, "finetune": 30.0, "prepare": 4.0, "select": 3.0, "evaluate": 2.0, "export": 9.0}
    situation = Situation.read(gateway.parts.jobs, job)
    weighed = job.resolved.model_copy(update={"node_seconds": {n.name: seconds.get(n.stage.name, 1.0) for n in nodes}})
    situation = replace(situation, job=job.model_copy(update={"resolved": weighed}))
    progress = progress_of(
        situation, joint, step=step, total=total, rate=15_320, unit="tokens", eta_seconds=(total - step) * 0.14
    )
    shares = ({**point, "learning_rate": 3e-3 * point["rate"]} for point in loss_curve(total, step, 0))
    measured = (
        {"step": each["step"], "score": each["score"], "validation_loss": each["loss"]}
        for each in validations(range(180, step + 1, 180), 225, 0.8, 0)
    )
    points = [{"node": joint.name, "stage": "joint", **point} for point in (*shares, *measured)]
    gateway.parts.jobs.report(T, job.id, job.attempt, metrics=points, progress=progress)
    folder = gateway.root / "files" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    (folder / "state.bin").write_bytes(b"x" * 10_000)
    digests = {n: ref.digest for n, ref in published_of(gateway, job).items()}
    artifact = joint.artifact_id(digests, job.id)
    ref = gateway.parts.artifacts.write(
        f"default/checkpoints/{job.id}", folder, artifact=f"{artifact}/200", stage="checkpoint"
    )
    gateway.parts.jobs.publish_checkpoint(
        T,
        artifact,
        CheckpointRef(
            ref=ref, step=200, node=joint.name, job=job.id, attempt=job.attempt, metrics={"mlm": 5.1, "task": 0.8}
        ),
    )


def published_of(gateway: Gateway, job: JobRecord) -> dict[str, ManifestRef]:
    return Situation.read(gateway.parts.jobs, job).done


def loss_curve(total: int, until: int, seed: int) -> list[dict[str, Any]]:
    """Return metric points as the training loop reports them: noisy falling losses, learning rate and throughput."""
    rng = random.Random(seed)
    return [
        {
            "step": step,
            "tokens": step * 2_200,
            "mlm": 3.4 + 5.6 * math.exp(-step / (0.22 * total)) + rng.gauss(0, 0.05),
            "task": 0.25 + 1.5 * math.exp(-step / (0.15 * total)) + rng.gauss(0, 0.04) if step % 20 == 0 else None,
            "rate": min(1.0, step / (0.05 * total)) * (1 - step / total),
            "gradient_norm": 1.0,
            "tokens_per_second": 15_000 + rng.gauss(0, 350),
        }
        for step in range(5, until + 1, 5)
    ]


def validations(steps: range, pace: float, skill: float, seed: int) -> list[dict[str, Any]]:
    """Return validations as a history has them, with scores that rise to `skill`. pace: steps to 63 % of the rise."""
    return [
        {
            "step": step,
            "score": skill * (1 - math.exp(-step / pace - 0.25)) + 0.01 * seed,
            "accuracy": 0.5,
            "loss": 0.5 + math.exp(-step / pace),
        }
        for step in steps
    ]


def finish(gateway: Gateway, job: JobRecord, labels: tuple[str, ...], skill: float) -> None:
    store, artifacts = gateway.parts.jobs, gateway.parts.artifacts
    report, outputs = make_report(labels, job.spec.seeds, skill)
    done = published_of(gateway, job)
    for node in plan_of(job).nodes:
        if node.name in done:
            continue
        folder = gateway.root / "files" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        if node.stage.name in ("joint", "finetune"):
            seed = int(node.name.partition(".s")[2])
            total = 900 if node.stage.name == "joint" else 140
            steps, pace = (range(180, 901, 180), 225) if node.stage.name == "joint" else (range(0, 141, 14), 35)
            history = {
                "points": loss_curve(total, total, seed),
                "evaluations": validations(steps, pace, skill, seed),
                "best": None,
            }
            (folder / "history.json").write_text(json.dumps(history | {"job": job.id}))
        elif node.stage.name == "evaluate":
            write_report(folder, report, outputs)
        else:
            make_model(folder, labels)
        done[node.name] = publish(store, artifacts, job, node.name, folder)
    digests = {name: ref.digest for name, ref in done.items()}
    result = {
        "artifacts": {
            node.name: {"artifact": node.artifact_id(digests, job.id), "ref": done[node.name].model_dump()}
            for node in plan_of(job).nodes
        },
        "summary": report_meta(report),
    }
    store.finish(job, "maker", result)


def make_report(
    labels: tuple[str, ...], seeds: tuple[int, ...], skill: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the report of the evaluate stage for random outputs, and the outputs of the models.

    skill: the share of rows for which the models predict the true label.
    """
    task, rng = tickets(labels), np.random.default_rng(1)

    cost = make_cost(len(seeds))
    of_linear = noisy_splits(task, skill - 0.1, rng)
    facts = {"temperature": 1.0, "cost": cost["prepare"], "top_ngrams": {name: [name, "my parcel"] for name in labels}}
    linear = LinearResult(of_linear | {HELD_OUT: of_linear["train"]}, facts)
    encoders = make_encoders(task, seeds, skill - 0.05, rng)
    report, predictions = job_report(task, encoders, {LINEAR: linear}, cost, ensemble=len(seeds) > 1)
    report["warnings"] = [
        "7 of 120 test texts are longer than 8 windows of 512 tokens; the model does not read their ends."
    ]
    rows = [
        {"split": split, "row": row, "label": labels[0], "suggested": labels[1], "score": score}
        for split, row, score in (("train", 3, 0.93), ("train", 2, 0.92), ("train", 1, 0.91), ("validation", 999, 0.7))
    ]
    return report | {"suspects": {"neighbors": False, "total": 7, "rows": rows}}, predictions


def make_encoders(task: Task, seeds: tuple[int, ...], skill: float, rng: np.random.Generator) -> list[EncoderResult]:
    return [EncoderResult(seed, noisy_splits(task, skill, rng), {"score": 0.7}, {}) for seed in seeds]


def noisy_splits(task: Task, skill: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {split: noisy_outputs(task.targets(split), len(task.labels), skill, rng) for split in task.splits}


def noisy_outputs(truth: np.ndarray, count: int, skill: float, rng: np.random.Generator) -> np.ndarray:
    """Return logits, [rows, classes]. In a share `skill` of the rows or more, the true label has the largest."""
    guess = np.where(rng.random(len(truth)) < skill, truth, rng.choice(count, len(truth)))
    outputs = rng.normal(0, 1, (len(truth), count)).astype(np.float32)
    outputs[np.arange(len(truth)), guess] += 6
    return outputs


def make_cost(seeds: int) -> dict[str, dict[str, float]]:
    """Return the cost of each stage for this number of seeds."""
    part = seeds / len(SEEDS)
    cost = {
        "prepare": {"flops": 0.0, "tokens": 2_140_332, "seconds": 6.2},
        "joint": {"flops": 3.1e13 * part, "tokens": 6_002_112 * part, "seconds": 98.4 * part},
        "finetune": {"flops": 1.0e13 * part, "tokens": 812_007 * part, "seconds": 44.9 * part},
        "refit": {"flops": 4.2e13 * part, "tokens": 7_012_415 * part, "seconds": 145.2 * part},
    }
    return {stage: {**values, "gpu_seconds": 0.0} for stage, values in cost.items()}


def tickets(labels: tuple[str, ...]) -> Task:
    """Return the same task for each call. Three test texts are in train."""
    rng, weights = np.random.default_rng(0), np.arange(len(labels), 0, -1)
    words = random.Random(0)
    targets = {"train": np.arange(60) % len(labels)} | {
        split: rng.choice(len(labels), rows, p=weights / weights.sum())
        for split, rows in (("validation", 90), ("test", 120))
    }
    texts = {
        "train": [sentence(words, LABELS[n % len(LABELS)]) for n in range(60)],
        "validation": [f"an example no. {n}" for n in range(90)],
        "test": [f"my parcel is late no. {n}" for n in range(120)],
    }
    texts["test"][3:6] = texts["train"][3:6]
    tables = {
        split: pa.table([range(1, len(texts[split]) + 1), texts[split], targets[split]], task_schema(False))
        for split in targets
    }
    return Task("tickets", labels, "macro_f1", False, "en", tables)


def make_selection(folder: Path, hostile: str, count: int = 60) -> None:
    rng = random.Random(1)
    faults, papers = TOPICS["fault"].split(), TOPICS["billing"].split()
    ids = [f"{n:032x}" for n in range(count)]
    texts = [
        f"{sentence(rng, rng.choice(LABELS)).capitalize()}. When it is the {rng.choice(faults)}, "
        f"write to the desk and name the {rng.choice(papers)} on the form."
        for _ in ids
    ]
    texts[2] = hostile or texts[2]
    passages = {
        "id": ids,
        "text": texts,
        "source": [rng.choice(("handbook", "forum", hostile or "wiki")) for _ in ids],
        "rank": pa.array([1 + n // 4 for n in range(count)], pa.int32()),
        "score": pa.array([24 - n / 5 for n in range(count)], pa.float32()),
    }
    pq.write_table(pa.table(passages), folder / "passages.parquet")
    retrieved = [(name, rng.randint(1, 60)) for name in ids for _ in range(rng.randint(1, 9))]
    provenance = {
        "passage_id": [name for name, _ in retrieved],
        "train_row": pa.array([row for _, row in retrieved], pa.int64()),
        "rank": pa.array([1] * len(retrieved), pa.int32()),
        "score": pa.array([9.0] * len(retrieved), pa.float32()),
    }
    pq.write_table(pa.table(provenance), folder / "provenance.parquet")
    facts = {
        "selector": "bm25",
        "params": {"selector": "bm25", "top_k": 30, "max_passages": None, "leak_filter": True},
        "passages": count,
        "words": 1_380,
        "queries": {
            "train_rows": 420,
            "without_hit": {"count": 2, "rows": [7, 31]},
            "cut_by_budget": 0,
            "cut_by_query_cap": 0,
        },
        "leaks": {"passages": 2, "texts": 1},
        "labels": label_overlap(),
        "corpus": {"name": "manuals", "version": "4f1c2a9be07d", "passages": 93_518},
        "sources": [
            {"source": "handbook", "passages": 33, "share": 0.55},
            {"source": hostile or "wiki", "passages": 15, "share": 0.25},
        ],
        "other_sources": {"sources": 3, "passages": 12},
    }
    (folder / "selection.json").write_text(json.dumps(facts))
    leaks = {
        "passage_id": ["a", "b", "b"],  # b contains both texts of a pair
        "split": ["test"] * 3,
        "row": pa.array([3] * 3, pa.int64()),
        "rule": ["whole"] * 3,
    }
    pq.write_table(pa.table(leaks), folder / "leaks.parquet")


def label_overlap() -> dict[str, Any]:
    rng = random.Random(2)
    jaccard = [[1.0] * len(LABELS) for _ in LABELS]
    for a, b in itertools.combinations(range(len(LABELS)), 2):
        jaccard[a][b] = jaccard[b][a] = round(rng.random() * 0.3, 6)
    return {"names": list(LABELS), "passages": [40, 31, 22, 19, 12, 3], "jaccard": jaccard}


def make_model(folder: Path, labels: tuple[str, ...]) -> None:
    """Write an exported model that assigns the words of each topic to its label."""
    make_export(folder, size=200_000)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {
        word: 4 + n for n, word in enumerate(word for label in LABELS for word in TOPICS[label].split())
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "labels.json").write_text(json.dumps({"labels": labels, "max_length": 32, "pair": False}))
    weights = np.zeros((len(words), len(labels)), np.float32)
    for number, label in enumerate(LABELS):
        for word in TOPICS[label].split():
            weights[words[word], number % len(labels)] = 1.5
    model = onnx.load(folder / "model.onnx")
    next(tensor for tensor in model.graph.initializer if tensor.name == "weights").CopyFrom(
        numpy_helper.from_array(weights, "weights")
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(labels)
    onnx.save(model, folder / "model.onnx")
