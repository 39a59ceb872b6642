"""Reduce a lock file to some packages and their dependencies: `python cut_lock.py LOCK LIST > CUT`.

LIST contains one package name per line. An image installs CUT with `--require-hashes`, so all versions and hashes come
from the lock, and a missing package stops the build. This script uses only the standard library.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==")
_VIA = re.compile(r"^ +# +(?:via +)?([a-z0-9][a-z0-9._-]*)", re.MULTILINE)


def names_in(text: str) -> set[str]:
    """Return the names in a list of packages; `#` starts a comment."""
    return {name for line in text.splitlines() if (name := line.split("#")[0].strip())}


def cut(lock: str, packages: set[str]) -> str:
    """Return the entries of `packages` and their dependencies. Raises KeyError for a package that the lock lacks.

    Each entry of the lock lists the packages that require it. So the function adds entries until none is missing.
    """
    # A package may have several entries, one for each range of Python versions.
    entries = [
        (match[1], entry.strip() + "\n") for entry in re.split(r"\n(?=[a-z0-9])", lock) if (match := _PIN.match(entry))
    ]
    if missing := packages - {name for name, _ in entries}:
        raise KeyError(f"Not in the lock: {', '.join(sorted(missing))}. Correct the list, or run make lock.")
    selected: set[str] = set()
    complete = set(packages)
    while complete != selected:
        selected = complete
        complete = selected | {name for name, entry in entries if selected & set(_VIA.findall(entry))}
    return "".join(entry for name, entry in entries if name in selected)


if __name__ == "__main__":
    lock, names = (Path(argument).read_text(encoding="utf-8") for argument in sys.argv[1:3])
    sys.stdout.write(cut(lock, names_in(names)))
