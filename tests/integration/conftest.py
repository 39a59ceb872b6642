"""Fixtures of the tests in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.filled_dashboard import Contents, filled_gateway
from tests.contract.gateway import Gateway
from tests.integration.browser import chromium, sign_in


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running_browser:
        yield running_browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Gateway, Contents]]:
    with filled_gateway(tmp_path_factory.mktemp("dashboard")) as (gateway, contents), gateway.served() as url:
        yield url, gateway, contents


@pytest.fixture
def page(browser: Any, served: tuple[str, Gateway, Contents]) -> Iterator[Any]:
    """A signed-in page. A console error or warning fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: message.type in ("error", "warning") and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
    sign_in(page, served[0])
    yield page
    assert page.complaints == []
    context.close()
