"""The dashboard's pages of datasets and corpora."""

from __future__ import annotations

import re

import pytest

from tests.contract.dashboard_pages import Tags, post_form, signed_in
from tests.contract.filled_dashboard import Contents, fill
from tests.contract.gateway import Gateway, add_dataset, add_version
from tlm_core.corpus.states import CorpusState


def test_dataset_upload_shows_errors_with_rows(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    train = "text,label\n" + "".join(f"good {n},pos\nbad {n},neg\n" for n in range(20))
    answer = post_form(
        browser, "/ui/datasets", {"name": "toy", "text_column": ""}, {"train": train, "test": "", "validation": ""}
    )
    assert answer.status_code == 303, answer.text
    shown = browser.get(answer.headers["location"]).text
    assert "version 1" in shown and "pos" in shown and "good 0" in shown
    typed = {"name": "toy", "text_column": "text"}
    answer = post_form(browser, "/ui/datasets", typed, {"train": train + "only text\n"})
    assert (answer.status_code, answer.text.count("Row 41")) == (422, 1)
    shown = Tags(answer.text)
    assert "Dataset not added" in shown.words and all(shown.has("input", name=n, value=v) for n, v in typed.items())


def test_dataset_form_sets_language_metric_pair_column_and_delimiter(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    train = "eins\tzwei\tlabel\n" + "".join(f"gut {n}\tja {n}\tpos\nschlecht {n}\tnein {n}\tneg\n" for n in range(20))
    options = {
        "text_column": "eins",
        "text_pair_column": "zwei",
        "delimiter": "\t",
        "metric": "matthews",
        "language": "de",
    }
    answer = post_form(browser, "/ui/datasets", {"name": "toy", **options}, {"train": train})
    assert answer.status_code == 303, answer.text
    record = gateway.parts.catalog.dataset("default", "toy")
    assert options.items() <= record.options.items()
    blank = post_form(browser, "/ui/datasets", {"name": "toy2", **dict.fromkeys(options, "")}, {"train": train})
    assert blank.status_code == 303, blank.text
    assert not options.keys() & gateway.parts.catalog.dataset("default", "toy2").options.keys()
    assert '<details class="wide options"><summary>Options' in browser.get("/ui/datasets").text
    refused = post_form(browser, "/ui/datasets", {"name": "toy", **options, "language": "German"}, {"train": train})
    shown = Tags(refused.text)
    assert refused.status_code == 422 and shown.has("input", name="language", value="German")
    assert '<details class="wide options" open>' in refused.text and "Zstandard" in refused.text
    assert re.search(r'value="matthews" selected', refused.text) and re.search('value="\t" selected', refused.text)


def test_empty_file_is_an_error_but_empty_input_is_not(gateway: Gateway) -> None:
    train = "text,label\n" + "".join(f"good {n},pos\nbad {n},neg\n" for n in range(20))
    files = {"train": ("train.csv", train), "test": ("test.csv", "")}
    answer = signed_in(gateway).post("/ui/datasets", data={"name": "toy"}, files=files)
    assert (answer.status_code, "test.csv is empty" in answer.text) == (422, True), answer.text


def test_corpus_search_shows_hits_or_an_error(gateway: Gateway) -> None:
    fill(gateway)
    browser = signed_in(gateway)
    assert "93,518" in browser.get("/ui/corpora").text
    assert "about late parcel" in browser.get("/ui/corpora/manuals?q=late+parcel").text
    gateway.retriever.unavailable = True
    answer = browser.get("/ui/corpora/manuals/search?q=x", headers={"HX-Request": "true"})
    assert (answer.status_code, "does not answer" in answer.text) == (200, True)


def test_corpus_page_shows_the_searched_version(gateway: Gateway) -> None:
    for version in ("v1", "v2"):
        add_version(gateway, "manuals", version, CorpusState.READY)
    shown = signed_in(gateway).get("/ui/corpora/manuals?q=late&version=v1").text
    assert "<option selected>v1</option>" in shown and "<option>v2</option>" in shown


def test_corpus_upload_can_be_watched_and_cancelled(gateway: Gateway) -> None:
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
    gateway.parts.catalog.lease_load("default", load.id, "loader", 60)
    gateway.parts.catalog.save_load(load.model_copy(update={"waiting": "The disk is full."}), "loader")
    assert "waits: The disk is full." in browser.get("/ui/corpora/manuals").text
    cancel = f"/ui/corpora/manuals/loads/{load.id}/cancel"
    assert f'action="{cancel}"' in shown
    assert browser.post(cancel).headers["location"] == "/ui/corpora/manuals"
    after = browser.get("/ui/corpora/manuals").text
    assert '<span class="state cancelling">cancelling</span>' in after and cancel not in after


@pytest.mark.parametrize(
    ("texts", "files", "message"),
    [
        ({"name": "docs"}, {"files": ""}, "Send at least one file"),
        ({"name": "a/b"}, {"files": "some text"}, "Invalid name"),
        ({"name": "docs", "language": "English"}, {"files": "some text"}, "Invalid language"),
        ({"name": "docs", "secret": "x"}, {"files": "some text"}, "The form has no text field"),
    ],
)
def test_invalid_corpus_form_shows_the_error(
    gateway: Gateway, texts: dict[str, str], files: dict[str, str], message: str
) -> None:
    answer = post_form(signed_in(gateway), "/ui/corpora", texts, files)
    assert (answer.status_code, message in answer.text) == (422, True), answer.text
    shown = Tags(answer.text)
    assert "Corpus not added" in shown.words
    typed = {} if "secret" in texts else texts
    assert all(shown.has("input", name=name, value=text) for name, text in typed.items())
    assert gateway.parts.catalog.corpora("default")[0] == []


def test_dataset_shows_lengths_and_each_conflicting_text(gateway: Gateway) -> None:
    train = "text,label\n" + "".join(f"good {n},pos\nbad {n},neg\n" for n in range(20)) + "good 1,neg\n"
    add_dataset(gateway, "toy", {"train": train})
    shown = signed_in(gateway).get(f"/ui/datasets/{gateway.parts.catalog.dataset('default', 'toy').id}").text
    assert "words per text" in shown and "Conflicting labels in train" in shown
    assert "row 3: " in shown and "row 41: " in shown
    linked = re.findall(r'<a href="#conflicts-train">(.*?)</a>', shown)
    assert linked == [
        "train has 1 text with different labels (rows 3, 41). Correct the wrong labels.",
        "conflicting labels",
    ]
    assert Tags(shown).has("h2", id="conflicts-train")


def test_dataset_of_a_regression_shows_targets_instead_of_labels(gateway: Gateway) -> None:
    train = "text,label\n" + "".join(f"text {n},{n / 4}\n" for n in range(40))
    given = {split: f"text,label\n{split} a,-1.5\n{split} b,2\n" for split in ("validation", "test")}
    add_dataset(gateway, "rated", {"train": train, **given}, metric="pearson")
    page = signed_in(gateway).get(f"/ui/datasets/{gateway.parts.catalog.dataset('default', 'rated').id}").text
    (section,) = re.findall(r'<h2 id="targets">(.*?)</section>', page, re.S)
    assert "train09.754.875" in Tags(section).words and "test-1.520.25" in Tags(section).words
    assert not Tags(page).has("h2", id="labels") and "<dt>labels</dt>" not in page


def test_repeated_texts_are_apart_from_the_detected_format(filled: tuple[Gateway, Contents]) -> None:
    page = signed_in(filled[0]).get(f"/ui/datasets/{filled[1].dataset}").text
    sections = {
        head: Tags(body).words for head, body in re.findall(r'<h2 id="(notes|repeated)">(.*?)</section>', page, re.S)
    }
    assert "column 'label'" in sections["notes"] and "repeat" not in sections["notes"]
    assert "repeat an earlier text" in sections["repeated"] and "of test also occur in train" in sections["repeated"]


def test_forms_state_the_same_formats_and_sign_in_names_the_folder(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    for page in ("datasets", "corpora"):
        assert "Files of all formats except parquet can be compressed" in browser.get(f"/ui/{page}").text
    hint = Tags(browser.get("/ui/sign-in").text).words
    assert "secrets/api_token in the data folder of tlm up, by default ~/.local/share/tlm." in hint


def test_models_are_listed_and_get_aliases(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, job = signed_in(gateway), contents.jobs["succeeded"]
    answer = browser.post("/ui/models", data={"alias": "tickets@live", "job": job})
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/models")
    page = browser.get("/ui/models").text
    assert f"/ui/jobs/{job}/model" in page and "<code>tickets@live</code>" in page
    wrong = browser.post("/ui/models", data={"alias": "tickets", "job": job})
    shown = Tags(wrong.text)
    assert wrong.status_code == 422 and "<h1>Models</h1>" in wrong.text
    assert shown.has("input", name="alias", value="tickets", **{"aria-invalid": "true", "aria-describedby": "refused"})
    assert "Invalid alias 'tickets'. Expected NAME@NAME, such as reviews@production." in shown.words
    assert len([tag for tag, given in shown.tags if given.get("id") == "refused"]) == 1
    assert browser.post("/ui/models", data={"alias": "tickets@live\n", "job": job}).status_code == 422
    unfinished = browser.post("/ui/models", data={"alias": "a@b", "job": contents.jobs["queued"]})
    assert unfinished.status_code == 409 and "Alias not set" in unfinished.text and "<h1>Models</h1>" in unfinished.text
    browser.post("/ui/models/tickets@live/delete")
    assert "tickets@live" not in browser.get("/ui/models").text


def test_list_without_models_says_how_to_get_one(gateway: Gateway) -> None:
    assert "preset=instant" in signed_in(gateway).get("/ui/models").text
