"""Start headless Chromium and sign in to the dashboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.contract.gateway import TOKEN
from tests.support import skip_or_fail

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a running browser. Without Chromium, skip the test. With CI=true, fail instead."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_or_fail("playwright is not installed. Install the development requirements.")
    path = next((executable for name in _NAMES if (executable := shutil.which(name))), None)
    if path is None:
        skip_or_fail("No Chromium on PATH. Install the system package 'chromium'.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def sign_in(page: Any, url: str, token: str = TOKEN) -> None:
    page.goto(f"{url}/ui/sign-in")
    page.fill("#token", token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/ui/jobs")


def settle(page: Any) -> None:
    """Wait until all charts of a page are drawn, and all operations of the API reference."""
    if page.locator("#reference").count():
        page.wait_for_selector("#reference .opblock")
    if page.locator("[data-points]").count():
        page.wait_for_selector("[data-drawn]", state="attached")
