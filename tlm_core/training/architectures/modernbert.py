"""ModernBERT (Warner et al. 2024): norms before the sublayers, no biases, gated blocks, rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tlm_core.training.architectures.base import Architecture, Config, Shape, published_sizes, recipe_sizes

if TYPE_CHECKING:
    from tlm_core.training.graph import GraphWriter
    from tlm_core.training.model import Layer
    from tlm_core.training.recipe import Model


class ModernBert(Architecture):
    """ModernBERT. The vocabulary head has its own matrix. In published models, this matrix is the token embeddings."""

    name = "modernbert"
    stock = "ModernBert"
    biases = False
    gated = True
    token_types = 0
    final_norm = True
    tied = False
    residual_start = True
    head_activation = "gelu"
    head_norm = True
    names = {  # noqa: RUF012 - a ClassVar of the base class
        "encoder.tokens.weight": "model.embeddings.tok_embeddings.weight",
        "encoder.norm.weight": "model.embeddings.norm.weight",
        "encoder.layers.{i}.attention_norm.weight": "model.layers.{i}.attn_norm.weight",
        "encoder.layers.{i}.attention.qkv.weight": "model.layers.{i}.attn.Wqkv.weight",
        "encoder.layers.{i}.attention.out.weight": "model.layers.{i}.attn.Wo.weight",
        "encoder.layers.{i}.mlp_norm.weight": "model.layers.{i}.mlp_norm.weight",
        "encoder.layers.{i}.mlp_in.weight": "model.layers.{i}.mlp.Wi.weight",
        "encoder.layers.{i}.mlp_out.weight": "model.layers.{i}.mlp.Wo.weight",
        "encoder.final_norm.weight": "model.final_norm.weight",
        "task.dense.weight": "head.dense.weight",
        "task.norm.weight": "head.norm.weight",
        "task.out.weight": "classifier.weight",
        "task.out.bias": "classifier.bias",
    }
    vocabulary_names = {  # noqa: RUF012
        "vocabulary.dense.weight": "head.dense.weight",
        "vocabulary.norm.weight": "head.norm.weight",
        "vocabulary.out.weight": "model.embeddings.tok_embeddings.weight",
        "vocabulary.out.bias": "decoder.bias",
    }

    def scratch_shape(self, model: Model, vocab: int, labels: int) -> Shape:
        windows, thetas = (None,) * model.layers, (10_000.0,) * model.layers
        return Shape(self.name, vocab, labels, **recipe_sizes(model), windows=windows, thetas=thetas)

    def fixed_values(self, config: Config) -> dict[str, tuple[object, object]]:
        biases = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
        activation = (config.get("hidden_activation", "gelu"), "gelu")
        return {key: (config.get(key) or False, False) for key in biases} | {"hidden_activation": activation}

    def published_shape(self, config: Config) -> Shape:
        count, interval = config["num_hidden_layers"], config.get("global_attn_every_n_layers", 3)
        kinds = config.get("layer_types") or [
            "sliding_attention" if i % interval else "full_attention" for i in range(count)
        ]
        rope = config.get("rope_parameters") or {}
        older = {
            "full_attention": config.get("global_rope_theta", 160_000.0),
            "sliding_attention": config.get("local_rope_theta", 10_000.0),
        }
        theta = {kind: float(rope.get(kind, {}).get("rope_theta", default)) for kind, default in older.items()}
        half = config.get("local_attention", 128) // 2
        return Shape(
            self.name,
            **published_sizes(config),
            eps=config.get("norm_eps", 1e-5),
            pooling=config.get("classifier_pooling", "mean"),
            windows=tuple(None if kind == "full_attention" else half for kind in kinds),
            thetas=tuple(theta[kind] for kind in kinds),
        )

    def stock_names(self, shape: Shape) -> dict[str, str]:
        names = super().stock_names(shape)
        del names["encoder.layers.0.attention_norm.weight"]  # The norm of the embeddings replaces this norm.
        return names

    def stock_arguments(self, shape: Shape, special_ids: Mapping[str, int]) -> dict[str, object]:
        kinds = ["full_attention" if window is None else "sliding_attention" for window in shape.windows]
        thetas = dict.fromkeys(("full_attention", "sliding_attention"), 10_000.0) | dict(
            zip(kinds, shape.thetas, strict=True)
        )
        window = next((window for window in shape.windows if window is not None), 64)
        dropouts = ("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout")
        return {
            "max_position_embeddings": max(shape.max_length, 16),
            "norm_eps": shape.eps,
            "layer_types": kinds,
            "local_attention": 2 * window,
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
            "classifier_pooling": shape.pooling,
            **dict.fromkeys(("cls_token_id", "bos_token_id"), special_ids["cls"]),
            **dict.fromkeys(("sep_token_id", "eos_token_id"), special_ids["sep"]),
            **dict.fromkeys(dropouts, shape.dropout),
        }

    def layer(self, shape: Shape, number: int) -> Layer:
        from tlm_core.training.model import PreNormLayer

        return PreNormLayer(shape, first=number == 0)

    def write_layer(self, writer: GraphWriter, x: str, number: int, mask: str, rotation: tuple[str, str] | None) -> str:
        g, name = writer.graph, f"encoder.layers.{number}"
        h = writer.norm(x, f"{name}.attention_norm") if number else x
        x = g.op("Add", x, writer.attention(h, f"{name}.attention", mask, rotation))
        if f"{name}.mlp_out.weight" not in writer.weights:
            return x
        value, gate = g.split(writer.linear(writer.norm(x, f"{name}.mlp_norm"), f"{name}.mlp_in"), 2, axis=-1)
        return g.op("Add", x, writer.linear(g.op("Mul", g.op("Gelu", value), gate), f"{name}.mlp_out"))

    def feed_forward(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], float]]:
        return {**super().feed_forward(shape), "mlp_norm.weight": ((shape.hidden,), 1.0)}
