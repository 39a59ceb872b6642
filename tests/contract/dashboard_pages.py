"""Request pages of the dashboard like a browser, and parse them."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from fastapi.testclient import TestClient

from services.api.app import create_app
from tests.contract.filled_dashboard import Contents
from tests.contract.gateway import TOKEN, Gateway

OWN = {"Origin": "http://testserver"}


def visitor(gateway: Gateway) -> TestClient:
    """Return a client that has not signed in."""
    return TestClient(create_app(gateway.parts), headers=OWN, raise_server_exceptions=False, follow_redirects=False)


def signed_in(gateway: Gateway) -> TestClient:
    browser = visitor(gateway)
    assert browser.post("/ui/sign-in", data={"token": TOKEN}).status_code == 303
    return browser


class Tags(HTMLParser):
    """The start tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def has(self, tag: str, **expected: str) -> bool:
        return any(name == tag and expected.items() <= attributes.items() for name, attributes in self.tags)


def pages_of(contents: Contents) -> list[str]:
    succeeded, hostile = contents.jobs["succeeded"], contents.jobs["hostile"]
    paths = ["/ui/jobs", "/ui/models", "/ui/datasets", "/ui/corpora", "/ui/corpora/manuals?q=parcel", "/ui/submit"]
    paths += [f"/ui/datasets/{name}" for name in (contents.dataset, contents.hostile_dataset)]
    paths += [f"/ui/jobs/{job}" for job in contents.jobs.values()]
    tabs = ("results", "labels", "selection", "model", "log")
    paths += [f"/ui/jobs/{job}/{tab}" for job in (succeeded, hostile) for tab in tabs]
    return [*paths, f"/ui/jobs/{contents.jobs['running']}/results", f"/ui/compare?id={succeeded}&id={hostile}"]


def post_form(browser: TestClient, path: str, texts: dict[str, str], files: dict[str, str]) -> Any:
    """Send a form like a browser: an empty file input becomes a file without name and content."""
    parts = [f'name="{name}"\r\n\r\n{text}' for name, text in texts.items()]
    parts += [f'name="{n}"; filename="{n + ".csv" if body else ""}"\r\n\r\n{body}' for n, body in files.items()]
    body = "".join(f"--edge\r\nContent-Disposition: form-data; {part}\r\n" for part in parts) + "--edge--\r\n"
    return browser.post(path, content=body.encode(), headers={"Content-Type": "multipart/form-data; boundary=edge"})
