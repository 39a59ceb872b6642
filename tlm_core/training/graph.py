"""Write a trained model as an ONNX graph, node by node, which takes milliseconds and needs no exporter.

`export.py` compares the outputs of the graph with those of the model. The numbers of texts, of windows of a text, and
of tokens of a window may vary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tlm_core.serving import NGRAM_IDS
from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.compact import EMBEDDINGS, OUTPUT, eight_bits

OPSET = 20  # the first with Gelu
IR_VERSION = 10
FAR = -1e9  # added to the score of a masked token

Weights = Mapping[str, npt.NDArray[np.float32]]
# Batches of texts as a graph reads them: arrays by the name of the input. The first axis counts texts.
Batches = Sequence[Mapping[str, npt.NDArray[np.int64]]]


class Graph:
    """The nodes and constants of a graph. A method that adds an operation returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        names = [f"split_{len(self.nodes)}_{i}" for i in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, axis=axis, num_outputs=parts))
        return names

    def divide(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Split along an axis into parts of the given sizes."""
        names = [f"part_{len(self.nodes)}_{i}" for i in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [x, self.ints(*sizes)], names, axis=axis))
        return names

    def const(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def flatten_windows(self, names: Sequence[str]) -> None:
        """Write each input `NAME`, [batch, windows, length], as `NAME.rows`, [batch * windows, length]."""
        shape = self.op("Concat", self.ints(-1), self.op("Shape", names[0], start=2), axis=0)
        for name in names:
            self.op("Reshape", name, shape, out=f"{name}.rows")

    def average_windows(self, rows: str, labels: int) -> str:
        """Return the mean logits over the windows that have a token, [batch, labels].

        rows: logits of the windows, [batch * windows, labels].
        """
        shape = self.op("Concat", self.op("Shape", "attention_mask", end=2), self.ints(labels), axis=0)
        real = self.op("ReduceMax", "attention_mask", self.ints(2), keepdims=1)
        # The logits of a window without tokens may be NaN, so a product with zero would not remove them.
        logits = self.op(
            "Where", self.op("Cast", real, to=TensorProto.BOOL), self.op("Reshape", rows, shape), self.const(0.0)
        )
        count = self.op("Cast", self.op("ReduceSum", real, self.ints(1), keepdims=0), to=TensorProto.FLOAT)
        return self.op("Div", self.op("ReduceSum", logits, self.ints(1), keepdims=0), count)

    def average(self, outputs: Sequence[str], labels: int) -> str:
        """Return the mean of the outputs of an ensemble's encoders; see `tlm_core.evaluation.combine.average`."""
        if len(outputs) == 1:
            return outputs[0]
        if labels > 1:
            outputs = [self.op("LogSoftmax", logits, axis=-1) for logits in outputs]
        return self.op("Mean", *outputs)

    def outputs(self, logits: str, labels: int) -> None:
        """Write the graph's outputs: `logits` and, for classes, `probabilities`."""
        self.op("Identity", logits, out="logits")
        if labels > 1:
            self.op("Softmax", logits, axis=-1, out="probabilities")


class GraphWriter:
    """Writes an encoder into a graph, and calls `Architecture.write_layer` for each layer. weights: by parameter name.

    compact: store token embeddings in 8 bits, the output layer in 32 bits, and the other weights in half precision. The
    caller has rounded the weights (`state.compact_weights`).
    """

    def __init__(self, graph: Graph, shape: Shape, weights: Weights, *, compact: bool = False) -> None:
        self.graph = graph
        self.shape = shape
        self.architecture = architecture_of(shape)
        self.weights = weights
        self.compact = compact

    def constant(self, weight: npt.NDArray[np.float32]) -> str:
        """Write weights. Return their name. onnxruntime converts half precision to float32 when it loads the graph."""
        if not self.compact:
            return self.graph.const(weight)
        return self.graph.op("Cast", self.graph.const(weight, np.float16), to=TensorProto.FLOAT)

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs that the model reads."""
        return ["input_ids", "attention_mask", *(["token_type_ids"] if self.architecture.token_types > 1 else [])]

    def linear(self, x: str, name: str) -> str:
        g = self.graph
        constant = g.const if name == OUTPUT else self.constant
        product = g.op("MatMul", x, constant(self.weights[f"{name}.weight"].T))
        bias = self.weights.get(f"{name}.bias")
        return product if bias is None else g.op("Add", product, constant(bias))

    def norm(self, x: str, name: str) -> str:
        parameters = [self.weights.get(f"{name}.{kind}") for kind in ("weight", "bias")]
        constants = [self.constant(values) for values in parameters if values is not None]
        return self.graph.op("LayerNormalization", x, *constants, axis=-1, epsilon=self.shape.eps)

    def attention(self, x: str, name: str, mask: str, rotation: tuple[str, str] | None) -> str:
        g, size = self.graph, self.shape.head_size
        heads = self.weights[f"{name}.qkv.weight"].shape[0] // (3 * size)  # pruning may have removed some
        qkv = g.op("Reshape", self.linear(x, f"{name}.qkv"), g.ints(0, 0, 3 * heads, size))
        query, key, value = g.split(g.op("Transpose", qkv, perm=[0, 2, 1, 3]), 3, axis=1)
        if rotation is not None:
            query, key = self._rotate(query, rotation), self._rotate(key, rotation)
        scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Mul", scores, g.const(size**-0.5)), mask)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        flat = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, 0, heads * size))
        return self.linear(flat, f"{name}.out")

    def logits(self) -> str:
        """Write the whole model, from the flattened inputs to the logits of each text, [batch, labels]."""
        g = self.graph
        x = self.linear(self._pooled(self._encoder()), "task.dense")
        x = g.op({"gelu": "Gelu", "tanh": "Tanh"}[self.architecture.head_activation], x)
        x = self.norm(x, "task.norm") if self.architecture.head_norm else x
        return g.average_windows(self.linear(x, OUTPUT), self.shape.labels)

    def _encoder(self) -> str:
        g, shape = self.graph, self.shape
        length = g.op("Gather", g.op("Shape", "input_ids.rows"), g.const(1, np.int64))
        places = g.op("Range", g.const(0, np.int64), length, g.const(1, np.int64))
        x = self._embeddings(places)
        windows: tuple[int | None, ...] = shape.windows or (None,) * shape.layers
        masks = {window: self._mask(places, window) for window in dict.fromkeys(windows)}
        rotations = {theta: self._rotation(places, theta) for theta in dict.fromkeys(shape.thetas)}
        for number in range(shape.layers):
            rotation = rotations[shape.thetas[number]] if shape.thetas else None
            x = self.architecture.write_layer(self, x, number, masks[windows[number]], rotation)
        return self.norm(x, "encoder.final_norm") if self.architecture.final_norm else x

    def _embeddings(self, places: str) -> str:
        g, weight = self.graph, self.weights[EMBEDDINGS]
        if self.compact:
            numbers, scales = eight_bits(weight)
            rows = g.op("Cast", g.op("Gather", g.const(numbers, np.int8), "input_ids.rows"), to=TensorProto.FLOAT)
            x = g.op("Mul", rows, g.op("Gather", g.const(scales), "input_ids.rows"))
        else:
            x = g.op("Gather", g.const(weight), "input_ids.rows")
        if self.architecture.token_types:
            x = g.op("Add", x, g.op("Gather", self.constant(self.weights["encoder.positions.weight"]), places))
            types = self.constant(self.weights["encoder.types.weight"])
            x = g.op(
                "Add", x, types if self.architecture.token_types == 1 else g.op("Gather", types, "token_type_ids.rows")
            )
        return self.norm(x, "encoder.norm")

    def _mask(self, places: str, window: int | None) -> str:
        """Write the mask that attention adds to its scores: [B, 1, 1, L], or [B, 1, L, L] with a window."""
        g = self.graph
        real = g.op("Cast", g.op("Unsqueeze", "attention_mask.rows", g.ints(1, 2)), to=TensorProto.FLOAT)
        mask = g.op("Mul", g.op("Sub", g.const(1.0), real), g.const(FAR))
        if window is None:
            return mask
        distance = g.op("Sub", g.op("Unsqueeze", places, g.ints(1)), g.op("Unsqueeze", places, g.ints(0)))
        far = g.op("Greater", g.op("Abs", distance), g.const(window, np.int64))
        return g.op("Add", mask, g.op("Where", far, g.const(FAR), g.const(0.0)))

    def _rotation(self, places: str, theta: float) -> tuple[str, str]:
        """Write cosines and sines, each [L, head], and return their names."""
        g, size = self.graph, self.shape.head_size
        frequency = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / size)
        place = g.op("Unsqueeze", g.op("Cast", places, to=TensorProto.FLOAT), g.ints(1))
        angle = g.op("Mul", place, g.const(np.concatenate([frequency, frequency])))
        return g.op("Cos", angle), g.op("Sin", angle)

    def _rotate(self, x: str, rotation: tuple[str, str]) -> str:
        g, (cos, sin) = self.graph, rotation
        left, right = g.split(x, 2, axis=-1)
        turned = g.op("Concat", g.op("Neg", right), left, axis=-1)
        return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))

    def _pooled(self, x: str) -> str:
        g = self.graph
        if self.shape.pooling == "cls":
            return g.op("Gather", x, g.const(0, np.int64), axis=1)
        real = g.op("Cast", g.op("Unsqueeze", "attention_mask.rows", g.ints(2)), to=TensorProto.FLOAT)
        total = g.op("ReduceSum", g.op("Mul", x, real), g.ints(1), keepdims=0)
        return g.op("Div", total, g.op("ReduceSum", real, g.ints(1), keepdims=0))


def write_onnx(shape: Shape, weights: Weights, path: Path) -> None:
    """Write an encoder as a graph.

    The inputs are `input_ids`, `attention_mask` and, if the encoder reads them, `token_type_ids`. They are int64,
    [batch, windows, length]. A text with fewer windows than others has windows without tokens.

    The outputs are `logits`, the means over the windows, and `probabilities`, float32 [batch, labels]. A regression
    model has only `logits`, the predicted target.
    """
    graph = Graph()
    logits, inputs = encoder_outputs(graph, shape, [weights])
    graph.outputs(logits, shape.labels)
    save(graph, inputs, shape.labels, path)


def encoder_outputs(graph: Graph, shape: Shape, members: Sequence[Weights]) -> tuple[str, list[str]]:
    """Write an encoder, or several encoders as an ensemble of compact weights. Return the names of output and inputs.

    The output is [batch, labels]. members: the weights of each encoder. All encoders have the shape `shape`.
    """
    writers = [GraphWriter(graph, shape, weights, compact=len(members) > 1) for weights in members]
    graph.flatten_windows(writers[0].inputs)
    return graph.average([writer.logits() for writer in writers], shape.labels), writers[0].inputs


def save(written: Graph, names: Sequence[str], labels: int, path: Path) -> None:
    """Check and write a graph with the named inputs, and with the outputs of `write_onnx`."""
    axes = {name: ["batch", "ngrams"] if name == NGRAM_IDS else ["batch", "windows", "length"] for name in names}
    outputs = ("logits", "probabilities") if labels > 1 else ("logits",)
    graph = helper.make_graph(
        written.nodes,
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes[name]) for name in names],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", labels]) for name in outputs],
        written.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tlm")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
