"""Demo data from the documentation of installed packages: a general corpus and a labeled task.

The task: which library does this text document? Its texts are docstrings without the names of the libraries.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tlm_core.artifacts import storage_errors
from tlm_core.corpus.leaks import LeakFilter, grams, tokens
from tlm_core.corpus.packages import Document, PackageFile, is_prose, package_files, passages_of, read_files
from tlm_core.corpus.passages import Passage, tidy, word_count
from tlm_core.corpus.read import CorpusInfo, write_corpus
from tlm_core.errors import MissingDependency

# Documented libraries that the requirements install, preferred ones first.
LIBRARIES = (
    "torch", "transformers", "ray", "sympy", "scipy", "pandas", "sklearn", "networkx", "numpy", "redis",
    "onnxscript", "huggingface_hub", "datasets", "opensearchpy", "pydantic", "narwhals", "botocore", "onnxruntime",
    "joblib", "aiohttp",
)  # fmt: skip
MIN_WORDS, MAX_WORDS = 20, 120
ROWS_PER_MODULE = 4
BLANK = "___"

# Long names match inside words. Short names match only as a part of an identifier.
_NAMES = re.compile(
    r"(?:py[\W_]?)?torch|transformers|datasets|pandas|pydantic|narwhals|joblib|aiohttp"
    r"|(?:num|sci|sym)[\W_]?py|network[\W_]?x|sci[\W_]?kit(?:[\W_]?learn)?|sk[\W_]?learn|tensor[\W_]?flow"
    r"|onnx(?:[\W_]?(?:script|runtime))?|open[\W_]?search(?:[\W_]?py)?|hugging[\W_]?face(?:[\W_]?hub)?"
    r"|redis(?!tr)|kube[\W_]?ray|any[\W_]?scale|(?<![a-z])ray|(?-i:(?<=[a-z])Ray)"
    r"|(?<![a-z0-9])(?:np|pd|tf|nx|hf)(?![a-z0-9])|(?-i:Hf(?=[A-Z]))|(?<![a-z])boto(?:core|3)?|(?<![a-z0-9_])(?:sp|nw|ort|skl)(?=\.)",
    re.IGNORECASE,
)
# Exclude tests, because their documentation describes the library only a little.
_TEST = re.compile(r"(^|[/\\])(tests?|testing)[/\\]|(^|[/\\])(test_|conftest)[^/\\]*$|_test\.py$")

Progress = Callable[[str, int, int], None]
Grams = set[tuple[str, ...]]
Splits = dict[str, list["Row"]]


class TaskSize(NamedTuple):
    """The size of a task. train, validation, test: numbers of rows for each label.

    labels, fewest: maximum and minimum number of labels. libraries: possible labels.
    """

    labels: int
    fewest: int
    train: int
    validation: int
    test: int
    libraries: tuple[str, ...] = LIBRARIES


# Libraries with clearly different subjects.
DISTINCT = ("torch", "sympy", "pandas", "ray", "networkx", "scipy", "sklearn", "transformers")
DEMO = TaskSize(labels=5, fewest=4, train=30, validation=30, test=200, libraries=DISTINCT)
LARGE = TaskSize(labels=15, fewest=10, train=30, validation=20, test=70)  # the benchmark task `libraries`


class Row(NamedTuple):
    """A row of the task and its document."""

    text: str
    label: str
    document: Document


def generate_demo(folder: Path, size: TaskSize) -> None:
    """Write `task/`, `corpus/` and `demo.json` into a folder. Raises what `write_task` and `write_corpus_of` raise."""
    documentation = Documentation(lambda *_: None)
    write_corpus_of(documentation, write_task(documentation, folder, size), folder)


@dataclass
class Documentation:
    """The documentation of the installed packages. `read` reads each file only once.

    progress: a function that receives the stage, the finished amount and the total amount, in bytes or documents.
    """

    progress: Progress
    files: list[PackageFile] = field(default_factory=package_files)
    by_file: dict[PackageFile, list[Document]] = field(default_factory=dict)

    def read(self, libraries: Collection[str] | None = None) -> list[Document]:
        """Return the documents of some libraries, by default of all packages, grouped by file."""
        files = [file for file in self.files if libraries is None or file.top in libraries]
        missing = [file for file in files if file not in self.by_file]
        progress = partial(self.progress, "reading more documentation" if self.by_file else "reading documentation")
        self.by_file |= zip(missing, read_files(missing, progress=progress), strict=True)
        return [document for file in files for document in self.by_file[file]]


def write_task(documentation: Documentation, folder: Path, size: TaskSize) -> Splits:
    """Write `folder/task/{train,validation,test}.jsonl`, and return the rows by split.

    The same environment gives the same bytes. Raises StorageFull, StorageUnavailable, and what `build_task` raises.
    """
    splits = build_task(documentation.read(size.libraries), 0, size)
    with storage_errors(f"writing {folder}"):
        (folder / "task").mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            lines = (json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) + "\n" for row in split)
            (folder / "task" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return splits


def write_corpus_of(documentation: Documentation, splits: Splits, folder: Path) -> CorpusInfo:
    """Write `folder/corpus/` without texts of the task, and `folder/demo.json` with facts about task and corpus.

    Raises StorageFull or StorageUnavailable.
    """
    documents = documentation.read()
    rows = [row for split in splits.values() for row in split]
    used = {id(row.document) for row in rows}
    remaining = [document for document in documents if id(document) not in used]
    leaks = LeakFilter(("task", i, text) for i, row in enumerate(rows) for text in (row.document.text, row.text))
    passages = passages_of(_with_progress(remaining, documentation.progress))
    dropped = 0

    def passages_without_leaks() -> Iterator[Passage]:
        nonlocal dropped
        for passage in passages:
            if leaks.leaks_of(passage.text):
                dropped += 1
            else:
                yield passage

    info = write_corpus(passages_without_leaks(), folder / "corpus")
    facts = {
        "labels": sorted({row.label for row in rows}),
        "rows": {name: len(split) for name, split in splits.items()},
        "documents": len(documents),
        "passages_dropped_for_the_task": dropped,
        "corpus": info.model_dump(mode="json", exclude={"sources"}),
    }
    with storage_errors(f"writing {folder}"):
        (folder / "demo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return info


def _with_progress(documents: Sequence[Document], progress: Progress) -> Iterator[Document]:
    for done, document in enumerate(documents, start=1):
        yield document
        if done % 1000 == 0 or done == len(documents):
            progress("writing the corpus", done, len(documents))


def blank_names(text: str) -> str:
    """Replace every name of a library by `___`, in any case and inside identifiers."""
    return _NAMES.sub(BLANK, text)


def build_task(documents: Iterable[Document], seed: int, size: TaskSize) -> Splits:
    """Return rows by split, with the same number of rows for each label.

    The labels are the first libraries of `size.libraries` with enough docstrings, at most `size.labels` of them.
    Each module gives rows to one split only. No row shares half of its 8-grams with earlier rows. Raises
    MissingDependency if fewer than `size.fewest` libraries have enough docstrings.
    """
    modules: dict[str, dict[str, list[Document]]] = {name: defaultdict(list) for name in LIBRARIES}
    for document in documents:
        if document.docstring and document.package in modules and not _TEST.search(document.file):
            modules[document.package][document.file].append(document)
    # Test rows are chosen first, train rows last.
    sizes = {"test": size.test, "validation": size.validation, "train": size.train}
    seen: Grams = set()
    candidates = (_rows_of(modules[name], sizes, seen, random.Random(f"{seed} {name}")) for name in size.libraries)
    labels = list(islice(filter(None, candidates), size.labels))
    if len(labels) < size.fewest:
        raise MissingDependency(
            f"The demo needs the docstrings of at least {size.fewest} of these libraries: "
            f"{', '.join(size.libraries)}. Install more of them."
        )
    splits = {split: [row for rows in labels for row in rows[split]] for split in reversed(sizes)}
    for split, rows in splits.items():
        random.Random(f"{seed} {split}").shuffle(rows)
    return splits


def _rows_of(
    modules: Mapping[str, Sequence[Document]], sizes: Mapping[str, int], seen: Grams, rng: random.Random
) -> dict[str, list[Row]] | None:
    """Return the rows of one label by split, each split from different modules. Return None if there are too few rows.

    seen: 8-grams of all earlier rows. The function adds the 8-grams of the returned rows.
    """
    names = sorted(modules)
    rng.shuffle(names)
    queue = iter(names)
    label_grams = set(seen)
    rows: dict[str, list[Row]] = {}
    for split, size in sizes.items():
        rows[split] = []
        while (missing := size - len(rows[split])) > 0:
            name = next(queue, None)
            if name is None:
                return None
            documents = rng.sample(modules[name], len(modules[name]))
            rows[split] += islice(_new_rows(documents, label_grams), min(ROWS_PER_MODULE, missing))
    seen |= label_grams
    return rows


def _new_rows(documents: Iterable[Document], seen: Grams) -> Iterator[Row]:
    """Yield rows of valid length with less than half of their 8-grams in `seen`, and add their 8-grams to `seen`."""
    for document in documents:
        text = tidy(blank_names(document.text))
        if MIN_WORDS <= word_count(text) <= MAX_WORDS and is_prose(text):
            text_grams = set(grams(tokens(text)))
            if 2 * len(text_grams & seen) < len(text_grams):
                seen |= text_grams
                yield Row(text, document.package, document)
