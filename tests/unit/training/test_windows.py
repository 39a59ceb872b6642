"""Texts longer than a row become windows, from the prepare stage to predictions of the exported model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from services.api.predict import load_model as load_export
from tests.unit.training.made import made_task, run_chain, tiny
from tlm_core.stages import PREPARE
from tlm_core.tasks.task import Task
from tlm_core.training.evaluate import predict
from tlm_core.training.local import run_stage
from tlm_core.training.params import PrepareParams
from tlm_core.training.prepared import FinetuneBatches, Prepared, Split, task_batch
from tlm_core.training.state import load_model
from tlm_core.training.store import TokenStore

LENGTH, WINDOWS = 16, 3
RECIPE = tiny(
    model__max_length=LENGTH, model__windows=WINDOWS, joint__enabled=False, finetune__max_steps=6,
    finetune__optimizer__lr=1e-2, precision="fp32",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("chain")
    task = made_task(folder / "task", (40, 20, 20), longest=60)
    return {"task": task, **run_chain(task, None, RECIPE, [0], folder / "run")}


@pytest.fixture
def prepared(chain: Mapping[str, Path]) -> Prepared:
    return Prepared(chain["prepare"])


def whole(chain: Mapping[str, Path], split: str) -> list[list[int]]:
    """Return the token ids of each text without special tokens."""
    tokenizer = Tokenizer.from_file(str(chain["prepare"] / "tokenizer" / "tokenizer.json"))
    return [e.ids for e in tokenizer.encode_batch(Task.read(chain["task"]).texts(split), add_special_tokens=False)]


def windows_of(split: Split, text: int) -> list[list[int]]:
    return [split.store[number].tolist() for number in range(split.begins[text], split.begins[text + 1])]


def test_windows_cover_a_text_with_an_overlap_of_a_quarter(chain: Mapping[str, Path], prepared: Prepared) -> None:
    split, several = prepared.split("train"), 0
    body, overlap = LENGTH - 2, LENGTH // 4
    for text, tokens in enumerate(whole(chain, "train")):
        windows = windows_of(split, text)
        assert all(len(window) <= LENGTH for window in windows) and len(windows) <= WINDOWS
        assert len({(window[0], window[-1]) for window in windows}) == 1, "each has the special tokens"
        together = windows[0][1:-1]
        for before, window in pairwise(windows):
            assert window[1 : 1 + overlap] == before[-1 - overlap : -1]
            together += window[1 + overlap : -1]
        several += len(windows) > 1
        assert together == tokens[: WINDOWS * body - (WINDOWS - 1) * overlap]
    assert several > 10 and len(split) == 40 < len(split.store)
    assert prepared.facts["windows"]["train"] == len(split.store)


def test_one_window_truncates_a_text(chain: Mapping[str, Path], prepared: Prepared, tmp_path: Path) -> None:
    params = PrepareParams.of(tiny(model__max_length=LENGTH, model__windows=1))
    single = Prepared(run_stage(PREPARE, {"task": chain["task"]}, params, tmp_path / "prepared")).split("train")
    several = prepared.split("train")
    assert len(single.store) == len(single) == len(several)
    assert [windows_of(single, text)[0] for text in range(40)] == [windows_of(several, text)[0] for text in range(40)]


def test_pairs_are_truncated_to_one_window(tmp_path: Path) -> None:
    task = made_task(tmp_path / "task", pair=True, longest=60)
    prepared = Prepared(run_stage(PREPARE, {"task": task}, PrepareParams.of(RECIPE), tmp_path / "prepared"))
    split = prepared.split("train")
    assert len(split.store) == len(split) and split.store.lengths.max() == LENGTH
    assert prepared.max_windows == 1


def test_epoch_trains_on_one_window_of_each_text_in_turn(prepared: Prepared) -> None:
    batches, split = FinetuneBatches(prepared, 10, seed=0), prepared.split("train")
    epochs = [[batches(4 * epoch + step, 0.0) for step in range(4)] for epoch in range(6)]
    drawn = [np.concatenate([batch.rows.documents for batch in epoch]) for epoch in epochs]
    for windows in drawn:
        assert sorted(split.texts[windows]) == list(range(40))
    assert set(np.concatenate(drawn)) == set(range(len(split.store))), "6 epochs contain all of 1 to 3 windows"
    for batch in epochs[0]:
        texts = split.texts[batch.rows.documents]
        np.testing.assert_array_equal(batch.labels, split.labels[texts])
    assert set(batch.sources()) == {f"train:{row}" for row in split.rows[texts]}


def test_logits_of_a_text_are_the_mean_over_its_windows(chain: Mapping[str, Path], prepared: Prepared) -> None:
    model, split = load_model(chain["finetune.s0"]), prepared.split("test")
    logits = predict(model, split, prepared, device=CPU)
    assert logits.shape == (len(split), 3)
    for text in range(len(split)):
        alone = []
        for window in range(split.begins[text], split.begins[text + 1]):
            batch = task_batch(split, np.array([window]), prepared)
            arrays = (batch.tokens, batch.rows.segments, batch.rows.positions, batch.rows.types)
            with torch.inference_mode():
                hidden = model.encoder(*map(torch.from_numpy, arrays))
                first = (torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))
                alone.append(model.task(model.pool(hidden, torch.from_numpy(batch.rows.segments), *first))[0].numpy())
        np.testing.assert_allclose(logits[text], np.mean(alone, axis=0), atol=1e-5)


def test_first_texts_keep_their_windows(prepared: Prepared) -> None:
    split = prepared.split("validation")
    few = split.first(5)
    assert len(few) == 5 and len(few.store) == split.begins[5] > 5
    assert [windows_of(few, text) for text in range(5)] == [windows_of(split, text) for text in range(5)]


def test_service_predicts_the_same_from_the_texts(chain: Mapping[str, Path], prepared: Prepared) -> None:
    split, task = prepared.split("test"), Task.read(chain["task"])
    logits = predict(load_model(chain["finetune.s0"]), split, prepared, device=CPU)
    expected = torch.from_numpy(logits).softmax(-1).numpy()
    exported = load_export(chain["export"])
    np.testing.assert_allclose(exported.probabilities(task.texts("test")), expected, atol=1e-4)
    first = [" ".join(text.split()[:4]) for text in task.texts("test")]
    assert np.abs(exported.probabilities(first) - expected).max() > 1e-3, "the other windows count"


def test_card_states_how_long_texts_are_read(chain: Mapping[str, Path]) -> None:
    card = (chain["export"] / "model" / "README.md").read_text()
    assert f"up to {WINDOWS} windows of {LENGTH}" in card


def test_artifact_of_an_earlier_release_has_one_window_per_text(chain: Mapping[str, Path], tmp_path: Path) -> None:
    params = PrepareParams.of(tiny(model__max_length=LENGTH, model__windows=1))
    folder = run_stage(PREPARE, {"task": chain["task"]}, params, tmp_path / "prepared")
    (folder / "train.texts.npy").unlink()
    split = Prepared(folder).split("train")
    assert split.texts.tolist() == list(range(40)) and isinstance(split.store, TokenStore)
