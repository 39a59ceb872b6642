"""A small model in the layout of the original TLM release, and its logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel

WORDS = ("good", "bad", "fine", "poor", "text", "film", "plot", "cast", "##s")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
HIDDEN = 32


@dataclass
class Release:
    """A model as published. folder: its files. tensors: its state."""

    folder: Path
    config: BertConfig
    tensors: dict[str, Tensor]

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits [B, labels] by the release's formula: first token, linear, GELU, linear."""
        encoder = BertModel(self.config, add_pooling_layer=False).eval()
        own = {name.removeprefix("bert."): t for name, t in self.tensors.items() if name.startswith("bert.")}
        encoder.load_state_dict(own)
        t = self.tensors
        with torch.inference_mode():
            x = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
            x = F.gelu(x @ t["cls_layer.0.weight"].T + t["cls_layer.0.bias"])
            return x @ t["cls_layer.2.weight"].T + t["cls_layer.2.bias"]


def made_release(folder: Path, labels: int = 3) -> Release:
    """Write pickled weights, config, and vocabulary like the release."""
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=40, architectures=["BertForMaskedLM"],
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=random)
        for name, tensor in BertForMaskedLM(config).state_dict().items()
        if tensor.is_floating_point()
    }
    for layer, size in ((0, HIDDEN), (2, labels)):
        tensors[f"cls_layer.{layer}.weight"] = torch.randn(size, HIDDEN, generator=random)
        tensors[f"cls_layer.{layer}.bias"] = 0.1 * torch.randn(size, generator=random)
    release = Release(folder, config, tensors)
    probe = torch.randint(5, len(VOCABULARY), (32, 8), generator=random)
    probe[:, 0] = 2
    # Otherwise one label wins everywhere, which could hide an error.
    tensors["cls_layer.2.bias"] -= release.logits(probe, torch.ones_like(probe)).mean(dim=0)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    torch.save(tensors, folder / "pytorch_model.bin")
    return release
