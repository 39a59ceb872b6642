"""Profiles: gateways by name, for those who work with several. A TOML file that its owner alone can read."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tlm_core.errors import InvalidRequest, NotFound

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class Profile(BaseModel):
    """A gateway and the token for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    token: str = ""


def profiles_file(environment: Mapping[str, str]) -> Path:
    """$XDG_CONFIG_HOME/tlm/profiles.toml, else ~/.config/tlm/profiles.toml."""
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "tlm" / "profiles.toml"


def load(file: Path) -> dict[str, Profile]:
    """All profiles; none if there is no file. Raises InvalidRequest for a file that cannot be read as such."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        return {name: Profile.model_validate(value) for name, value in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InvalidRequest(f"the profiles in {file} cannot be read: {error}; mend or delete the file") from error


def profile(file: Path, name: str) -> Profile:
    """Raises NotFound, naming those there are."""
    known = load(file)
    if name not in known:
        raise NotFound(
            f"no profile '{name}'; there are {', '.join(sorted(known)) or 'none'}, `tlm profile add` adds one"
        )
    return known[name]


def save(file: Path, profiles: Mapping[str, Profile]) -> None:
    """Write the file anew, whole or not at all. Raises InvalidRequest for a name that cannot be one."""
    for name in profiles:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"'{name}' cannot name a profile; use letters, digits, dashes and underscores")
    # A JSON text is a basic string of TOML too.
    text = "".join(
        f"[{name}]\nurl = {json.dumps(one.url)}\ntoken = {json.dumps(one.token)}\n\n"
        for name, one in sorted(profiles.items())
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
    os.replace(partial, file)
