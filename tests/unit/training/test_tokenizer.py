from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tlm_core.errors import InvalidRecipe, NotFound
from tlm_core.training.tokenizer import (
    SPECIALS,
    load_published,
    special_ids,
    train_wordpiece,
    write_folder,
    write_max_length,
)

TEXTS = [
    "The naïve café served crêpes. " * 3,
    "Быстрая коричневая лиса прыгает через ленивую собаку",
    "快速的棕色狐狸跳过懒狗",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है",
    "def f(x): return x ** 2  # 😀",
]
SCRIPT = """
import sys, json
from tlm_core.training.tokenizer import train_wordpiece
texts = json.loads(sys.argv[1])
print(json.dumps(train_wordpiece(lambda: texts, 400, True).get_vocab(), sort_keys=True))
"""


def test_two_processes_train_the_same_vocabulary() -> None:
    vocabularies = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(TEXTS * 5)], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(vocabularies) == 1


def test_tokenizer_covers_every_script_and_decodes_its_tokens() -> None:
    tokenizer = train_wordpiece(lambda: TEXTS * 5, 2000, lowercase=False)
    for text in TEXTS:
        encoding = tokenizer.encode(text)
        assert SPECIALS["unk"] not in encoding.tokens, text
        together = tokenizer.decode(encoding.ids).replace(" ", "")
        assert together == text.replace(" ", "")


def test_tokenizer_preserves_accents_and_follows_the_case_option() -> None:
    lower = train_wordpiece(lambda: TEXTS * 5, 2000, lowercase=True)
    assert lower.encode("CAFÉ").ids == lower.encode("café").ids != lower.encode("cafe").ids
    upper = train_wordpiece(lambda: TEXTS * 5, 2000, lowercase=False)
    assert upper.encode("The").ids != upper.encode("the").ids


def test_vocabulary_respects_its_size_with_specials_first() -> None:
    tokenizer = train_wordpiece(lambda: TEXTS * 5, 300, lowercase=True)
    assert tokenizer.get_vocab_size() <= 300
    assert special_ids(tokenizer) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_large_alphabet_retains_the_frequent_characters() -> None:
    many = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 3000))
    tokenizer = train_wordpiece(lambda: [many, "快" * 50], 400, lowercase=True)
    assert tokenizer.get_vocab_size() <= 400
    assert SPECIALS["unk"] not in tokenizer.encode("快快").tokens


def test_stock_loader_gives_the_same_token_ids(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(lambda: TEXTS * 5, 500, lowercase=True)
    write_folder(tokenizer, tmp_path, types=True)
    write_max_length(tmp_path, 16)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert stock(text)["input_ids"] == tokenizer.encode(text).ids
    assert stock("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert len(stock(TEXTS[0], truncation=True)["input_ids"]) == 16
    assert stock.mask_token_id == 4 and stock.pad_token_id == 0


def test_published_tokenizer_is_copied_with_its_special_ids(tmp_path: Path) -> None:
    own = train_wordpiece(lambda: TEXTS * 5, 500, lowercase=True)
    write_folder(own, tmp_path / "source", types=False)
    tokenizer, ids = load_published(str(tmp_path / "source"), tmp_path / "copy")
    assert ids == special_ids(own)
    assert tokenizer.encode(TEXTS[0]).ids == own.encode(TEXTS[0]).ids
    write_max_length(tmp_path / "copy", 99)
    stock = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert stock.model_max_length == 99 and stock(TEXTS[0])["input_ids"] == own.encode(TEXTS[0]).ids


def test_tokenizer_without_mask_token_or_files_is_rejected(tmp_path: Path) -> None:
    own = train_wordpiece(lambda: TEXTS, 300, lowercase=True)
    write_folder(own, tmp_path, types=False)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("mask_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRecipe, match="mask"):
        load_published(str(tmp_path), tmp_path / "copy")
    with pytest.raises(NotFound, match="Cannot load"):
        load_published(str(tmp_path / "nowhere"), tmp_path / "copy")
