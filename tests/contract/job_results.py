"""Publish artifacts for the stages of a job, like a worker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from services.common.jobstore import JobStore
from services.common.situation import Situation, folder_prefix
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.evaluation.combine import Scales
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.linear.graph import write_linear
from tlm_core.linear.model import Features, LinearModel
from tlm_core.selection.output import LEAKS
from tlm_core.serving import METADATA, MODEL

LABELS = ("bad", "good")
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5, "film": 6}


def publish(store: JobStore, artifacts: ArtifactStore, job: JobRecord, node_name: str, files: Path) -> ManifestRef:
    """Publish `files` as the artifact of a node whose inputs are done. The job must be running."""
    node = plan_of(job).node(node_name)
    digests = {name: ref.digest for name, ref in Situation.read(store, job).done.items()}
    artifact = node.artifact_id(digests, job.id)
    ref = artifacts.write(
        f"{folder_prefix(job, artifact)}{job.attempt}", files, artifact=artifact, stage=node.stage.name
    )
    return store.publish(
        job.tenant, job.id, job.attempt, artifact=artifact, ref=ref, node=node_name, stage=node.stage.name
    )


def complete(
    store: JobStore,
    artifacts: ArtifactStore,
    job: JobRecord,
    root: Path,
    *,
    up_to: str = "export",
    report: Mapping[str, object] = MappingProxyType({"test": {"macro_f1": 0.5}}),
) -> dict[str, ManifestRef]:
    """Publish an artifact for each node up to `up_to`. Files that the API reads have their real format."""
    done = {}
    for node in plan_of(job).nodes:
        folder = root / "files" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        match node.stage.name:
            case "select":
                make_selection(folder)
            case "evaluate":
                (folder / "report.json").write_text(json.dumps(dict(report)))
            case "export":
                make_export(folder)
                (folder / "linear").mkdir()  # it learned from more rows than the baseline
                make_linear(folder / "linear", {"bad": ["bad", "awful"], "good": ["good"]})
            case "baseline":
                make_linear(folder, {"bad": ["bad"], "good": ["good"]})
            case _:
                (folder / "x.json").write_text(json.dumps({"node": node.name}))
        done[node.name] = publish(store, artifacts, job, node.name, folder)
        if node.name == up_to:
            break
    return done


def make_selection(folder: Path, count: int = 30) -> None:
    """Write a selection of `count` passages. Two train rows retrieved each passage with an odd number."""
    ids = [f"{n:032x}" for n in range(count)]
    passages = {
        "id": ids, "text": [f"passage {n} <b>&" for n in range(count)], "source": ["docs"] * count,
        "rank": pa.array(range(1, count + 1), pa.int32()), "score": pa.array([9.0] * count, pa.float32()),
    }  # fmt: skip
    pq.write_table(pa.table(passages), folder / "passages.parquet")
    retrieved = [(name, row) for n, name in enumerate(ids) for row in ([1, 2] if n % 2 else [3])]
    provenance = {
        "passage_id": [name for name, _ in retrieved], "train_row": pa.array([row for _, row in retrieved], pa.int64()),
        "rank": pa.array([1] * len(retrieved), pa.int32()), "score": pa.array([9.0] * len(retrieved), pa.float32()),
    }  # fmt: skip
    pq.write_table(pa.table(provenance), folder / "provenance.parquet")
    facts = {
        "selector": "given", "params": {"selector": "given", "leak_filter": True}, "passages": count,
        "words": 3 * count, "queries": None,
        "labels": None, "leaks": {"passages": 0, "texts": 0}, "other_sources": {"sources": 0, "passages": 0},
        "sources": [{"source": "docs", "passages": count, "share": 1.0}],
    }  # fmt: skip
    (folder / "selection.json").write_text(json.dumps(facts))
    pq.write_table(LEAKS.empty_table(), folder / "leaks.parquet")


def make_export(folder: Path, *, pair: bool = False, size: int = 0) -> None:
    """Write an exported model that counts the words 'good' and 'bad'. size: bytes of an additional file."""
    model = folder / "model"
    model.mkdir(parents=True)
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    (model / "weights.bin").write_bytes(np.random.default_rng(0).bytes(size))
    (folder / "labels.json").write_text(json.dumps({"labels": LABELS, "max_length": 8, "pair": pair}))
    weights = np.zeros((len(VOCABULARY), 2), np.float32)
    weights[4], weights[5] = (0, 2), (2, 0)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", "input_ids"], ["scores"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
            helper.make_node("Mul", ["scores", "wide"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
        ],
        "classifier",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"])
            for n in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )


def make_linear(folder: Path, words: Mapping[str, Sequence[str]]) -> None:
    """Write what the baseline stage writes for predictions: a linear model that assigns words to labels."""
    features, _ = Features.learn([(word,) for of_label in words.values() for word in of_label], ["words"])
    names = features.word_names()
    weights = np.zeros((len(names), len(words)), np.float32)
    for number, of_label in enumerate(words.values()):
        weights[[names.index(word) for word in of_label], number] = 4.0
    model = LinearModel(features, weights, np.zeros(len(words), np.float32))
    model.write(folder)
    write_linear(model, Scales(linear=1.0, encoder=0.0), folder / MODEL)
    labels = {"labels": list(words), "pair": False, "task_type": "single_label", "model": "linear"}
    (folder / METADATA).write_text(json.dumps(labels))
