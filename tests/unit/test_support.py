"""A test that cannot run is never taken for one that passed."""

from __future__ import annotations

import pytest

from tests.support import skip_or_fail


def test_what_the_machine_lacks_skips_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no JDK"):
        skip_or_fail("no JDK")


def test_in_ci_it_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no JDK"):
        skip_or_fail("no JDK")
