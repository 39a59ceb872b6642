"""Print the size and shape of the code base, and fail where a figure exceeds its limit.

Run it with `python -m tools.code_figures`. `make check` also runs it.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from tools import ROOT, tracked_files

PACKAGES = ("tlm_core", "services", "tlm_client")
_USES_ANY = re.compile(r"^(?!from typing import).*\bAny\b")


@dataclass(frozen=True)
class Figure:
    """A measured figure. `make check` enforces `limit`. When the figure falls, lower `limit`. goal: desired value."""

    name: str
    value: float
    limit: float
    goal: float
    detail: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.value <= self.limit else "TOO HIGH"
        numbers = f"{self.value:>8,g}  limit {self.limit:>8,g}  goal {self.goal:>8,g}"
        return f"{self.name:32} {numbers}  {verdict}  {self.detail}".rstrip()


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (length in lines, "FILE:LINE NAME") of each function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: Collection[str]) -> Iterator[str]:
    """Yield the modules in `modules` that a file imports at its top level. Imports inside functions do not count."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                name = submodule if submodule in modules else node.module
                if name in modules:
                    yield name


def longest_import_chain(files: list[Path]) -> list[str]:
    """Return the longest list of modules in which each module imports the next. Raises CycleError for a cycle."""
    modules = {module_name(path): path for path in files}
    imports = {name: sorted(set(imported_modules(path, modules))) for name, path in modules.items()}
    chains: dict[str, list[str]] = {}  # module → the longest chain that starts at this module
    for name in TopologicalSorter(imports).static_order():
        chains[name] = [name, *max((chains[imported] for imported in imports[name]), key=len, default=[])]
    return max((chains[name] for name in sorted(modules)), key=len)


def count_lines(files: list[Path], counts: Callable[[str], object]) -> int:
    """Return the number of lines in `files` for which `counts` returns a true value."""
    return sum(bool(counts(line)) for path in files for line in path.read_text(encoding="utf-8").splitlines())


def measure() -> list[Figure]:
    """Return every figure with its limit."""
    product = [path for path in tracked_files("*.py") if path.relative_to(ROOT).parts[0] != "tests"]
    packages = tracked_files(*(f"{package}/*.py" for package in PACKAGES))
    lengths = [function for path in packages for function in functions(path)]
    longest, where = max(lengths)
    chain = longest_import_chain(packages)
    return [
        Figure("lines of Python, without tests", count_lines(product, lambda _: True), 51_085, 30_000),
        Figure("lines that use Any", count_lines(packages, _USES_ANY.search), 112, 120),
        Figure("longest function, in lines", longest, 60, 60, where),
        Figure("median function, in lines", statistics.median(length for length, _ in lengths), 7, 7),
        Figure("longest import chain, in modules", len(chain), 12, 12, " > ".join(chain)),
    ]


def main() -> int:
    """Print the figures. Return the exit status: 1 if a figure exceeds its limit, else 0."""
    figures = measure()
    print(*figures, sep="\n")
    return int(any(figure.value > figure.limit for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
