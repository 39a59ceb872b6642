"""Profiles of gateways, and shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from tests.unit.client.gateway import serve, tlm
from tlm_client.cli import app
from tlm_client.console import Session
from tlm_client.profiles import Profile, load_profiles, save_profiles


def test_profile_selects_a_gateway_and_hides_its_token(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url.copy_with(query=None)), request.headers["Authorization"]))
        return httpx.Response(200, json={"data": [], "has_more": False})

    file = tmp_path / "config" / "profiles.toml"
    here = {"profiles": file, "url": None, "token": None}
    added = tlm(handler, "profile", "add", "lab", "https://lab.example", "--token", 'k"ey1', **here)
    assert added.exit_code == 0, added.output
    assert file.stat().st_mode & 0o777 == 0o600
    assert tlm(handler, "--profile", "lab", "jobs", **here).exit_code == 0
    assert seen == [("https://lab.example/v1/jobs", 'Bearer k"ey1')]
    listed = tlm(handler, "profile", "list", **here)
    assert "lab" in listed.stdout and "ey1" not in listed.stdout
    unknown = tlm(handler, "--profile", "nope", "jobs", **here)
    assert (unknown.exit_code, "Existing profiles: lab" in unknown.stderr) == (4, True)
    assert tlm(handler, "profile", "remove", "lab", **here).exit_code == 0
    assert tlm(handler, "--profile", "lab", "jobs", **here).exit_code == 4
    file.write_text("not toml [")
    assert tlm(handler, "profile", "list", **here).exit_code == 5
    file.unlink()
    for arguments in (("a b", "https://x", "--token", "t"), ("x", "http://h:80z", "--token", "t"),
                  ("x", "https://x", "--token", "t…")):  # fmt: skip
        assert tlm(handler, "profile", "add", *arguments, **here).exit_code == 5
    assert not file.exists()


ELSEWHERE = {"TLM_URL": "https://production.example", "TLM_TOKEN": "production"}


@pytest.mark.parametrize(
    ("arguments", "environment", "destination"),
    [
        (["--profile", "lab"], ELSEWHERE, ("lab.example", "Bearer lab")),
        (["--profile", "lab"], {"TLM_TOKEN": "production"}, ("lab.example", "Bearer lab")),
        ([], {**ELSEWHERE, "TLM_PROFILE": "lab"}, ("lab.example", "Bearer lab")),
        (["--profile", "lab", "--token", "typed"], ELSEWHERE, ("lab.example", "Bearer typed")),
        (["--url", "https://x.example"], {"TLM_PROFILE": "lab", "TLM_TOKEN": "x"}, ("x.example", "Bearer x")),
    ],
)
def test_profile_overrides_the_environment(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], destination: tuple[str, str]
) -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers["Authorization"]))
        return httpx.Response(200, json={"data": [], "has_more": False})

    save_profiles(tmp_path / "profiles.toml", {"lab": Profile(url="https://lab.example", token="lab")})
    session = Session(profiles=tmp_path / "profiles.toml", transport=httpx.MockTransport(handler))
    result = CliRunner().invoke(app, [*arguments, "jobs"], obj=session, env=environment)
    assert (result.exit_code, seen) == (0, [destination]), result.output


def test_profile_with_any_characters_is_read_back(tmp_path: Path) -> None:
    profiles = {"lab": Profile(url="https://lab.example/ü\U0001f600", token='"\\')}
    save_profiles(tmp_path / "profiles.toml", profiles)
    assert load_profiles(tmp_path / "profiles.toml") == profiles


def test_folder_that_cannot_be_created_is_invalid_input() -> None:
    arguments = ("profile", "add", "lab", "https://lab.example", "--token", "t")
    result = tlm(serve({}), *arguments, profiles=Path("/proc/none/profiles.toml"))
    assert result.exit_code == 5 and "Check the path and its permissions" in result.stderr, result.output


def test_profile_and_url_together_are_rejected(tmp_path: Path) -> None:
    assert tlm(serve({}), "--profile", "lab", "--url", "https://x", "jobs", data_dir=tmp_path).exit_code == 2


def test_shell_completion_lists_commands() -> None:
    environment = {"_TLM_COMPLETE": "complete_bash", "COMP_WORDS": "tlm comp", "COMP_CWORD": "1"}
    completions = CliRunner().invoke(app, [], env=environment, prog_name="tlm")
    assert "compare" in completions.stdout.split()


def test_prompt_for_a_token_leaves_stdout_to_the_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlm_client", "profile", "add", "lab", "https://x", "--json"]
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    added = subprocess.run(  # In a new session without a terminal, getpass reads stdin.
        command, capture_output=True, text=True, check=True, env=environment, input="secret\n", start_new_session=True
    )
    assert json.loads(added.stdout) == {"name": "lab", "url": "https://x"} and "Token:" in added.stderr
    assert "secret" in (tmp_path / "tlm" / "profiles.toml").read_text()
