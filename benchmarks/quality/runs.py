"""Tasks, selections and outcomes of the quality runs, made once and kept under build/quality."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import remark
from benchmarks.shared import shared_data
from tlm_core.artifacts import canonical_json
from tlm_core.corpus.read import read_sources
from tlm_core.selection.interface import Corpus
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection
from tlm_core.selection.tantivy_index import TantivyIndex
from tlm_core.tasks.task import Task
from tlm_core.tasks.validate import write_task
from tlm_core.training.local import run_chain
from tlm_core.training.recipe import Recipe

FOLDER = Path("build/quality")
_BATCH = 4096


def asked(description: str | None) -> tuple[argparse.Namespace, dict[str, Any], str]:
    """Tasks and seeds that the command line gives, what it changes of all recipes, and the name of those changes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("tasks", nargs="+", help="folders under tasks/ of the shared data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    given = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    return given, changes, " ".join(given.set)


def made_task(name: str) -> Path:
    """Folder of a task of the shared data, as `validate` leaves it."""
    task = FOLDER / "task" / name
    if not (task / "report.json").exists():
        shutil.rmtree(task, ignore_errors=True)
        write_task(shared_data() / "tasks" / name, task)
    return task


def selected(name: str, params: Selection) -> tuple[Path, Path]:
    """Folders of a task of the shared data and of its selection from the whole shared corpus."""
    task = made_task(name)
    folder = FOLDER / "selection" / f"{name}-{key_of(params.model_dump(mode='json'))}"
    if not (folder / "selection.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        parts = folder.with_suffix(".parts")
        corpus = Corpus("shared", "1", corpus_index())
        select(Task.read(task), corpus, params, folder, seed=0, scratch=parts)
        shutil.rmtree(parts, ignore_errors=True)
    return task, folder


def key_of(asked: Any) -> str:
    """What a request is kept under: twelve hexadecimal digits."""
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:12]


def outcome(name: str, what: str, task: Path, selection: Path | None, recipe: Recipe, seed: int) -> dict[str, float]:
    """Best validation score, the test score of that model, and seconds to it by the clock, from the selection on.

    what: the run's name; an outcome under that name is not computed again for the same recipe and selection.
    """
    key = key_of({"recipe": recipe.model_dump(mode="json"), "selection": selection and selection.name, "seed": seed})
    kept = FOLDER / "outcomes" / name / f"{what}-{key}.json"
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    remark(f"{name}: {what}")
    folder = kept.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    took: dict[str, float] = {}
    done = run_chain(task, selection, recipe, [seed], folder, on_done=took.__setitem__)
    report = json.loads((done["evaluate"] / "report.json").read_text(encoding="utf-8"))
    (entry,) = report["seeds"]
    found = {
        "validation": entry["chosen"]["score"],
        "test": entry["test"]["value"],
        "test_accuracy": entry["test"]["accuracy"],
        "seconds": sum(seconds for node, seconds in took.items() if node not in ("evaluate", "export")),
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    shutil.rmtree(folder)
    return found


def corpus_index() -> TantivyIndex:
    """The whole shared corpus, indexed once."""
    folder = FOLDER / "index"
    if not (folder / "index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        index = TantivyIndex.create(folder, "en")
        passages = read_sources([str(shared_data() / "corpus")])
        while batch := list(itertools.islice(passages, _BATCH)):
            index.add(batch)
        index.commit()
    return TantivyIndex.open(folder)
