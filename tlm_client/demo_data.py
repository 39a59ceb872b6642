"""The demo's data, made of documentation that is on the machine anyway: a general corpus and a labelled task.

The task: which library does this text document? Its texts are docstrings with the names of the libraries blanked out.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tlm_core.artifacts import storage_errors
from tlm_core.corpus.leaks import LeakFilter, grams, tokens
from tlm_core.corpus.packages import Document, documents_from_packages, is_prose, passages_of
from tlm_core.corpus.passages import Passage, tidy, word_count
from tlm_core.corpus.read import CorpusInfo, write_corpus
from tlm_core.errors import MissingDependency

# Well documented libraries that our own requirements bring along, the most telling ones first.
LIBRARIES = (
    "torch", "transformers", "ray", "sympy", "scipy", "pandas", "sklearn", "networkx", "numpy", "redis",
    "onnxscript", "huggingface_hub", "datasets", "opensearchpy", "pydantic", "narwhals", "botocore", "onnxruntime",
    "joblib", "aiohttp",
)  # fmt: skip
MOST_LABELS, LEAST_LABELS = 15, 10
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 30, 20, 1050
FEWEST_WORDS, MOST_WORDS = 20, 120
ROWS_PER_MODULE = 4
BLANK = "___"

# Names are blanked within longer words too; short ones only where they begin or make up a part of an identifier.
_NAMES = re.compile(
    r"(?:py[\W_]?)?torch|transformers|datasets|pandas|pydantic|narwhals|joblib|aiohttp"
    r"|(?:num|sci|sym)[\W_]?py|network[\W_]?x|sci[\W_]?kit(?:[\W_]?learn)?|sk[\W_]?learn|tensor[\W_]?flow"
    r"|onnx(?:[\W_]?(?:script|runtime))?|open[\W_]?search(?:[\W_]?py)?|hugging[\W_]?face(?:[\W_]?hub)?"
    r"|redis(?!tr)|kube[\W_]?ray|any[\W_]?scale|(?<![a-z])ray|(?-i:(?<=[a-z])Ray)"
    r"|(?<![a-z0-9])(?:np|pd|tf|nx|hf)(?![a-z0-9])|(?-i:Hf(?=[A-Z]))|(?<![a-z])boto(?:core|3)?|(?<![a-z0-9_])(?:sp|nw|ort|skl)(?=\.)",
    re.IGNORECASE,
)
# What a test checks says little of what its library is for.
_TEST = re.compile(r"(^|[/\\])(tests?|testing)[/\\]|(^|[/\\])(test_|conftest)[^/\\]*$|_test\.py$")

Progress = Callable[[str, int, int], None]


class _Row(NamedTuple):
    text: str
    label: str
    document: Document


class DemoData(NamedTuple):
    """What `make_demo` made: the corpus, and rows by split."""

    corpus: CorpusInfo
    labels: tuple[str, ...]
    rows: dict[str, int]


def make_demo(folder: Path, seed: int = 0, progress: Progress | None = None) -> DemoData:
    """Write `folder/corpus/`, `folder/task/{train,validation,test}.jsonl` and `folder/demo.json`.

    The same environment and seed give the same bytes. No text of the task stands in the corpus, no module gives rows
    to two splits, and no two rows share half of their 8-grams. progress: is told what is done, how much, of how much.

    Raises MissingDependency if fewer than 10 of the libraries are installed, StorageFull, StorageUnavailable.
    """
    tell = progress or (lambda *_: None)
    documents = documents_from_packages(progress=lambda done, total: tell("reading documentation", done, total))
    return write_demo(list(documents), folder, seed, tell)


def write_demo(documents: Sequence[Document], folder: Path, seed: int, tell: Progress) -> DemoData:
    """`make_demo` on given documents, which come file by file."""
    splits = make_task(documents, seed)
    rows = [row for split in splits.values() for row in split]
    taken = {id(row.document) for row in rows}
    rest = [document for document in documents if id(document) not in taken]
    corpus = _WithoutTask(passages_of(_counted(rest, tell)), rows)
    info = write_corpus(corpus, folder / "corpus")
    labels = tuple(sorted({row.label for row in rows}))
    with storage_errors(f"writing {folder}"):
        (folder / "task").mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            lines = (json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) + "\n" for row in split)
            (folder / "task" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        facts = {
            "seed": seed,
            "labels": list(labels),
            "rows": {name: len(split) for name, split in splits.items()},
            "documents": len(documents),
            "passages_dropped_for_the_task": corpus.dropped,
            "corpus": info.model_dump(mode="json", exclude={"sources"}),
        }
        (folder / "demo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return DemoData(info, labels, {name: len(split) for name, split in splits.items()})


class _WithoutTask:
    """`passages` without those that hold a text of `rows`, blanked or not; counts what it drops."""

    def __init__(self, passages: Iterable[Passage], rows: Sequence[_Row]) -> None:
        self.dropped = 0
        self._passages = passages
        texts = [text for row in rows for text in (row.document.text, row.text)]
        self._leaks = LeakFilter(("task", number, text) for number, text in enumerate(texts))

    def __iter__(self) -> Iterator[Passage]:
        for passage in self._passages:
            if self._leaks.leaks_of(passage.text):
                self.dropped += 1
            else:
                yield passage


def _counted(documents: Sequence[Document], tell: Progress) -> Iterator[Document]:
    for done, document in enumerate(documents, start=1):
        yield document
        if done % 1000 == 0 or done == len(documents):
            tell("writing the corpus", done, len(documents))


def blank_names(text: str) -> str:
    """`text` with every name of a library replaced by `___`, in any case and inside identifiers."""
    return _NAMES.sub(BLANK, text)


def make_task(documents: Iterable[Document], seed: int) -> dict[str, list[_Row]]:
    """Rows by split: 30 train and 20 validation rows a label, at least 1,050 test rows, as many for each label.

    Takes 15 libraries, or as many as have enough docstrings. Raises MissingDependency under 10.
    """
    modules: dict[str, dict[str, list[Document]]] = {name: defaultdict(list) for name in LIBRARIES}
    for document in documents:
        if document.docstring and document.package in modules and not _TEST.search(document.file):
            modules[document.package][document.file].append(document)
    for count in range(MOST_LABELS, LEAST_LABELS - 1, -1):
        sizes = {"test": -(-TEST_ROWS // count), "validation": VALIDATION_ROWS, "train": TRAIN_ROWS}
        chosen: dict[str, list[_Row]] = {name: [] for name in reversed(sizes)}
        seen: set[tuple[str, ...]] = set()
        labels = 0
        for name in LIBRARIES:
            if labels < count and (rows := _rows_of(modules[name], sizes, seen, random.Random(f"{seed} {name}"))):
                labels += 1
                for split, part in rows.items():
                    chosen[split] += part
        if labels == count:
            for split, part in chosen.items():
                random.Random(f"{seed} {split}").shuffle(part)
            return chosen
    raise MissingDependency(
        f"the demo needs {LEAST_LABELS} documented libraries out of {', '.join(LIBRARIES)}; install the requirements"
    )


def _rows_of(
    modules: dict[str, list[Document]], sizes: dict[str, int], seen: set[tuple[str, ...]], chance: random.Random
) -> dict[str, list[_Row]] | None:
    """Rows of one label by split, from modules of their own; None if there are too few.

    seen: 8-grams of the rows taken so far; grows by those of the rows returned.
    """
    names = sorted(modules)
    chance.shuffle(names)
    queue = iter(names)
    own = set(seen)
    rows: dict[str, list[_Row]] = {}
    for split, size in sizes.items():
        part: list[_Row] = []
        while len(part) < size:
            name = next(queue, None)
            if name is None:
                return None
            candidates = chance.sample(modules[name], len(modules[name]))
            part += islice(_novel(candidates, own), min(ROWS_PER_MODULE, size - len(part)))
        rows[split] = part
    seen |= own
    return rows


def _novel(documents: Iterable[Document], seen: set[tuple[str, ...]]) -> Iterator[_Row]:
    """Rows of fitting length with less than half of their 8-grams in `seen`, which grows by those of each."""
    for document in documents:
        text = tidy(blank_names(document.text))
        if FEWEST_WORDS <= word_count(text) <= MOST_WORDS and is_prose(text):
            parts = set(grams(tokens(text)))
            if 2 * len(parts & seen) < len(parts):
                seen |= parts
                yield _Row(text, document.package, document)
