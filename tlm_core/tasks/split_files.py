"""Determine which file of a dataset holds which split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tlm_core.artifacts import MANIFEST
from tlm_core.selection.given import GIVEN_PART, is_given
from tlm_core.tables.findings import Findings
from tlm_core.tables.records import SUPPORTED, format_of
from tlm_core.tasks.task import FURTHER, SPLITS

_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "dev": "validation", "devel": "validation", "valid": "validation", "val": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_LISTED = 20


def select_splits(source: Mapping[str, Path] | Path, findings: Findings) -> dict[str, Path]:
    """Return the file of each split, such as `{"train": Path("train.csv")}`.

    source: a mapping from split names to files, a folder, or one file, which is train. Other usual names are valid
    too, such as dev and val for validation. In a folder, a file belongs to the split that its name contains, such as
    `my-dev.csv`. If no name contains a split, a single file is train. The name `test_NAME`, in lower case, is a further
    test set; a folder must then also contain a file with the name `test`. The key `selection` of a mapping is no split;
    see `given_part`.
    Data errors: no_file, no_train, doubled_split, unknown_split.
    """
    paths: dict[str, Path] = {}
    if isinstance(source, Mapping):
        for name, path in source.items():
            split = name if _is_further(name) else _SPLIT_WORDS.get(name.lower())
            if split is not None:
                _add(paths, split, Path(path), findings)
            elif name != GIVEN_PART:
                message = f"Unknown split '{name}'. Valid splits: {', '.join(SPLITS)} and {FURTHER}NAME."
                findings.fault("unknown_split", message)
    elif source.is_dir():
        _add_folder(source, paths, findings)
    else:
        paths["train"] = source
    if "train" not in paths and findings.ok:
        names = ", ".join(path.name for path in paths.values()) or "no file"
        message = f"The files ({names}) have no train split. Name one of them train.jsonl or train.csv."
        findings.fault("no_train", message)
    for split, path in list(paths.items()):
        if not path.is_file():
            findings.fault("no_file", f"Cannot read '{path}': it is not a file. Check the path.", split=split)
            del paths[split]
    return {split: paths[split] for split in (*SPLITS, *sorted(set(paths) - set(SPLITS))) if split in paths}


def _is_further(name: str) -> bool:
    return re.fullmatch(f"{FURTHER}[a-z]{{1,40}}", name) is not None


def _add_folder(folder: Path, paths: dict[str, Path], findings: Findings) -> None:
    visible = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    visible = [path for path in visible if path.name != MANIFEST and not is_given(path)]
    files = [path for path in visible if format_of(path.name)]
    if not files:
        names = ", ".join(path.name for path in visible[:_LISTED]) or "nothing"
        inner = (path for path in sorted(folder.glob("[!.]*/*")) if path.is_file() and format_of(path.name))
        folders = ", ".join(list(dict.fromkeys(path.parent.name for path in inner))[:_LISTED])
        advice = f"Folders in it have data files: {folders}. Use one of them." if folders else SUPPORTED
        findings.fault("no_file", f"The folder '{folder.name or folder}' has no data file; it has {names}. {advice}")
    if foreign := [path.name for path in visible if path not in files and _splits_in_name(path)]:
        findings.note(f"files with unsupported types are ignored: {', '.join(foreign[:_LISTED])}. {SUPPORTED}")
    unclear = []
    stems = {path.name.split(".")[0] for path in files}
    for path in files:
        stem, splits = path.name.split(".")[0], _splits_in_name(path)
        if "test" in stems and _is_further(stem):
            _add(paths, stem, path, findings)
            findings.note(f"{path.name} is a further test set in addition to test")
        elif len(splits) == 1:
            _add(paths, splits.pop(), path, findings)
        else:
            unclear.append(path)
    if not paths and len(unclear) == 1:
        paths["train"] = unclear.pop()
        findings.note(f"{paths['train'].name} is the only data file and is read as train")
    if unclear:
        names = ", ".join(path.name for path in unclear[:_LISTED])
        findings.note(f"files whose names do not indicate exactly one split are ignored: {names}")


def _splits_in_name(path: Path) -> set[str]:
    words = re.split(r"[^a-z]+", path.name.lower())
    return {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}


def _add(paths: dict[str, Path], split: str, path: Path, findings: Findings) -> None:
    if split in paths:
        message = f"Both {paths[split].name} and {path.name} are the {split} split. Join them or remove one."
        findings.fault("doubled_split", message, split=split)
    else:
        paths[split] = path
