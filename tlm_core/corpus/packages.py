"""A general corpus without a download: the documentation of the installed Python packages.

Its texts are docstrings, documentation files inside packages, and package descriptions. This module parses code and
does not run it.
"""

from __future__ import annotations

import ast
import email
import gc
import os
import re
import site
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

from tlm_core.corpus.passages import SHORTEST, Passage, build_passage, cut, tidy, word_count
from tlm_core.processes import processes

LARGEST_FILE = 2_000_000
SHORTEST_DOCSTRING = 15
LEAST_LETTERS = 0.5
_SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages"})
# Packages of this product. Their documentation shows texts of users' tasks.
_OWN = frozenset({"services", "tlm_client", "tlm_core"})
_WORKERS = 2  # processes that parse files
_FILES_AT_ONCE = 64  # files that one process receives at once

_DOCUMENTS = (".md", ".rst", ".txt")
_DESCRIPTIONS = ("METADATA", "PKG-INFO")
_LEGAL = re.compile(r"licen[cs]e|notice|copying|privacy|authors", re.IGNORECASE)
_RULE = re.compile(r"^[ \t]*([-=~^#*_+.`'\"])\1{2,}[ \t]*$", re.MULTILINE)
_MARKUP = re.compile(
    r"<!--.*?-->|</?[a-zA-Z][^<>]{0,300}>|!\[[^\]]*\]\([^)]*\)"
    r"|^[ \t]*\.\. (?:image|figure|raw|_|\|)[^\n]*$|^[ \t]*:(?:alt|target|width|height|align):[^\n]*$",
    re.MULTILINE | re.DOTALL,
)
_LETTERS = re.compile(r"[^\W\d_]+")
_LINK = re.compile(r"\[([^\]\[\n]*)\]\([^)\s]*\)")
_OWNERS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ast.If | ast.Try | ast.With | ast.For | ast.While | ast.ExceptHandler

Progress = Callable[[int, int], None]


class Document(NamedTuple):
    """One text of a package.

    package: the top-level module or, for a package description, the distribution.
    file: path below the folder of the standard library or of installed packages.
    docstring: whether the text is a docstring.
    """

    package: str
    file: str
    text: str
    docstring: bool


def passages_from_packages(*, progress: Progress | None = None) -> Iterator[Passage]:
    """Yield passages of the documentation of the standard library and all installed packages.

    The same environment gives the same passages in the same order, with duplicates. `source` is `package:NAME`.
    progress: receives the numbers of read bytes and of all bytes.
    """
    return passages_of(chain.from_iterable(read_files(package_files(), progress=progress)))


def passages_of(documents: Iterable[Document]) -> Iterator[Passage]:
    """Yield the passages of `documents`, which are grouped by file.

    Docstrings of less than 15 words are joined, within a file, into texts of at least 25 words. The last text of a file
    can have 15 to 24 words. Passages that are not prose are skipped, see `is_prose`.
    """
    for (package, _), group in groupby(documents, key=lambda document: (document.package, document.file)):
        for text in _joined(group):
            for piece in cut(text):
                if is_prose(piece):
                    yield build_passage(piece, f"package:{package}")


def is_prose(text: str) -> bool:
    """Return whether `text` has at least 15 words, and letters are at least half of its non-blank characters."""
    letters = sum(map(len, _LETTERS.findall(text)))
    solid = sum(map(len, text.split()))
    return letters >= LEAST_LETTERS * solid and word_count(text) >= SHORTEST_DOCSTRING


def package_folders() -> list[Path]:
    """Return the folders of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    names = [paths["stdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()]
    return [path for path in dict.fromkeys(Path(name).resolve() for name in names) if path.is_dir()]


class PackageFile(NamedTuple):
    """A file with documentation. name: path below `root`. size: in bytes."""

    root: str
    name: str
    size: int

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.name)

    @property
    def top(self) -> str:
        """The folder or module below `root`, such as `torch` or `ast.py`."""
        return self.name.split(os.sep)[0]


def package_files(roots: Sequence[Path] | None = None) -> list[PackageFile]:
    """Return the files below `roots` that may have documentation, up to 2 MB each, in a fixed order.

    roots: by default, the standard library and the installed packages.
    """
    files = []
    for root in package_folders() if roots is None else roots:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - (_SKIPPED | _OWN if Path(folder) == Path(root) else _SKIPPED))
            for path in (os.path.join(folder, name) for name in sorted(names) if _is_wanted(folder, name)):
                size = os.path.getsize(path) if os.path.isfile(path) else 0
                if 0 < size <= LARGEST_FILE:
                    files.append(PackageFile(str(root), os.path.relpath(path, root), size))
    return files


def read_files(files: Sequence[PackageFile], *, progress: Progress | None = None) -> Iterator[list[Document]]:
    """Yield the documentation of each file, in order: an empty list for a file whose code does not parse.

    progress: receives the numbers of read bytes and of all bytes.
    """
    total, done = sum(file.size for file in files), 0
    # Syntax trees have no cycles, and the search for cycles would double the time.
    with processes(_WORKERS, gc.disable) as started:
        parsed = started.pool.map(_read_file, files, chunksize=_FILES_AT_ONCE)
        for file, documents in zip(files, parsed, strict=True):
            yield documents
            done += file.size
            if progress:
                progress(done, total)


def _is_wanted(folder: str, name: str) -> bool:
    if folder.endswith((".dist-info", ".egg-info")):
        return name in _DESCRIPTIONS
    inside_metadata = ".dist-info" + os.sep in folder
    return not inside_metadata and (name.endswith(".py") or (name.endswith(_DOCUMENTS) and not _LEGAL.search(name)))


def _read_file(file: PackageFile) -> list[Document]:
    body = Path(file.path).read_bytes()
    top = file.top
    if file.name.endswith(".py"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [Document(top.removesuffix(".py"), file.name, text, True) for text in docstrings(body)]
    text = body.decode("utf-8", "replace")
    if os.path.basename(file.name) in _DESCRIPTIONS:
        message = email.message_from_string(text)
        top = message["Name"] or top
        text = f"{message['Summary'] or ''}\n\n{message.get_payload()}"
    return [Document(top, file.name, _without_markup(text), False)]


def docstrings(code: bytes) -> Iterator[str]:
    """Yield the docstrings of a Python file in order, without lines of punctuation. Does not run the file."""
    if b'"""' not in code and b"'''" not in code:
        return
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # templates, other Python versions, parser tests
        return
    owners: list[ast.AST] = [tree]
    while owners:
        owner = owners.pop()
        if isinstance(owner, ast.Module | _OWNERS) and (text := ast.get_docstring(owner)):
            yield _RULE.sub("", text)
        inner = (*getattr(owner, "body", ()), *getattr(owner, "handlers", ()), *getattr(owner, "orelse", ()))
        owners.extend(node for node in reversed(inner) if isinstance(node, _OWNERS | _BLOCKS))


def _without_markup(text: str) -> str:
    return _RULE.sub("", _LINK.sub(r"\1", _MARKUP.sub("", text.replace("\r\n", "\n"))))


def _joined(documents: Iterable[Document]) -> Iterator[str]:
    """Yield the texts of one file. Short docstrings are joined."""
    pending = ""
    for document in documents:
        if not document.docstring or word_count(document.text) >= SHORTEST_DOCSTRING:
            yield document.text
            continue
        text = tidy(document.text)
        pending += text if text.endswith((".", "!", "?", ":")) else f"{text}."
        if word_count(pending) >= SHORTEST:
            yield pending
            pending = ""
        elif pending:
            pending += " "
    if word_count(pending) >= SHORTEST_DOCSTRING:
        yield pending
