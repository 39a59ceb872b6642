"""The trained model as an ONNX graph, written node by node.

Written rather than traced: it takes milliseconds, needs no exporter, and is checked against the model's own
answers each time (see `export.py`). Lengths and batch sizes are free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tlm_core.training.model import Shape

OPSET = 20  # the first with Gelu
IR_VERSION = 10
FAR = -1e9


class Graph:
    """Collects nodes and constants; each operation returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        names = [f"split_{len(self.nodes)}_{i}" for i in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, axis=axis, num_outputs=parts))
        return names

    def const(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)


class _Writer:
    """Writes the layers of one model. weights: our parameter names to arrays."""

    def __init__(self, shape: Shape, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self.shape = shape
        self.weights = weights
        self.graph = Graph()

    def linear(self, x: str, name: str, out: str | None = None) -> str:
        g = self.graph
        weight, bias = g.const(self.weights[f"{name}.weight"].T), self.weights.get(f"{name}.bias")
        if bias is None:
            return g.op("MatMul", x, weight, out=out)
        return g.op("Add", g.op("MatMul", x, weight), g.const(bias), out=out)

    def norm(self, x: str, name: str) -> str:
        bias = self.weights.get(f"{name}.bias")
        scale = [self.graph.const(self.weights[f"{name}.weight"])]
        shift = [] if bias is None else [self.graph.const(bias)]
        return self.graph.op("LayerNormalization", x, *scale, *shift, axis=-1, epsilon=self.shape.eps)

    def embeddings(self, places: str) -> str:
        g = self.graph
        x = g.op("Gather", g.const(self.weights["encoder.tokens.weight"]), "input_ids")
        if not self.shape.rotary:
            x = g.op("Add", x, g.op("Gather", g.const(self.weights["encoder.positions.weight"]), places))
            types = g.const(self.weights["encoder.types.weight"])
            x = g.op("Add", x, types if self.shape.types == 1 else g.op("Gather", types, "token_type_ids"))
        return self.norm(x, "encoder.norm")

    def mask(self, places: str, window: int | None) -> str:
        """What is added to the scores, [B, 1, 1, L] or with a window [B, 1, L, L]."""
        g = self.graph
        kept = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.ints(1, 2)), to=TensorProto.FLOAT)
        mask = g.op("Mul", g.op("Sub", g.const(1.0), kept), g.const(FAR))
        if window is None:
            return mask
        apart = g.op("Sub", g.op("Unsqueeze", places, g.ints(1)), g.op("Unsqueeze", places, g.ints(0)))
        far = g.op("Greater", g.op("Abs", apart), g.const(window, np.int64))
        return g.op("Add", mask, g.op("Where", far, g.const(FAR), g.const(0.0)))

    def rotation(self, places: str, theta: float) -> tuple[str, str]:
        """Cosines and sines, [L, head]."""
        g, size = self.graph, self.shape.hidden // self.shape.heads
        frequency = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / size)
        place = g.op("Unsqueeze", g.op("Cast", places, to=TensorProto.FLOAT), g.ints(1))
        angle = g.op("Mul", place, g.const(np.concatenate([frequency, frequency])))
        return g.op("Cos", angle), g.op("Sin", angle)

    def rotate(self, x: str, rotation: tuple[str, str]) -> str:
        g, (cos, sin) = self.graph, rotation
        left, right = g.split(x, 2, axis=-1)
        turned = g.op("Concat", g.op("Neg", right), left, axis=-1)
        return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))

    def attention(self, x: str, name: str, mask: str, rotation: tuple[str, str] | None) -> str:
        g, size = self.graph, self.shape.hidden // self.shape.heads
        heads = self.weights[f"{name}.qkv.weight"].shape[0] // (3 * size)  # fewer where heads were cut away
        qkv = g.op("Reshape", self.linear(x, f"{name}.qkv"), g.ints(0, 0, 3 * heads, size))
        query, key, value = g.split(g.op("Transpose", qkv, perm=[0, 2, 1, 3]), 3, axis=1)
        if rotation is not None:
            query, key = self.rotate(query, rotation), self.rotate(key, rotation)
        scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Mul", scores, g.const(size**-0.5)), mask)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        flat = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, 0, heads * size))
        return self.linear(flat, f"{name}.out")

    def pre_norm_layer(self, x: str, number: int, mask: str, rotation: tuple[str, str] | None) -> str:
        g, name = self.graph, f"encoder.layers.{number}"
        h = self.norm(x, f"{name}.attention_norm") if number else x
        x = g.op("Add", x, self.attention(h, f"{name}.attention", mask, rotation))
        if f"{name}.mlp_out.weight" not in self.weights:  # the block was cut away
            return x
        value, gate = g.split(self.linear(self.norm(x, f"{name}.mlp_norm"), f"{name}.mlp_in"), 2, axis=-1)
        return g.op("Add", x, self.linear(g.op("Mul", g.op("Gelu", value), gate), f"{name}.mlp_out"))

    def post_norm_layer(self, x: str, number: int, mask: str) -> str:
        g, name = self.graph, f"encoder.layers.{number}"
        x = self.norm(g.op("Add", x, self.attention(x, f"{name}.attention", mask, None)), f"{name}.attention_norm")
        if f"{name}.mlp_out.weight" not in self.weights:
            return self.norm(x, f"{name}.mlp_norm")
        inner = g.op("Gelu", self.linear(x, f"{name}.mlp_in"))
        return self.norm(g.op("Add", x, self.linear(inner, f"{name}.mlp_out")), f"{name}.mlp_norm")

    def encoder(self) -> str:
        g, shape = self.graph, self.shape
        length = g.op("Gather", g.op("Shape", "input_ids"), g.const(1, np.int64))
        places = g.op("Range", g.const(0, np.int64), length, g.const(1, np.int64))
        x = self.embeddings(places)
        windows: tuple[int | None, ...] = shape.windows or (None,) * shape.layers
        masks = {window: self.mask(places, window) for window in dict.fromkeys(windows)}
        rotations = {theta: self.rotation(places, theta) for theta in dict.fromkeys(shape.thetas)}
        for number in range(shape.layers):
            mask = masks[windows[number]]
            if shape.rotary:
                x = self.pre_norm_layer(x, number, mask, rotations[shape.thetas[number]])
            else:
                x = self.post_norm_layer(x, number, mask)
        return self.norm(x, "encoder.final_norm") if shape.rotary else x

    def pooled(self, x: str) -> str:
        g = self.graph
        if self.shape.pooling == "cls":
            return g.op("Gather", x, g.const(0, np.int64), axis=1)
        kept = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.ints(2)), to=TensorProto.FLOAT)
        total = g.op("ReduceSum", g.op("Mul", x, kept), g.ints(1), keepdims=0)
        return g.op("Div", total, g.op("ReduceSum", kept, g.ints(1), keepdims=0))

    def answers(self) -> None:
        g = self.graph
        x = self.linear(self.pooled(self.encoder()), "task.dense")
        x = self.norm(g.op("Gelu", x), "task.norm") if self.shape.rotary else g.op("Tanh", x)
        logits = self.linear(x, "task.out", out="logits")
        if self.shape.labels > 1:
            g.op("Softmax", logits, axis=-1, out="probabilities")


def write_onnx(shape: Shape, weights: Mapping[str, npt.NDArray[np.float32]], path: Path) -> None:
    """Inputs `input_ids`, `attention_mask` and, for BERT, `token_type_ids`, int64 [batch, length].

    Outputs `logits` and `probabilities`, float32 [batch, labels]; in regression `logits` alone, which is the amount.
    """
    writer = _Writer(shape, weights)
    writer.answers()
    names = ["input_ids", "attention_mask", *([] if shape.rotary or shape.types == 1 else ["token_type_ids"])]
    save(writer.graph, names, shape.labels, path)


def save(written: Graph, names: Sequence[str], labels: int, path: Path) -> None:
    """Check and write a graph whose inputs are int64 [batch, length] and whose outputs those of `write_onnx`."""
    free, answers = ["batch", "length"], ["batch", labels]
    outputs = ("logits", "probabilities") if labels > 1 else ("logits",)
    graph = helper.make_graph(
        written.nodes,
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.INT64, free) for name in names],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, answers) for name in outputs],
        written.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tlm")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
