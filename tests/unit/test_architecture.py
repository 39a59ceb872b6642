"""The rules that keep the parts apart: imports point one way, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGES = ("tlm_core", "services", "tlm_client")
FOREIGN_TO_CORE = {"fastapi", "starlette", "uvicorn", "redis", "opensearchpy", "ray", "typer", "rich"}


def modules() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def part_of(module: str) -> str:
    """`services.api.routes.jobs` → `services.api`; `tlm_core.tasks` → `tlm_core`."""
    pieces = module.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "services" else pieces[0]


@pytest.mark.parametrize("package", ["tlm_client", "tlm_core"])
def test_type_checkers_of_users_read_the_annotations(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file(), "PEP 561 requires this file."


def allowed(importer: str, imported: str) -> bool:
    if importer == imported or imported == "tlm_core":
        return True
    if importer == "services.common" or importer == "tlm_core":
        return False
    return imported == "services.common" and importer.startswith("services.")


def test_imports_point_one_way() -> None:
    wrong = []
    for path in modules():
        importer = part_of(str(path.relative_to(ROOT).with_suffix("")).replace("/", "."))
        for name in imports_of(path):
            first = name.split(".")[0]
            foreign = importer == "tlm_core" and first in FOREIGN_TO_CORE
            if foreign or (first in PACKAGES and not allowed(importer, part_of(name))):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def loaded_by(module: str) -> set[str]:
    """Top-level modules that importing `module` in a fresh interpreter brings in."""
    code = f"import sys, {module}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["services.api.app", "services.api.__main__", "services.retriever.app", "services.loader.__main__"]
)
def test_services_without_training_start_without_heavy_libraries(module: str) -> None:
    assert not loaded_by(module) & {"torch", "transformers", "datasets", "ray", "sklearn", "pandas"}


@pytest.mark.parametrize(
    "module", ["services.trainer.__main__", "services.trainer.worker", "tlm_core.training.prepare"]
)
def test_the_coordinator_and_a_worker_that_prepares_text_need_neither_torch_nor_ray(module: str) -> None:
    assert not loaded_by(module) & {"torch", "transformers", "ray", "pandas"}


def test_the_program_that_starts_workers_imports_nothing_that_only_they_need() -> None:
    """So the workers start sooner."""
    only_theirs = {"torch", "transformers", "ray", "pandas", "redis", "pydantic", "structlog", "numpy", "httpx"}
    assert not loaded_by("services.trainer.program") & only_theirs


def test_importing_a_module_starts_nothing() -> None:
    """No client, settings object or logger set-up at module level: only definitions, constants and plain values."""
    forbidden = {"basicConfig", "from_url", "Redis", "OpenSearch", "FastAPI", "BaseSettings", "getenv"}
    for path in modules():
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.If):
                continue
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    assert name not in forbidden, f"{path}:{node.lineno} calls {name} when it is imported"
