"""The client runs without the packages of the extra `service`."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

from tests.support import ROOT

# Imports all commands, and prepares files for uploads.
PROGRAM = """
import sys
from importlib import import_module
from pathlib import Path
folder, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))
import tlm_client.async_client
import tlm_client.cli
import tlm_client.prediction_files
for name in set(tlm_client.cli._MODULES.values()):
    import_module(f"tlm_client.commands.{name}")
from tlm_client.console import stderr_console
from tlm_client.display import Display
from tlm_client.sources import corpus_files, dataset_files
print(*dataset_files(Path(folder), notify=print))
with Display(stderr_console()) as shown, corpus_files([folder + "/notes.txt"], language="en", display=shown) as files:
    print(*(file.name for file in files))
"""


def blocked_modules() -> list[str]:
    """Return the import names of the packages that only the extra `service` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {Requirement(line).name for line in project["optional-dependencies"]["service"]}
    return [
        module
        for module, packages in packages_distributions().items()
        if {re.sub(r"[-_.]+", "-", package).lower() for package in packages} & names and not module.startswith("_")
    ]


def tlm(*arguments: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_client_works_without_the_packages_of_the_service(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na b c,x\nd e f,y\n")
    (tmp_path / "notes.txt").write_text("A passage about the boiling point of water. " * 20)
    blocked = blocked_modules()
    assert {"torch", "ray", "fastapi", "redis"} <= set(blocked)
    result = tlm(str(tmp_path), *blocked, code=PROGRAM)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["train", "passages-00000.parquet"]


def test_missing_package_names_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'tlm'; from tlm_client.__main__ import main; main()"
    result = tlm("evaluate", "model", "--dataset", "data", code=code)
    assert result.returncode == 1
    assert "needs the package 'torch'" in result.stderr and "pip install '.[service]'" in result.stderr
