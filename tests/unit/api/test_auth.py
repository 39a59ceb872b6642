"""The API token: created once, private, and shared by concurrent starts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.api.auth import ensure_token
from tlm_core.errors import MissingDependency


def test_token_is_created_once_and_readable_only_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "token"
    token = ensure_token(path)
    assert len(token) > 32
    written = path.parent.stat().st_mtime_ns
    assert ensure_token(path) == token
    assert path.parent.stat().st_mtime_ns == written, "a token that is there needs no write, not even beside it"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["token"]


def test_concurrent_starts_share_one_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: ensure_token(tmp_path / "token"), range(64)))
    assert len(tokens) == 1


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_token_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(MissingDependency, match=f"The token file {tmp_path}/token is empty. Delete it"):
        ensure_token(tmp_path / "token")
