"""Cut from a lock file what some packages need: `python cut_lock.py LOCK LIST > CUT`. Standard library only.

LIST has one package name a line. An image then installs CUT with `--require-hashes`, so every version and hash is
still the lock's, and a package that the cut lacks stops the build.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==")
_VIA = re.compile(r"^ +# +(?:via +)?([a-z0-9][a-z0-9._-]*)")


def names_in(text: str) -> set[str]:
    """The names in a list of packages; `#` starts a comment."""
    return {name for line in text.splitlines() if (name := line.split("#")[0].strip())}


def cut(lock: str, wanted: set[str]) -> str:
    """The entries of `lock` for `wanted` and all that they need. Raises KeyError for a name that the lock lacks.

    The lock says of each entry what asked for it; so the cut grows from the wanted ones until nothing is added.
    """
    entries = [entry for entry in re.split(r"\n(?=[a-z0-9])", lock.strip() + "\n") if _PIN.match(entry)]
    named = [(_PIN.match(entry)[1], entry) for entry in entries]  # type: ignore[index]
    if missing := wanted - {name for name, _ in named}:
        raise KeyError(f"not in the lock: {', '.join(sorted(missing))}")
    kept: set[str] = set()
    grown = set(wanted)
    while grown != kept:
        kept = grown
        grown = kept | {name for name, entry in named if kept & _asked_by(entry)}
    return "".join(entry.rstrip("\n") + "\n" for name, entry in named if name in kept)


def _asked_by(entry: str) -> set[str]:
    return {match[1] for line in entry.splitlines() if (match := _VIA.match(line))}


def main() -> None:
    lock, wanted = (Path(argument).read_text(encoding="utf-8") for argument in sys.argv[1:3])
    sys.stdout.write(cut(lock, names_in(wanted)))


if __name__ == "__main__":
    main()
