"""The BiLSTM compared with torch's LSTM on packed sequences, its batches, and its ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.unit.training.made import made_prepared, tiny
from tlm_core.kinds.learning_curve import BILSTM, LearningCurveOptions, bilstm_params
from tlm_core.quantization import quantize, quantize_graph
from tlm_core.serving import load_model
from tlm_core.studies.bilstm import BiLSTM, LSTMShape, initialize, initialize_counted, load_bilstm
from tlm_core.studies.bilstm_stages import BucketBatches
from tlm_core.studies.lstm_export import export_lstm, lstm_onnx
from tlm_core.tasks.task import Task
from tlm_core.training.encoder_stages import build
from tlm_core.training.evaluate import predict
from tlm_core.training.local import run_stage
from tlm_core.training.model import TOKEN_SPREAD
from tlm_core.training.objective import Workers, accumulate_gradient, loss_sums
from tlm_core.training.prepared import Prepared, TaskBatches, task_batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(made_prepared(tmp_path_factory.mktemp("prepared"), tiny(selection__selector="none"), alone=True))


def task_of(prepared: Prepared) -> Task:
    return Task.read(prepared.folder.parent / "task")


@pytest.fixture
def model(prepared: Prepared) -> BiLSTM:
    model = BiLSTM(LSTMShape(prepared.vocabulary.size, 3, layers=2, hidden=8, embedding=12, max_length=48))
    initialize(model, 0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


def reference(model: BiLSTM) -> nn.LSTM:
    """Return torch's LSTM with the model's weights."""
    shape = model.shape
    lstm = nn.LSTM(shape.embedding, shape.hidden, shape.layers, bidirectional=True, batch_first=True)

    with torch.no_grad():
        for number, layer in enumerate(cast(Any, model.encoder.layers)):
            for way, suffix in enumerate(("", "_reverse")):
                getattr(lstm, f"weight_ih_l{number}{suffix}").copy_(layer.weight[way])
                getattr(lstm, f"weight_hh_l{number}{suffix}").copy_(layer.state_weight[way])
                getattr(lstm, f"bias_ih_l{number}{suffix}").copy_(layer.bias.view(2, -1)[way])
                getattr(lstm, f"bias_hh_l{number}{suffix}").zero_()
    return lstm


def reference_loss(model: BiLSTM, lstm: nn.LSTM, prepared: Prepared, members: np.ndarray) -> torch.Tensor:
    split = prepared.split("train")
    texts = [torch.from_numpy(np.asarray(split.store[int(m)], dtype=np.int64)) for m in members]
    lengths = torch.tensor([len(text) for text in texts])
    vectors = model.encoder.tokens(nn.utils.rnn.pad_sequence(texts, batch_first=True))
    packed = pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
    hidden, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True, padding_value=-torch.inf)
    logits = model.task(hidden.amax(dim=1))
    return nn.functional.cross_entropy(logits, torch.from_numpy(split.labels[members]), reduction="sum")


def test_loss_and_gradients_equal_those_of_torch(model: BiLSTM, prepared: Prepared) -> None:
    members, lstm = np.arange(20), reference(model)
    expected = reference_loss(model, lstm, prepared, members)
    expected.backward()
    tokens = cast(Any, model.encoder.tokens.weight.grad).clone()
    model.zero_grad()
    loss = loss_sums(cast(Any, model), task_batch(prepared.split("train"), members, prepared), CPU)[1]
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model.encoder.tokens.weight.grad, tokens, atol=1e-4, rtol=1e-3)
    first = cast(Any, model.encoder.layers[0])
    for way, suffix in enumerate(("", "_reverse")):
        for ours, theirs in ((first.weight, "weight_ih_l0"), (first.state_weight, "weight_hh_l0")):
            expected_gradient = getattr(lstm, theirs + suffix).grad
            torch.testing.assert_close(ours.grad[way], expected_gradient, atol=1e-4, rtol=1e-3)
        expected_gradient = getattr(lstm, f"bias_ih_l0{suffix}").grad
        torch.testing.assert_close(first.bias.grad.view(2, -1)[way], expected_gradient, atol=1e-4, rtol=1e-3)


def test_bf16_is_close_to_fp32(model: BiLSTM, prepared: Prepared) -> None:
    batch = task_batch(prepared.split("train"), np.arange(20), prepared)
    results = {}
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        losses = accumulate_gradient(cast(Any, model), batch, Workers(), 64, precision, CPU)
        results[precision] = (float(losses[1]), model.encoder.tokens.weight.grad.clone())  # type: ignore[union-attr]
    assert results["bf16"][0] == pytest.approx(results["fp32"][0], rel=0.02)
    cosine = nn.functional.cosine_similarity(results["bf16"][1].flatten(), results["fp32"][1].flatten(), dim=0)
    assert float(cosine) > 0.99


def test_logits_do_not_depend_on_other_texts_of_the_batch(model: BiLSTM, prepared: Prepared) -> None:
    model.eval()
    split = prepared.split("validation")
    together = predict(cast(Any, model), split, prepared, device=CPU)
    for number in (0, 5, 11):
        batch = task_batch(split, np.array([number]), prepared)
        arrays = (batch.tokens, batch.rows.segments, batch.rows.positions, batch.rows.types)
        first = (torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))
        with torch.inference_mode():
            hidden = model.encoder(*map(torch.from_numpy, arrays))
            alone = model.task(model.pool(hidden, torch.from_numpy(batch.rows.segments), *first))
        np.testing.assert_allclose(alone[0].numpy(), together[number], atol=1e-5)


def test_epochs_contain_each_text_once_in_batches_of_similar_length(prepared: Prepared) -> None:
    batches, plain = BucketBatches(prepared, 8, seed=0), TaskBatches(prepared, 8, seed=0)
    count = -(-len(prepared.split("train")) // 8)
    epochs = [[batches(epoch * count + step, 0.0) for step in range(count)] for epoch in range(2)]
    drawn = [[batch.rows.documents.tolist() for batch in epoch] for epoch in epochs]
    assert all(sorted(text for batch in epoch for text in batch) == list(range(60)) for epoch in drawn)
    assert drawn[0] != drawn[1]
    assert BucketBatches(prepared, 8, seed=0)(count + 3, 0.0).rows.documents.tolist() == drawn[1][3]
    lengths = prepared.split("train").store.lengths

    def spread(batch: Any) -> float:
        return float(np.ptp(lengths[batch.rows.documents]))

    assert np.mean([spread(b) for b in epochs[0]]) < 0.5 * np.mean([spread(plain(s, 0.0)) for s in range(count)])


def test_exported_graph_computes_the_same_for_any_length(model: BiLSTM, prepared: Prepared, tmp_path: Path) -> None:
    model.eval()
    facts = export_lstm(model, prepared, task_of(prepared), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.onnx", "model.int8.onnx", "labels.json"}
    assert facts["texts"] == len(prepared.split("validation")) and facts["agreement"] > 0.8
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    split = prepared.split("validation")
    expected = predict(cast(Any, model), split, prepared, device=CPU)
    for members in ([0], [1, 2, 3], list(range(len(split)))):
        inputs = split.padded(members, prepared.vocabulary.pad)
        logits = session.run(["logits"], {name: inputs[name] for name in ("input_ids", "attention_mask")})[0]
        np.testing.assert_allclose(logits, expected[members], atol=1e-4)
    inputs = {name: np.stack([array[:2, 0], 0 * array[:2, 0]]).swapaxes(0, 1) for name, array in inputs.items()}
    logits = session.run(["logits"], {name: inputs[name] for name in ("input_ids", "attention_mask")})[0]
    np.testing.assert_allclose(logits, expected[:2], atol=1e-4, err_msg="a window without tokens counts")


def test_8_bit_copy_of_an_exported_bilstm_logs_nothing(
    model: BiLSTM, prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "exact").mkdir()
    export_lstm(model.eval(), prepared, task_of(prepared), tmp_path / "exact")
    before, after = quantize(tmp_path / "exact", tmp_path / "small")
    assert after < before and caplog.messages == []
    texts = task_of(prepared).texts("test")
    both = [load_model(tmp_path / name).probabilities(texts) for name in ("exact", "small")]
    np.testing.assert_allclose(both[0], both[1], atol=0.05)


def test_8_bit_graph_is_close_to_the_exact_one(tmp_path: Path) -> None:
    model = BiLSTM(LSTMShape(500, 5, layers=2, hidden=64, embedding=64, max_length=48))
    initialize(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # large states, where the sums of 8-bit products saturate
    lstm_onnx(model.eval(), tmp_path / "exact.onnx")
    quantize_graph(tmp_path / "exact.onnx", tmp_path / "int8.onnx")
    ids = np.random.default_rng(0).integers(0, 500, (64, 1, 40))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    exact, rounded = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(["logits"], inputs)[0]
        for name in ("exact.onnx", "int8.onnx")
    )
    np.testing.assert_allclose(rounded, exact, atol=0.2)  # with saturated sums: 1.0
    assert (rounded.argmax(1) == exact.argmax(1)).mean() > 0.9


def test_export_predicts_only_the_texts_that_it_compares(
    model: BiLSTM, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlm_core.studies.lstm_export.COMPARED", 18)  # two batches of the graph
    sizes: list[int] = []
    model.eval().task.register_forward_pre_hook(lambda _, pooled: sizes.append(len(pooled[0])))
    assert export_lstm(model, prepared, task_of(prepared), tmp_path)["texts"] == 18
    assert sum(sizes) == 18 < len(prepared.split("validation"))


def test_initial_weights_follow_seed_and_embeddings() -> None:
    shape = LSTMShape(50, 3, layers=1, hidden=4, embedding=6, max_length=16)
    embeddings = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    first, again, other, pretrained = (BiLSTM(shape) for _ in range(4))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        initialize(model, seed)
    initialize(pretrained, 1, embeddings)
    name = "encoder.layers.0.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    assert torch.equal(pretrained.encoder.tokens.weight, embeddings)


def counted_start(prepared: Prepared, seed: int) -> tuple[BiLSTM, BiLSTM]:
    """Return a BiLSTM with a random start, and one that starts from counted vectors."""
    vectors = torch.from_numpy(prepared.counted()[1])
    shape = LSTMShape(len(vectors), 3, layers=1, hidden=8, embedding=vectors.shape[1], max_length=48)
    plain, counted = BiLSTM(shape), BiLSTM(shape)
    for model in (plain, counted):
        initialize(model, seed)
    initialize_counted(counted, seed, vectors)
    return plain, counted


def test_counted_start_is_a_rotation_of_the_vectors_with_random_length(tmp_path: Path) -> None:
    recipe = tiny(model__init="counts", selection__selector="none")
    prepared = Prepared(made_prepared(tmp_path, recipe, alone=True))
    vectors = torch.from_numpy(prepared.counted()[1])
    known = vectors.norm(dim=1) > 1e-6
    assert 100 < known.sum() < len(known)
    unit = vectors[known] / vectors[known].norm(dim=1, keepdim=True)
    for seed in (0, 1):
        plain, counted = counted_start(prepared, seed)
        weight, random = counted.encoder.tokens.weight, plain.encoder.tokens.weight
        lengths = weight[known].norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1 * vectors.shape[1] ** 0.5))
        own = weight[known] / lengths[:, None]
        torch.testing.assert_close(own @ own.T, unit @ unit.T, atol=1e-4, rtol=0)
        assert torch.equal(weight[~known], random[~known])
        encoder = build(recipe.model, prepared, seed).encoder.tokens.weight
        torch.testing.assert_close(weight[known], encoder[known] * (0.1 / TOKEN_SPREAD), atol=1e-5, rtol=1e-4)
        others = [name for name, _ in plain.named_parameters() if name != "encoder.tokens.weight"]
        assert all(torch.equal(plain.get_parameter(name), counted.get_parameter(name)) for name in others)


@pytest.mark.parametrize(("recipe_init", "init"), [("counts", "counts"), ("counts", "scratch"), ("scratch", "counts")])
def test_bilstm_starts_like_the_encoder_unless_scratch_is_set(recipe_init: str, init: str, tmp_path: Path) -> None:
    recipe = tiny(model__init=recipe_init, selection__selector="none", finetune__epochs=1, finetune__evaluations=1,
                  precision="fp32")  # fmt: skip
    prepared = Prepared(made_prepared(tmp_path, recipe, alone=True))
    lstm = {"layers": 1, "hidden": 8, "embedding": 12, "dropout": 0.0, "lr": 1e-12, "init": init}
    params = bilstm_params(recipe, LearningCurveOptions(lstm=lstm), 3)
    model = load_bilstm(run_stage(BILSTM, {"prepared": prepared.folder}, params, tmp_path / "bilstm"))
    if recipe_init == init == "counts":
        expected = counted_start(prepared, 3)[1]
    else:
        expected = BiLSTM(LSTMShape(prepared.vocabulary.size, 3, layers=1, hidden=8, embedding=12, max_length=48))
        initialize(expected, 3)
    torch.testing.assert_close(model.encoder.tokens.weight, expected.encoder.tokens.weight)
