"""`model.init: hub:ID` out of the hub library's own cache, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from transformers import BertConfig, BertForMaskedLM

from tests.support import ROOT
from tests.unit.training.test_published import SIZES

PROGRAM = """
from tlm_core.errors import TLMError
from tlm_core.training.published import load
for source in ("hub:made/encoder", "hub:made/missing", "hub:not an id"):
    try:
        shape, given = load(source, labels=3, vocab=300, max_length=48, dropout=0.0)
        print(shape.layers, "vocabulary.dense.weight" in given)
    except TLMError as error:
        print(type(error).__name__, error.message)
"""


def test_an_encoder_is_taken_from_the_cache_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--made--encoder"
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, missing, wrong = done.stdout.splitlines()[:3]
    assert found == "2 True"
    assert missing.startswith("Unavailable 'hub:made/missing' cannot be fetched now")
    assert wrong.startswith("NotFound there is no model 'hub:not an id'")
