"""Profiles: named gateways with their tokens, in a TOML file that only its owner can read."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tlm_client.stack.folder import user_folder, write_private
from tlm_client.transfer import local_errors
from tlm_core.errors import InvalidRequest, NotFound

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class Profile(BaseModel):
    """A gateway and its token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    token: str = ""


def profiles_file() -> Path:
    """Return $XDG_CONFIG_HOME/tlm/profiles.toml, by default ~/.config/tlm/profiles.toml."""
    return user_folder("XDG_CONFIG_HOME", ".config") / "profiles.toml"


def load_profiles(file: Path) -> dict[str, Profile]:
    """Return all profiles, or none if the file does not exist. Raises InvalidRequest for an invalid file."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return {name: Profile.model_validate(value) for name, value in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InvalidRequest(f"Cannot read the profiles in {file}: {error}. Correct or delete the file.") from error


def read_profile(file: Path, name: str) -> Profile:
    """Return a profile. Raises NotFound for an unknown name."""
    profiles = load_profiles(file)
    if name not in profiles:
        names = ", ".join(sorted(profiles)) or "none"
        raise NotFound(f"No profile '{name}'. Existing profiles: {names}. `tlm profile add` adds one.")
    return profiles[name]


def save_profiles(file: Path, profiles: Mapping[str, Profile]) -> None:
    """Write all profiles to the file in one step. Raises InvalidRequest for an invalid name or path, or StorageFull."""
    for name in profiles:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"Invalid profile name '{name}'. Use 1 to 40 letters, digits, hyphens and underscores."
            )
    # A JSON string is also a TOML basic string, unless it escapes a character beyond U+FFFF as two surrogates.
    quoted = partial(json.dumps, ensure_ascii=False)
    text = "".join(
        f"[{name}]\nurl = {quoted(profile.url)}\ntoken = {quoted(profile.token)}\n\n"
        for name, profile in sorted(profiles.items())
    )
    with local_errors(f"writing {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_private(file, text)
