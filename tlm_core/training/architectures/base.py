"""The interface of an encoder architecture, and the shape of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tlm_core.training.graph import GraphWriter
    from tlm_core.training.model import Layer
    from tlm_core.training.recipe import Model

Config = Mapping[str, Any]  # a published model's config.json


@dataclass(frozen=True)
class Shape:
    """Everything that determines a model's tensors and arithmetic.

    windows, thetas: for each layer of a rotary model, the number of tokens that attention sees on each side (None:
    all), and the rotary base. skipped: number of unused position embeddings at the start of a published model.
    """

    architecture: str
    vocab: int
    labels: int
    layers: int
    hidden: int
    heads: int
    intermediate: int
    max_length: int
    dropout: float = 0.0
    eps: float = 1e-5
    pooling: str = "mean"
    windows: tuple[int | None, ...] = ()
    thetas: tuple[float, ...] = ()
    positions: int = 0
    skipped: int = 0

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shape:
        return cls(**{**data, "windows": tuple(data["windows"]), "thetas": tuple(data["thetas"])})


class Architecture(ABC):
    """One encoder architecture: its layers, weight names, ONNX nodes, FLOPs, memory, and what pruning removes."""

    name: ClassVar[str]  # in recipes and in stored shapes; also the `model_type` of published models
    stock: ClassVar[str]  # start of the names of the classes in `transformers`
    from_scratch: ClassVar[bool] = True  # False if only published models have this architecture
    biases: ClassVar[bool] = True  # whether linear maps and norms of the encoder have biases
    gated: ClassVar[bool] = False  # the feed-forward block multiplies by a gate, the second half of `mlp_in`
    token_types: ClassVar[int] = 2  # rows of the type embeddings; 0: no type embeddings and no learned positions
    final_norm: ClassVar[bool] = False
    tied: ClassVar[bool] = True  # the vocabulary head's matrix is the token embedding
    residual_start: ClassVar[bool] = False  # all residual branches and heads start at zero
    head_activation: ClassVar[Literal["gelu", "tanh"]] = "tanh"
    head_norm: ClassVar[bool] = False
    head_dropout: ClassVar[bool] = True

    # Stock names of encoder and task head, and of the vocabulary head, by our names. `{i}` is the number of a layer.
    names: ClassVar[Mapping[str, str]]
    vocabulary_names: ClassVar[Mapping[str, str]]
    # Stock name of query, key and value, if the stock class stores them separately. `{part}` is one of the three words.
    qkv_name: ClassVar[str | None] = None

    @abstractmethod
    def scratch_shape(self, model: Model, vocab: int, labels: int) -> Shape:
        """Return the shape of a model that a job trains from scratch. model: the part `model` of the recipe."""

    @abstractmethod
    def fixed_values(self, config: Config) -> dict[str, tuple[object, object]]:
        """Return key → (value in the config, supported value), for each key with a single supported value."""

    @abstractmethod
    def published_shape(self, config: Config) -> Shape:
        """Return the shape of a published model, with 0 labels."""

    @abstractmethod
    def stock_arguments(self, shape: Shape, special_ids: Mapping[str, int]) -> dict[str, object]:
        """Return the arguments of the `transformers` configuration that only some architectures have."""

    @abstractmethod
    def layer(self, shape: Shape, number: int) -> Layer:
        """Return a new module for layer `number` of the encoder."""

    @abstractmethod
    def write_layer(self, writer: GraphWriter, x: str, number: int, mask: str, rotation: tuple[str, str] | None) -> str:
        """Write the ONNX nodes of layer `number`, without the feed-forward block if pruning removed it.

        Return the name of the layer's output. x, mask, rotation: names of the layer's input, of the attention mask, and
        of cosines and sines.
        """

    def stock_config(
        self, shape: Shape, labels: Sequence[str], special_ids: Mapping[str, int], problem_type: str | None = None
    ) -> PretrainedConfig:
        """Return the configuration of the stock sequence classifier. special_ids: token ids by role, such as `pad`."""
        import transformers

        return getattr(transformers, f"{self.stock}Config")(
            architectures=[f"{self.stock}ForSequenceClassification"],
            problem_type=problem_type,
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            pad_token_id=special_ids["pad"],
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            **self.stock_arguments(shape, special_ids),
        )

    def stock_names(self, shape: Shape) -> dict[str, str]:
        """Return our name → stock name for each parameter of encoder and task head."""
        return each_layer(self.names, shape.layers)

    @property
    def feed_forward_matrices(self) -> int:
        """The number of matrices of size hidden x intermediate in a layer."""
        return 3 if self.gated else 2

    def layer_weights(self, shape: Shape) -> int:
        """Return the number of weights in the matrices of one layer."""
        return 4 * shape.hidden**2 + self.feed_forward_matrices * shape.hidden * shape.intermediate

    def layer_floats(self, shape: Shape, maps: int) -> int:
        """Return the number of activations of one layer for one position.

        maps: number of attention maps and masks. Each has `max_length` values for a position.
        """
        return 8 * shape.hidden + self.feed_forward_matrices * shape.intermediate + maps * shape.max_length

    def exported_parameters(self, shape: Shape) -> int:
        """Return the number of weights of encoder and task head, without small vectors such as biases."""
        positions = (shape.max_length + self.token_types) * shape.hidden if self.token_types else 0
        heads = shape.hidden**2 + shape.hidden * shape.labels
        return positions + shape.vocab * shape.hidden + shape.layers * self.layer_weights(shape) + heads

    def parameters(self, shape: Shape) -> int:
        """Return the number of weights of encoder, vocabulary head and task head, without vectors such as biases."""
        vocabulary = shape.hidden**2 + (shape.vocab if self.tied else shape.vocab * (shape.hidden + 1))
        return self.exported_parameters(shape) + vocabulary

    def stacked_matrices(self, name: str) -> int:
        """Return how many matrices a parameter stacks: 3 for query, key and value, 2 for value and gate, else 1."""
        if ".qkv." in name:
            return 3
        return 2 if self.gated and ".mlp_in." in name else 1

    def matrices(self, shape: Shape) -> dict[tuple[int, int], int]:
        """Return the number of matrices in all layers by their size (rows, columns). Muon trains these matrices."""
        square, wide = (shape.hidden, shape.hidden), (shape.intermediate, shape.hidden)
        counts = {square: 4 * shape.layers}
        counts[wide] = counts.get(wide, 0) + self.feed_forward_matrices * shape.layers
        return counts

    def feed_forward(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], float]]:
        """Return the parameters of a feed-forward block: name in the layer → (size, fill value of a removed block)."""
        inputs = (self.feed_forward_matrices - 1) * shape.intermediate
        parameters: dict[str, tuple[tuple[int, ...], float]] = {
            "mlp_in.weight": ((inputs, shape.hidden), 0.0),
            "mlp_out.weight": ((shape.hidden, shape.intermediate), 0.0),
        }
        if self.biases:
            parameters |= {"mlp_in.bias": ((inputs,), 0.0), "mlp_out.bias": ((shape.hidden,), 0.0)}
        return parameters


def each_layer(table: Mapping[str, str], layers: int) -> dict[str, str]:
    """Return a copy of the table in which each entry with `{i}` is replaced by one entry for each layer."""
    return {
        ours.replace("{i}", str(i)): theirs.replace("{i}", str(i))
        for ours, theirs in table.items()
        for i in range(layers if "{i}" in ours else 1)
    }


def with_bias(names: Mapping[str, str]) -> dict[str, str]:
    """Return the parameter names of modules: `{"a": "b"}` gives `{"a.weight": "b.weight", "a.bias": "b.bias"}`."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in names.items() for kind in ("weight", "bias")}


def recipe_sizes(model: Model) -> dict[str, Any]:
    """Return the fields that a `Shape` copies from a recipe's part `model`."""
    return model.model_dump(include={"layers", "hidden", "heads", "intermediate", "max_length", "dropout"})


def published_sizes(config: Config) -> dict[str, Any]:
    """Return the fields of `Shape` that every published config has, and 0 for `labels` and `max_length`.

    Raises KeyError for a missing value, and TypeError or ValueError for a value that is not a number.
    """
    return {
        "vocab": int(config["vocab_size"]),
        "labels": 0,
        "layers": int(config["num_hidden_layers"]),
        "hidden": int(config["hidden_size"]),
        "heads": int(config["num_attention_heads"]),
        "intermediate": int(config["intermediate_size"]),
        "max_length": 0,
    }
