"""Predictions of a returned model: its ONNX graph, its tokenizer and its n-grams, without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlm_core.errors import CorruptArtifact, InvalidRequest, MissingDependency
from tlm_core.evaluation.combine import ENCODERS, LINEAR_MODELS, softmax
from tlm_core.json_files import read_json
from tlm_core.linear.model import ALPHABET, read_alphabet
from tlm_core.linear.ngrams import Alphabet
from tlm_core.tasks.metrics import SINGLE_LABEL
from tlm_core.tasks.task import Task
from tlm_core.tasks.types import TASK_TYPES, TaskType

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Encoding, Tokenizer

    Windows = Sequence[Encoding]  # the windows of one text

MODEL, METADATA = "model.onnx", "labels.json"
LINEAR_FILES = (MODEL, METADATA, ALPHABET)  # all files of a linear model that is served
NGRAM_IDS = "ngram_ids"  # the input of a linear model
BATCH = 32  # windows of an encoder, or texts of a linear model, whose graph holds a dense array [texts, features]


def write_metadata(folder: Path, task: Task, model: str, max_length: int | None = None, windows: int = 1) -> None:
    """Write labels.json, which predictions need in addition to the graph.

    model: linear, self_trained, encoder, ensemble or combined. max_length: tokens of a window. windows: maximum
    number of windows of a text. For a linear model, both values are ignored, because it reads whole texts.
    """
    metadata = {"labels": list(task.labels), "pair": task.pair, "task_type": task.type.name, "model": model}
    metadata |= {} if model in LINEAR_MODELS else {"max_length": max_length, "windows": windows}
    (folder / METADATA).write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")


def copy_model(source: Path, out: Path) -> None:
    """Copy the files of a linear model (`LINEAR_FILES`) from `source` to `out`. Create the folder `out` if needed."""
    out.mkdir(exist_ok=True)
    for name in LINEAR_FILES:
        shutil.copyfile(source / name, out / name)


@dataclass(frozen=True)
class Model:
    """A returned model in memory, ready for predictions."""

    session: InferenceSession
    tokenizer: Tokenizer | None  # None for a linear model
    alphabet: Alphabet | None  # the n-grams of a linear model, alone or in a combination
    labels: tuple[str, ...]  # in the order of the outputs; a regression model has one output, named after the target
    pair: bool  # whether each row has two texts
    size: int  # bytes of all files
    type: TaskType = TASK_TYPES[SINGLE_LABEL]
    name: str = "encoder"  # linear, self_trained, encoder, ensemble or combined
    windows: int = 1  # largest number of windows that an encoder reads of a text; a linear model reads whole texts
    pad: int = 0  # id of the padding token

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Return an array (texts, labels) of probabilities, or (texts, 1) of the predictions of a regression model.

        Row i belongs to texts[i], and to pairs[i] if the model reads pairs. Batching changes results only by rounding,
        except with 8-bit weights (docs/serving.md). Raises InvalidRequest if `pairs` does not fit the model or `texts`.
        """
        if self.pair and pairs is None:
            raise InvalidRequest("This model expects pairs of texts. Send the second texts as 'pairs'.")
        if not self.pair and pairs is not None:
            raise InvalidRequest("This model expects single texts. Omit 'pairs'.")
        if pairs is not None and len(pairs) != len(texts):
            raise InvalidRequest(
                f"The request has {len(texts)} values in 'texts' but {len(pairs)} in 'pairs'. Send one second text in "
                "'pairs' for each text."
            )
        if not texts:
            return np.zeros((0, len(self.labels)), np.float32)
        rows = [(text,) for text in texts] if pairs is None else list(zip(texts, pairs, strict=True))
        cut = self._windows(rows)
        counts = [len(windows) or 1 for windows in cut]
        lengths = [
            len(windows[0].ids) if windows else sum(map(len, row)) for windows, row in zip(cut, rows, strict=True)
        ]
        # Batch texts of equally many windows and similar length, because padding costs as much time as text.
        order = sorted(range(len(rows)), key=lambda i: (counts[i], lengths[i]))
        result = np.empty((len(rows), len(self.labels)), np.float32)
        for count, group in groupby(order, key=lambda i: counts[i]):
            members = list(group)
            for start in range(0, len(members), size := max(1, BATCH // count)):
                batch = members[start : start + size]
                result[batch] = self._run([rows[i] for i in batch], [cut[i] for i in batch])
        return result

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[str] | list[float]:
        """Return the most likely label of each text or, for a regression model, the predicted value of each text."""
        rows = self.probabilities(texts, pairs)
        return [self.labels[index] for index in rows.argmax(axis=1)] if self.type.has_classes else rows[:, 0].tolist()

    def _run(self, rows: Sequence[tuple[str, ...]], cut: Sequence[Windows]) -> NDArray[np.float32]:
        """Return the result of `probabilities` for texts with equally many windows. cut: the windows of each text."""
        # The graph reads [batch, windows, length]. The graph of an older export reads [batch, length].
        axes = {node.name: len(node.shape) for node in self.session.get_inputs()}
        columns = self._tokens(cut) | ({} if self.alphabet is None else ngram_ids(self.alphabet, rows))
        arrays = {
            name: columns[name] if count == columns[name].ndim else columns[name][:, 0] for name, count in axes.items()
        }
        logits = self.session.run(None, arrays)[0]
        return softmax(logits) if self.type.has_classes else np.asarray(logits, np.float32)

    def _windows(self, rows: Sequence[tuple[str, ...]]) -> list[Windows]:
        """Return the windows of each row (a text or a pair). For a linear model, return () for each row."""
        if self.tokenizer is None:
            return [()] * len(rows)
        from tlm_core.training.tokenizer import windows_of

        encoded = self.tokenizer.encode_batch([row if self.pair else row[0] for row in rows])
        return [windows_of(encoding, self.windows)[0] for encoding in encoded]

    def _tokens(self, cut: Sequence[Windows]) -> dict[str, NDArray[np.int64]]:
        """Return the encoder's inputs by name, each an array [texts, windows, length]. Empty for a linear model."""
        if self.tokenizer is None:
            return {}
        shape = (len(cut), len(cut[0]), max(len(window.ids) for windows in cut for window in windows))
        columns = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        columns["input_ids"][:] = self.pad
        for text, windows in enumerate(cut):
            for place, window in enumerate(windows):
                columns["input_ids"][text, place, : len(window)] = window.ids
                columns["attention_mask"][text, place, : len(window)] = 1
                columns["token_type_ids"][text, place, : len(window)] = window.type_ids
        return columns


def ngram_ids(alphabet: Alphabet, rows: Sequence[tuple[str, ...]]) -> dict[str, NDArray[np.int64]]:
    """Return `{NGRAM_IDS: ids}`, the input of a linear model. ids: array [rows, ids of n-grams], padded with 0."""
    encoded = [alphabet.encode(row) for row in rows]
    ids = np.zeros((len(rows), max(map(len, encoded))), np.int64)
    for place, of_row in enumerate(encoded):
        ids[place, : len(of_row)] = of_row
    return {NGRAM_IDS: ids}


def load_model(folder: Path) -> Model:
    """Return the model in a folder with model.onnx, labels.json, and model/ or ngrams.json or both.

    Raises CorruptArtifact for missing or damaged files. Raises MissingDependency without onnxruntime or tokenizers.
    """
    if missing := [name for name in (METADATA, MODEL) if not (folder / name).is_file()]:
        raise CorruptArtifact(
            f"The folder '{folder}' holds no model of a finished job: it has no {' and no '.join(missing)}. Use a "
            "folder that `tlm download` wrote for a finished job."
        )
    try:
        from onnxruntime import InferenceSession, SessionOptions

        metadata = read_json(folder / METADATA)
        name = str(metadata.get("model", "encoder"))
        windows = int(metadata.get("windows", 1))  # older exports lack the key
        tokenizer, pad = None, 0
        if name not in LINEAR_MODELS:
            tokenizer, pad = _tokenizer(folder, int(metadata["max_length"]), windows)
        alphabet = None if name in ENCODERS else read_alphabet(folder)
        labels, pair = tuple(str(label) for label in metadata["labels"]), bool(metadata["pair"])
        files = (folder / MODEL, folder / "model" / "tokenizer.json", folder / ALPHABET)
        size = sum(path.stat().st_size for path in files if path.exists())
        options = SessionOptions()
        options.log_severity_level = 3
        session = InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        task_type = TASK_TYPES[str(metadata.get("task_type", SINGLE_LABEL))]
    except ImportError as error:
        needed = "Loading a model needs the packages onnxruntime and tokenizers."
        raise MissingDependency(f"{needed} Run `pip install onnxruntime tokenizers`.") from error
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime and tokenizers have errors without a common base
        raise CorruptArtifact(f"The model in '{folder}' cannot be read: {error}. Download it again.") from error
    return Model(session, tokenizer, alphabet, labels, pair, size, task_type, name, windows, pad)


def _tokenizer(folder: Path, max_length: int, windows: int) -> tuple[Tokenizer, int]:
    """Return the tokenizer, which cuts texts into windows, and the id of its padding token."""
    from tokenizers import Tokenizer

    from tlm_core.training.tokenizer import cut_into_windows

    config = read_json(folder / "model" / "config.json")
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    cut_into_windows(tokenizer, max_length, windows)
    tokenizer.no_padding()
    return tokenizer, int(config["pad_token_id"])
