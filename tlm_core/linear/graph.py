"""A linear model, alone or combined with an encoder, as one ONNX graph.

The input `ngram_ids` of the graph is int64 [batch, ngrams]: the ids of `Alphabet.encode`, padded with 0. The graph has
one dense value for each feature and text, so predict in batches of at most 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tlm_core.evaluation.combine import Scales
from tlm_core.linear.model import LinearModel
from tlm_core.linear.ngrams import LAST_ORDER
from tlm_core.serving import NGRAM_IDS
from tlm_core.training.architectures import Shape
from tlm_core.training.graph import Graph, Weights, encoder_outputs, save


def write_linear(model: LinearModel, scales: Scales, path: Path) -> None:
    """Write a linear model as an ONNX graph with the outputs of `tlm_core.training.graph.write_onnx`."""
    graph, labels = Graph(), len(model.bias)
    logits = graph.op("Div", linear_outputs(graph, model), graph.const(scales.linear_temperature))
    graph.outputs(logits, labels)
    save(graph, [NGRAM_IDS], labels, path)


def write_combined(
    shape: Shape, members: Sequence[Weights], model: LinearModel | None, scales: Scales, path: Path
) -> None:
    """Write encoders, and a linear model if `model` is set, as one graph with the inputs of all these models.

    members: weights of each encoder. scales: weights and temperatures of the models. The `logits` of the graph are the
    weighted sum of the log-probabilities, or of the predicted regression targets.
    """
    graph = Graph()
    encoder, inputs = encoder_outputs(graph, shape, members)
    parts = [(encoder, scales.encoder, scales.encoder_temperature)]
    if model is not None:
        parts.append((linear_outputs(graph, model), scales.linear, scales.linear_temperature))
        inputs = [*inputs, NGRAM_IDS]
    scaled = []
    for outputs, weight, temperature in parts:
        outputs = graph.op("Div", outputs, graph.const(temperature))
        if shape.labels > 1:
            outputs = graph.op("LogSoftmax", outputs, axis=-1)
        scaled.append(graph.op("Mul", outputs, graph.const(weight)))
    graph.outputs(graph.op("Sum", *scaled), shape.labels)
    save(graph, inputs, shape.labels, path)


def linear_outputs(graph: Graph, model: LinearModel) -> str:
    """Add a linear model with the input `ngram_ids` to the graph. Return the name of its output, [batch, labels]."""
    counts = _counts(graph, model)
    frequency = graph.op(
        "Add", graph.op("Min", counts, graph.const(1.0)), graph.op("Log", graph.op("Max", counts, graph.const(1.0)))
    )
    weighted = graph.op("Mul", frequency, graph.const(np.concatenate(model.features.idf)))
    sizes = [len(ngrams) for ngrams in model.features.ngrams]
    families = [weighted] if len(sizes) == 1 else graph.divide(weighted, sizes, axis=1)
    # If a text has no n-grams of a family, the values of the family stay zero.
    scaled = [
        graph.op("Div", x, graph.op("Max", graph.op("ReduceL2", x, graph.ints(1)), graph.const(1e-9))) for x in families
    ]
    features = scaled[0] if len(scaled) == 1 else graph.op("Concat", *scaled, axis=1)
    return graph.op("Add", graph.op("MatMul", features, graph.const(model.weights)), graph.const(model.bias))


def _counts(graph: Graph, model: LinearModel) -> str:
    """Add the node that counts n-grams to the graph. Return the name of its output, [batch, features]."""
    pool: list[int] = []
    starts: list[int] = []
    places: list[int] = []
    for order in range(1, LAST_ORDER + 1):  # `TfIdfVectorizer` needs its n-grams sorted by length
        starts.append(len(pool))
        first = 0
        for ngrams in model.features.ngrams:
            for ids in ngrams.pool():
                if ids.shape[1] == order:
                    pool += ids.ravel().tolist()
                    places += range(first, first + len(ids))
                first += len(ids)
    return graph.op(
        "TfIdfVectorizer",
        NGRAM_IDS,
        min_gram_length=1,
        max_gram_length=LAST_ORDER,
        max_skip_count=0,
        mode="TF",
        ngram_counts=starts,
        ngram_indexes=places,
        pool_int64s=pool,
    )
