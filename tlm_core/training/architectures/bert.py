"""BERT (Devlin et al. 2019), ELECTRA and RoBERTa: norms after the sublayers, biases, learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tlm_core.training.architectures.base import (
    Architecture,
    Config,
    Shape,
    published_sizes,
    recipe_sizes,
    with_bias,
)

if TYPE_CHECKING:
    from tlm_core.training.graph import GraphWriter
    from tlm_core.training.model import Layer
    from tlm_core.training.recipe import Model


def encoder_names(prefix: str) -> dict[str, str]:
    """Return our name → stock name of a BERT encoder's parameters under `prefix`, without query, key and value."""
    embeddings, layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{i}}"
    return {
        "encoder.tokens.weight": f"{embeddings}.word_embeddings.weight",
        "encoder.positions.weight": f"{embeddings}.position_embeddings.weight",
        "encoder.types.weight": f"{embeddings}.token_type_embeddings.weight",
        **with_bias(
            {
                "encoder.norm": f"{embeddings}.LayerNorm",
                "encoder.layers.{i}.attention.out": f"{layer}.attention.output.dense",
                "encoder.layers.{i}.attention_norm": f"{layer}.attention.output.LayerNorm",
                "encoder.layers.{i}.mlp_in": f"{layer}.intermediate.dense",
                "encoder.layers.{i}.mlp_out": f"{layer}.output.dense",
                "encoder.layers.{i}.mlp_norm": f"{layer}.output.LayerNorm",
            }
        ),
    }


class Bert(Architecture):
    """BERT. The vocabulary head shares the token embeddings."""

    name = "bert"
    stock = "Bert"
    names = encoder_names("bert") | with_bias({"task.dense": "bert.pooler.dense", "task.out": "classifier"})
    vocabulary_names = with_bias(
        {
            "vocabulary.dense": "cls.predictions.transform.dense",
            "vocabulary.norm": "cls.predictions.transform.LayerNorm",
        }
    ) | {"vocabulary.out.bias": "cls.predictions.bias"}
    qkv_name = "bert.encoder.layer.{i}.attention.self.{part}"

    def scratch_shape(self, model: Model, vocab: int, labels: int) -> Shape:
        sizes = recipe_sizes(model)
        return Shape(self.name, vocab, labels, **sizes, eps=1e-12, pooling="cls", positions=sizes["max_length"])

    def fixed_values(self, config: Config) -> dict[str, tuple[object, object]]:
        return {
            "hidden_act": (config.get("hidden_act", "gelu"), "gelu"),
            "position_embedding_type": (config.get("position_embedding_type", "absolute"), "absolute"),
            "type_vocab_size": (config.get("type_vocab_size", 2), self.token_types),
        }

    def published_shape(self, config: Config) -> Shape:
        skipped = self.skipped_positions(config)
        return Shape(
            self.name,
            **published_sizes(config),
            eps=config.get("layer_norm_eps", 1e-12),
            pooling="cls",
            positions=config["max_position_embeddings"] - skipped,
            skipped=skipped,
        )

    def skipped_positions(self, config: Config) -> int:  # noqa: ARG002 - RoBERTa reads it
        """Return the number of position embeddings at the start that the published model leaves unused."""
        return 0

    def stock_arguments(self, shape: Shape, special_ids: Mapping[str, int]) -> dict[str, object]:  # noqa: ARG002
        return {
            "max_position_embeddings": shape.positions + shape.skipped,
            "layer_norm_eps": shape.eps,
            "hidden_dropout_prob": shape.dropout,
            "attention_probs_dropout_prob": shape.dropout,
        }

    def layer(self, shape: Shape, number: int) -> Layer:  # noqa: ARG002 - all layers are alike
        from tlm_core.training.model import PostNormLayer

        return PostNormLayer(shape)

    def write_layer(self, writer: GraphWriter, x: str, number: int, mask: str, rotation: tuple[str, str] | None) -> str:
        g, name = writer.graph, f"encoder.layers.{number}"
        attended = g.op("Add", x, writer.attention(x, f"{name}.attention", mask, rotation))
        x = writer.norm(attended, f"{name}.attention_norm")
        if f"{name}.mlp_out.weight" in writer.weights:
            inner = g.op("Gelu", writer.linear(x, f"{name}.mlp_in"))
            x = g.op("Add", x, writer.linear(inner, f"{name}.mlp_out"))
        return writer.norm(x, f"{name}.mlp_norm")


class Electra(Bert):
    """BERT with ELECTRA's classifier on the first token (linear, GELU, linear), as in the released TLM models."""

    name = "electra"
    stock = "Electra"
    head_activation = "gelu"
    head_dropout = False
    names = encoder_names("electra") | with_bias({"task.dense": "classifier.dense", "task.out": "classifier.out_proj"})
    vocabulary_names = with_bias(
        {"vocabulary.dense": "generator_predictions.dense", "vocabulary.norm": "generator_predictions.LayerNorm"}
    ) | {"vocabulary.out.bias": "generator_lm_head.bias"}
    qkv_name = "electra.encoder.layer.{i}.attention.self.{part}"

    def fixed_values(self, config: Config) -> dict[str, tuple[object, object]]:
        hidden = config["hidden_size"]
        return super().fixed_values(config) | {"embedding_size": (config.get("embedding_size", hidden), hidden)}

    def stock_arguments(self, shape: Shape, special_ids: Mapping[str, int]) -> dict[str, object]:
        own = {"embedding_size": shape.hidden, "classifier_dropout": 0.0}
        return super().stock_arguments(shape, special_ids) | own


class Roberta(Bert):
    """RoBERTa: BERT with one token type, and positions that start after the id of the padding token."""

    name = "roberta"
    stock = "Roberta"
    from_scratch = False
    token_types = 1
    names = encoder_names("roberta") | with_bias({"task.dense": "classifier.dense", "task.out": "classifier.out_proj"})
    vocabulary_names = with_bias({"vocabulary.dense": "lm_head.dense", "vocabulary.norm": "lm_head.layer_norm"}) | {
        "vocabulary.out.bias": "lm_head.bias"
    }
    qkv_name = "roberta.encoder.layer.{i}.attention.self.{part}"

    def skipped_positions(self, config: Config) -> int:
        return int(config.get("pad_token_id", 1)) + 1

    def stock_arguments(self, shape: Shape, special_ids: Mapping[str, int]) -> dict[str, object]:
        ids = {"bos_token_id": special_ids["cls"], "eos_token_id": special_ids["sep"]}
        return super().stock_arguments(shape, special_ids) | ids | {"type_vocab_size": self.token_types}
