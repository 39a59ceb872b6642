"""The demo data: a balanced task and a corpus without its texts."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.support import passages_in
from tlm_client.demo_data import (
    DEMO,
    DISTINCT,
    LARGE,
    LIBRARIES,
    Documentation,
    blank_names,
    build_task,
    write_corpus_of,
    write_task,
)
from tlm_core.corpus.leaks import LeakFilter
from tlm_core.corpus.packages import Document, PackageFile
from tlm_core.corpus.passages import word_count
from tlm_core.corpus.read import INFO, CorpusInfo
from tlm_core.errors import MissingDependency

_RNG = random.Random(5)
VOCABULARY = ["".join(_RNG.choices("abdegilmnosu", k=6)) for _ in range(4000)]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words)) + "."


def documents(libraries: tuple[str, ...], modules: int = 60) -> list[Document]:
    """Return generated documentation: five docstrings per module, a longer file, and one repeated docstring."""
    rng = random.Random(1)
    documents = []
    for library in libraries:
        for module in range(modules):
            file = f"{library}/m{module}.py"
            texts = [f"The {library.upper()}_x of {sentence(rng, 22)}" for _ in range(5)]
            documents += [
                Document(library, file, text, True) for text in [*texts, "Copied everywhere: " + "so it is " * 10]
            ]
        documents.append(Document(library, f"{library}/README.md", sentence(rng, 700), False))
        documents.append(Document(library, f"{library}/tests/test_a.py", sentence(rng, 30), True))
    # Texts of the task also occur inside longer texts.
    originals = [document for document in documents if document.file.endswith("m7.py")]
    copies = [Document("other", f"other/{d.file}", f"Also here. {d.text}", True) for d in originals]
    return documents + copies


@pytest.mark.parametrize(
    "text",
    [
        "a torch.Tensor",
        "PyTorch and py-torch",
        "is_torch_available",
        "TorchScript",
        "torchvision.TORCH",
        "np.zeros",
        "as np",
        "Pd.DataFrame",
        "tf.constant",
        "scikit-learn",
        "Sci-Kit_Learn sklearn",
        "NumPy, SciPy and SymPy",
        "ray.remote",
        "Ray actors",
        "isRayActor",
        "RAY_ADDRESS raylet KubeRay",
        "HfApi of hf_hub, Hugging Face huggingface_hub",
        "onnxscript ONNX-Runtime",
        "redis.Redis REDISCLUSTER",
        "nx.Graph of NetworkX",
        "load_datasets",
        "OpenSearch opensearch-py",
        "botocore boto3",
        "pydantic_core",
        "AutoTransformers",
    ],
)
def test_names_are_blanked_in_any_case_and_in_identifiers(text: str) -> None:
    blanked = blank_names(text)
    assert "___" in blanked
    lowered = blanked.lower()
    for name in (*LIBRARIES, "torch", "sci", "onnx", "np", "pd", "tf", "nx", "hf", "hugging", "boto", "search"):
        assert name not in lowered


@pytest.mark.parametrize(
    "text",
    ["an ndarray, Array, ARRAY and gray arrays", "a dataset transformer redistributed", "input, snippets, robotics"],
)
def test_ordinary_words_that_contain_a_name_remain(text: str) -> None:
    assert blank_names(text) == text


def write_both(folder: Path) -> CorpusInfo:
    by_file: dict[PackageFile, list[Document]] = defaultdict(list)
    for document in documents(LIBRARIES):
        by_file[PackageFile("", document.file, 0)].append(document)
    documentation = Documentation(lambda *_: None, list(by_file), by_file)
    return write_corpus_of(documentation, write_task(documentation, folder, LARGE), folder)


def test_task_reads_only_the_files_of_its_libraries(tmp_path: Path) -> None:
    files = []
    for name in ("scipy/a.py", "other/b.py", "torch/c.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f'"""About {name}."""', encoding="utf-8")
        files.append(PackageFile(str(tmp_path), name, 10))
    documentation = Documentation(lambda *_: None, files)
    of_task = documentation.read(("torch", "scipy"))
    assert [document.file for document in of_task] == ["scipy/a.py", "torch/c.py"]
    assert list(documentation.by_file) == [files[0], files[2]]
    everything = documentation.read()
    assert [document.file for document in everything] == [file.name for file in files]
    assert everything[0] is of_task[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusInfo]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_both(folder)


def rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in (folder / "task" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation", "test")
    }


def test_task_has_the_documented_shape(demo: tuple[Path, CorpusInfo]) -> None:
    folder, corpus = demo
    splits, facts = rows(folder), json.loads((folder / "demo.json").read_text())
    assert (
        facts["rows"]
        == {split: len(part) for split, part in splits.items()}
        == {"train": 450, "validation": 300, "test": 1050}
    )
    assert facts["labels"] == sorted(LIBRARIES[:15])
    for part, count in zip(splits.values(), (30, 20, 70), strict=True):
        assert Counter(row["label"] for row in part) == dict.fromkeys(facts["labels"], count)
    assert all(20 <= word_count(row["text"]) <= 120 for part in splits.values() for row in part)
    assert len({row["text"] for part in splits.values() for row in part}) == 1800
    assert facts["corpus"]["version"] == corpus.version


def test_rows_do_not_name_their_library(demo: tuple[Path, CorpusInfo]) -> None:
    assert not [row for part in rows(demo[0]).values() for row in part if row["label"].lower() in row["text"].lower()]


def test_corpus_contains_all_texts_except_the_task(demo: tuple[Path, CorpusInfo]) -> None:
    folder, corpus = demo
    texts = [(split, i, row["text"]) for split, part in rows(folder).items() for i, row in enumerate(part)]
    passages = passages_in(folder / "corpus")
    leaks = LeakFilter(texts)
    assert not [passage for passage in passages if leaks.leaks_of(passage.text)]
    assert corpus == CorpusInfo.model_validate_json((folder / "corpus" / INFO).read_bytes())
    facts = json.loads((folder / "demo.json").read_text())
    assert facts["passages_dropped_for_the_task"] > 0
    assert any("TORCH_x" in passage.text for passage in passages)
    assert corpus.count > 20 * 60 * 5 - 1800


def test_modules_belong_to_one_split_and_tests_to_none() -> None:
    owners = defaultdict(set)
    for split, part in build_task(documents(LIBRARIES), 3, LARGE).items():
        for row in part:
            owners[row.document.file].add(split)
    assert all(len(splits) == 1 for splits in owners.values())
    assert not [file for file in owners if "tests" in file]


def test_same_seed_gives_the_same_rows(demo: tuple[Path, CorpusInfo], tmp_path: Path) -> None:
    repeated = write_both(tmp_path / "a")
    assert repeated == demo[1]
    assert rows(tmp_path / "a") == rows(demo[0])
    other = build_task(documents(LIBRARIES), 1, LARGE)
    assert [row.text for row in other["test"]] != [row["text"] for row in rows(demo[0])["test"]]


def test_fewer_libraries_give_fewer_labels() -> None:
    few = build_task(documents(LIBRARIES[:11]), 0, LARGE)
    assert {row.label for row in few["train"]} == set(LIBRARIES[:11])
    assert len(few["test"]) == 11 * 70


def test_demo_uses_libraries_with_distinct_subjects() -> None:
    task = build_task(documents(LIBRARIES, modules=100), 0, DEMO)
    assert {row.label for row in task["train"]} == set(DISTINCT[:5])
    assert {split: len(part) for split, part in task.items()} == {"train": 150, "validation": 150, "test": 1000}


def test_too_few_libraries_are_an_error() -> None:
    with pytest.raises(MissingDependency, match=r"at least 10 of these libraries: .* Install more of them"):
        build_task(documents(LIBRARIES[:9]), 0, LARGE)
