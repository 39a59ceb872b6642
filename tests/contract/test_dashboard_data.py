"""The dashboard's pages of data sets and corpora."""

from __future__ import annotations

import pytest

from tests.contract.dashboard_made import fill
from tests.contract.dashboard_pages import post_form, signed_in
from tests.contract.gateway import Gateway


def test_a_data_set_is_uploaded_and_its_faults_are_shown_with_their_rows(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    train = "text,label\n" + "".join(f"good {n},pos\nbad {n},neg\n" for n in range(20))
    answer = post_form(
        browser, "/ui/datasets", {"name": "toy", "text_column": ""}, {"train": train, "test": "", "validation": ""}
    )
    assert answer.status_code == 303, answer.text
    shown = browser.get(answer.headers["location"]).text
    assert "version 1" in shown and "pos" in shown and "good 0" in shown
    answer = post_form(browser, "/ui/datasets", {"name": "toy"}, {"train": train + "only text\n"})
    assert (answer.status_code, "row 41" in answer.text) == (422, True)


def test_an_empty_file_is_a_fault_and_no_box_that_was_left_empty(gateway: Gateway) -> None:
    train = "text,label\n" + "".join(f"good {n},pos\nbad {n},neg\n" for n in range(20))
    files = {"train": ("train.csv", train), "test": ("test.csv", "")}
    answer = signed_in(gateway).post("/ui/datasets", data={"name": "toy"}, files=files)
    assert (answer.status_code, "test.csv is empty" in answer.text) == (422, True), answer.text


def test_a_corpus_is_searched_and_an_index_that_is_away_is_said_on_the_page(gateway: Gateway) -> None:
    fill(gateway)
    browser = signed_in(gateway)
    assert "93,518" in browser.get("/ui/corpora").text
    assert "about late parcel" in browser.get("/ui/corpora/manuals?q=late+parcel").text
    gateway.retriever.away = True
    answer = browser.get("/ui/corpora/manuals/search?q=x", headers={"HX-Request": "true"})
    assert (answer.status_code, "does not answer" in answer.text) == (200, True)


def test_a_corpus_is_uploaded_in_several_files_watched_and_its_load_cancelled(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    sentence = "a passage about parcels and couriers that is long enough to be kept as one of its own . " * 3
    texts = [("files", ("one.txt", f"{sentence} one")), ("files", ("two.txt", f"{sentence} two"))]
    answer = browser.post(
        "/ui/corpora", data={"name": "manuals", "language": "en", "near_duplicates": "keep"}, files=texts
    )
    assert (answer.status_code, answer.headers.get("location")) == (303, "/ui/corpora/manuals"), answer.text
    (load,) = gateway.parts.catalog.loads("default", "manuals")
    names = {file.name for file in gateway.parts.artifacts.manifest(load.upload).files}
    assert (load.language, load.near_duplicates, names) == ("en", "keep", {"one.txt", "two.txt"})
    shown = browser.get("/ui/corpora/manuals").text
    assert '<span class="state queued">queued</span>' in shown and 'hx-trigger="every 2s"' in shown
    cancel = f"/ui/corpora/manuals/loads/{load.id}/cancel"
    assert f'action="{cancel}"' in shown
    assert browser.post(cancel).headers["location"] == "/ui/corpora/manuals"
    after = browser.get("/ui/corpora/manuals").text
    assert '<span class="state cancelling">cancelling</span>' in after and cancel not in after


@pytest.mark.parametrize(
    ("texts", "files", "says"),
    [
        ({"name": "docs"}, {"files": ""}, "Send at least one file"),
        ({"name": "a/b"}, {"files": "some text"}, "Invalid name"),
        ({"name": "docs", "language": "English"}, {"files": "some text"}, "Invalid language"),
        ({"name": "docs", "secret": "x"}, {"files": "some text"}, "Unknown form field"),
    ],
)
def test_a_corpus_that_cannot_be_taken_in_is_refused_with_what_to_change(
    gateway: Gateway, texts: dict[str, str], files: dict[str, str], says: str
) -> None:
    answer = post_form(signed_in(gateway), "/ui/corpora", texts, files)
    assert (answer.status_code, says in answer.text) == (422, True), answer.text
    assert gateway.parts.catalog.corpora("default")[0] == []
