"""A headless Chromium of the machine, and a visitor who has signed in to a dashboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.gateway import TOKEN
from tests.support import skip_or_fail

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser. Skips loudly where there is none, in CI too: it is the system's, and never downloaded."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_or_fail("playwright is not installed; it is among the development requirements")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on PATH; install the system's package 'chromium'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def sign_in(page: Any, url: str) -> None:
    page.goto(f"{url}/ui/sign-in")
    page.fill("#token", TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/ui/jobs")


def settle(page: Any) -> None:
    """Wait until the charts of a page, if it has any, are drawn."""
    if page.locator("[data-points]").count():
        page.wait_for_selector("[data-drawn]", state="attached")
