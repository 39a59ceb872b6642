"""Tokenizers of jobs: a WordPiece tokenizer that the job trains ("own"), or a published tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.hub import TOKENIZER, model_folder
from tlm_core.json_files import read_json

SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# Five million words have about this length. They suffice for a vocabulary of 60,000 tokens. Without a limit, the
# trainer's memory would grow with the corpus, because the trainer stores each distinct word with its pairs.
MAX_CHARACTERS = 30_000_000


def _bare(vocabulary: dict[str, int] | None, lowercase: bool) -> Tokenizer:
    """Return a WordPiece tokenizer that splits words as BERT does, but does not remove accents."""
    model = models.WordPiece(vocabulary or {}, unk_token=SPECIALS["unk"], max_input_chars_per_word=100)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _within(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


def _alphabet(texts: Iterable[str], size: int, normalizer: normalizers.Normalizer) -> list[str]:
    """Return the `size` most frequent characters of the texts, sorted. In a tie, prefer the lower code point."""
    counts: Counter[str] = Counter()
    blocks = iter(texts)
    while block := "\n".join(islice(blocks, 1000)):
        counts.update(normalizer.normalize_str(block))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    return sorted(ranked[:size])


def train_wordpiece(texts: Callable[[], Iterable[str]], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Return a WordPiece tokenizer, trained on texts in any script. Equal texts give equal tokenizers.

    texts: returns the texts; called twice. vocab_size: maximum number of tokens in the vocabulary. The alphabet has at
    most vocab_size / 4 characters. A word with any other character becomes [UNK].
    """
    tokenizer = _bare(None, lowercase)
    alphabet = _alphabet(_within(texts(), MAX_CHARACTERS), vocab_size // 4, tokenizer.normalizer)
    # The trainer numbers characters in the order of a hash table that differs between runs, and breaks ties by number.
    # If all characters are given in order, their numbers are the same in each run.
    first = [*SPECIALS.values(), *alphabet, *(f"##{c}" for c in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(first)),
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_within(texts(), MAX_CHARACTERS), trainer)
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    trained = _bare({piece: number for number, piece in enumerate(pieces)}, lowercase)
    trained.add_special_tokens(list(SPECIALS.values()))
    cls, sep = SPECIALS["cls"], SPECIALS["sep"]
    trained.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, trained.token_to_id(token)) for token in (cls, sep)],
    )
    return trained


def cut_into_windows(tokenizer: Tokenizer, max_length: int, windows: int) -> None:
    """Configure the tokenizer to split texts into windows of at most `max_length` tokens, including special tokens.

    Neighboring windows share a quarter of their tokens. windows: maximum number of windows of a text, which
    `windows_of` enforces. For pairs, the maximum must be 1. The tokenizer then shortens the longer text of a pair.
    """
    tokenizer.enable_truncation(max_length, stride=max_length // 4 if windows > 1 else 0, strategy="longest_first")


def windows_of(encoding: Encoding, windows: int) -> tuple[list[Encoding], bool]:
    """Return the first `windows` windows of an encoded text, and whether the text has more windows."""
    further = encoding.overflowing
    return [encoding, *further[: windows - 1]], len(further) >= windows


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of an own tokenizer's special tokens by role, such as `{"pad": 0, "unk": 1, …}`."""
    vocabulary = tokenizer.get_vocab()
    return {role: vocabulary[token] for role, token in SPECIALS.items()}


def write_folder(tokenizer: Tokenizer, folder: Path, types: bool) -> None:
    """Write a tokenizer as `AutoTokenizer.from_pretrained` reads it. types: whether the model reads token types."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": names,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in SPECIALS.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_max_length(folder: Path, max_length: int) -> None:
    """Write `max_length` into a tokenizer's folder. Stock classes then truncate texts to this number of tokens."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) | {"model_max_length": max_length}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_published(source: str, folder: Path) -> tuple[Tokenizer, dict[str, int]]:
    """Copy the tokenizer `source` (`hub:ID` or a folder) to `folder`. Return the tokenizer and its special ids by role.

    Raises NotFound if there is no tokenizer, and Unavailable if the hub does not answer. Raises InvalidRecipe if the
    tokenizer is not a fast tokenizer, or lacks a special token.
    """
    from transformers import AutoTokenizer

    original = model_folder(source, "config.json", *TOKENIZER)
    try:
        published = AutoTokenizer.from_pretrained(str(original), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise NotFound(f"Cannot load the tokenizer '{source}': {error}. Check tokenizer.source.") from error
    if not published.is_fast:
        raise InvalidRecipe(f"The tokenizer '{source}' is not fast. Choose a tokenizer with a tokenizer.json.")
    ids = {
        "pad": published.pad_token_id,
        "unk": published.unk_token_id,
        "cls": _first(published.cls_token_id, published.bos_token_id),
        "sep": _first(published.sep_token_id, published.eos_token_id),
        "mask": published.mask_token_id,
    }
    missing = sorted(role for role, number in ids.items() if number is None and role != "unk")
    if missing:
        raise InvalidRecipe(
            f"The tokenizer '{source}' lacks special tokens: {', '.join(missing)}. Choose the tokenizer of a masked "
            "language model."
        )
    published.save_pretrained(str(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, {role: number for role, number in ids.items() if number is not None}


def _first(*ids: int | None) -> int | None:
    return next((number for number in ids if number is not None), None)
