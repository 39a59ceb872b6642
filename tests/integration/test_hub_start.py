"""`hub:ID` of a recipe from the cache of the hub library, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM

from tests.support import ROOT
from tests.unit.training.test_published import SIZES
from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.training.recipe import resolve
from tlm_core.training.tokenizer import load_published, train_wordpiece, write_folder

PROGRAM = """
import sys
from pathlib import Path
from tlm_core.errors import TLMError
from tlm_core.training.published import load
from tlm_core.training.tokenizer import load_published
for source in sys.argv[2:]:
    try:
        shape, given = load(source, labels=3, vocab=300, max_length=48, dropout=0.0)
        _, specials = load_published(source, Path(sys.argv[1]), 48)
        print(shape.layers, "vocabulary.dense.weight" in given, sorted(specials))
    except TLMError as error:
        print(type(error).__name__, error.message)
"""
COMMIT = "a" * 40


def test_encoder_comes_from_the_cache_or_raises_not_found(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--made--encoder"
    snapshot = repository / "snapshots" / COMMIT
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(snapshot)
    write_folder(train_wordpiece(lambda: ["some text"], 300, lowercase=True), snapshot, 48, types=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    sources = ["hub:made/encoder", f"hub:made/encoder@{COMMIT}", "hub:made/encoder@none", "hub:made/missing"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "copy"), *sources],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cached, pinned, other, missing = done.stdout.splitlines()[:4]
    assert cached == pinned == "2 True ['cls', 'mask', 'pad', 'sep', 'unk']"
    assert other.startswith("Unavailable Cannot fetch the model 'hub:made/encoder@none' now")
    assert missing.startswith("Unavailable Cannot fetch the model 'hub:made/missing' now")


def test_hub_id_never_reads_a_local_folder(tmp_path: Path) -> None:
    write_folder(train_wordpiece(lambda: ["some text"], 300, lowercase=True), tmp_path / "own", 48, types=True)
    with pytest.raises(NotFound, match="Invalid hub model"):
        load_published(f"hub:{tmp_path / 'own'}", tmp_path / "copy", 48)
    for key in ("model.init", "tokenizer.source"):
        with pytest.raises(InvalidRecipe, match=key):
            resolve("fast", "tiny", {key: f"hub:{tmp_path / 'own'}"})
