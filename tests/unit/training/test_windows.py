"""Texts longer than a row become windows, from the prepare stage to predictions of the exported model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.unit.training.made import made_selection, made_task, report_of, run_chain, tiny
from tlm_core.evaluation.combine import Scales
from tlm_core.linear.graph import write_combined
from tlm_core.linear.model import ALPHABET, LinearModel, rows_of
from tlm_core.serving import MODEL, write_metadata
from tlm_core.serving import load_model as load_served
from tlm_core.stages import PREPARE
from tlm_core.tasks.task import Task
from tlm_core.training.encoder_stages import build, joint_trainer
from tlm_core.training.evaluate import predict
from tlm_core.training.graph import write_onnx
from tlm_core.training.local import LocalCheckpoints, LocalReporter, run_stage
from tlm_core.training.params import JointParams, PrepareParams
from tlm_core.training.prepared import Prepared, Split, TaskBatches, task_batch
from tlm_core.training.recipe import AUTO_LENGTHS
from tlm_core.training.stage import StageContext
from tlm_core.training.state import load_model, weights
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
    assert prepared.facts["warnings"][0].endswith("Raise model.max_length.")
    assert prepared.max_windows == 1


def test_epoch_trains_on_one_window_of_each_text_in_turn(prepared: Prepared) -> None:
    batches, split = TaskBatches(prepared, 10, seed=0), prepared.split("train")
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


@pytest.mark.parametrize("returned", ["encoder", "combined"])
def test_service_predicts_the_same_from_the_texts(
    chain: Mapping[str, Path], prepared: Prepared, returned: str, tmp_path: Path
) -> None:
    task, model, linear = (
        Task.read(chain["task"]),
        load_model(chain["finetune.s0"]),
        LinearModel.read(chain["baseline"]),
    )
    scales = Scales(linear=0.5, encoder=0.5, linear_temperature=9.0) if returned == "combined" else Scales()
    logits = predict(model, prepared.split("test"), prepared, device=CPU)
    logits = scales.combine(task.type, linear.outputs(rows_of(task, "test")), logits)
    expected = torch.from_numpy(logits).softmax(-1).numpy()
    shutil.copytree(chain["export"] / "model", tmp_path / "model")
    shutil.copyfile(chain["baseline"] / ALPHABET, tmp_path / ALPHABET)
    arrays = {name: tensor.numpy() for name, tensor in weights(model).items()}
    if returned == "combined":
        write_combined(model.shape, [arrays], linear, scales, tmp_path / MODEL)
    else:
        write_onnx(model.shape, arrays, tmp_path / MODEL)
    write_metadata(tmp_path, task, returned, LENGTH, WINDOWS)
    exported = load_served(tmp_path)
    np.testing.assert_allclose(exported.probabilities(task.texts("test")), expected, atol=1e-4)
    first = [" ".join(text.split()[:4]) for text in task.texts("test")]
    assert np.abs(exported.probabilities(first) - expected).max() > 1e-3, "the other windows count"


def test_card_states_how_long_texts_are_read(chain: Mapping[str, Path]) -> None:
    card = (chain["export"] / "model" / "README.md").read_text()
    assert f"up to {WINDOWS} windows of {LENGTH}" in card
    assert report_of(chain)["warnings"][0] in card


@pytest.mark.parametrize(
    ("over", "limit", "remedy"),
    [({}, 36, "3 windows of 16 tokens"), ({"windows": 1}, 16, "16 tokens"), ({"max_length": 512}, 9_999, "")],
)
def test_texts_that_are_cut_are_counted_with_a_warning(
    over: dict[str, int], limit: int, remedy: str, chain: Mapping[str, Path], tmp_path: Path
) -> None:
    report, params = LocalReporter(), PrepareParams.of(RECIPE).model_copy(update=over)
    prepared = Prepared(run_stage(PREPARE, {"task": chain["task"]}, params, tmp_path / "prepared", report))
    cut = {split: sum(len(ids) + 2 > limit for ids in whole(chain, split)) for split in prepared.facts["counts"]}
    assert prepared.facts["cut_texts"] == cut and (cut["train"] > 0) == bool(remedy)
    expected = [
        f"{cut[split]} of {len(whole(chain, split))} {split} texts are longer than {remedy}; the model does not read "
        "their ends. Raise model.max_length or model.windows."
        for split in cut
        if cut[split]
    ]
    assert prepared.facts["warnings"] == expected
    assert [data["message"] for kind, data in report.events if kind == "stage.warning"] == expected


def test_report_counts_the_texts_that_are_cut(chain: Mapping[str, Path], prepared: Prepared) -> None:
    report = report_of(chain)
    assert report["cut_texts"] == prepared.facts["cut_texts"] and report["cut_texts"]["test"] > 0
    assert report["warnings"] == prepared.facts["warnings"]


def test_artifact_of_an_earlier_release_has_one_window_per_text(chain: Mapping[str, Path], tmp_path: Path) -> None:
    params = PrepareParams.of(tiny(model__max_length=LENGTH, model__windows=1))
    folder = run_stage(PREPARE, {"task": chain["task"]}, params, tmp_path / "prepared")
    (folder / "train.texts.npy").unlink()
    split = Prepared(folder).split("train")
    assert split.texts.tolist() == list(range(40)) and isinstance(split.store, TokenStore)


def prepare_auto(folder: Path, longest: int, **over: object) -> Prepared:
    params = PrepareParams.of(tiny(model__max_length="auto", **over))
    task = made_task(folder / "task", (200, 10, 10), longest=longest)
    return Prepared(run_stage(PREPARE, {"task": task}, params, folder / "prepared"))


@pytest.mark.parametrize(("longest", "length"), [(90, 128), (210, 256), (400, 512), (900, 512)])
def test_auto_length_covers_most_train_texts(longest: int, length: int, tmp_path: Path) -> None:
    prepared = prepare_auto(tmp_path, longest)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "prepared" / "tokenizer")
    lengths = [
        len(ids) for ids in tokenizer(Task.read(tmp_path / "task").texts("train"), truncation=False)["input_ids"]
    ]
    assert prepared.max_length == length == tokenizer.model_max_length
    covered = {wanted: np.mean(np.array(lengths) <= wanted) for wanted in AUTO_LENGTHS}
    assert (covered[length] >= 0.95 or length == 512) and all(covered[n] < 0.95 for n in AUTO_LENGTHS if n < length)
    assert build(tiny(model__max_length="auto").model, prepared, 0).shape.max_length == length


def test_joint_steps_have_as_many_tokens_at_every_auto_length() -> None:
    recipe, fixed = tiny(model__max_length="auto"), tiny(model__max_length=256)
    rows = [recipe.joint.at_length(length, recipe.model).batch_rows for length in AUTO_LENGTHS]
    assert rows == [8, 4, 2]
    assert fixed.joint.at_length(256, fixed.model) == fixed.joint


def test_joint_stage_uses_the_chosen_length(tmp_path: Path) -> None:
    recipe = tiny(model__max_length="auto", joint__budget__steps=2)
    inputs = {"task": made_task(tmp_path / "task", longest=210), "selection": made_selection(tmp_path / "selection")}
    prepared = run_stage(PREPARE, inputs, PrepareParams.of(recipe), tmp_path / "prepared")
    context = StageContext(
        inputs={"prepared": prepared}, params=JointParams.of(recipe, 0), out=tmp_path, report=LocalReporter(),
        checkpoints=LocalCheckpoints(tmp_path / "checkpoints"), scratch=tmp_path,
    )  # fmt: skip
    trainer = joint_trainer(context)
    assert trainer.batches(0, 0.0).tokens.shape == (4, 256) and trainer.model.shape.max_length == 256
