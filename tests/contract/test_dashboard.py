"""The dashboard over HTTP: who gets in, what the pages show, and that hostile texts stay texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from services.api.app import create_app
from services.api.dashboard.assets import STATIC, integrity_of, vendored
from tests.contract.dashboard_made import HOSTILE, LABELS, Made, fill, filled_gateway, make_report
from tests.contract.gateway import AUTH, TOKEN, Gateway, make_gateway
from tests.factories import make_resolved, make_spec
from tlm_core.jobs.options import ShareTickets
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import OtherData
from tlm_core.jobs.states import State

OWN = {"Origin": "http://testserver"}
T = "default"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Made]]:
    with filled_gateway(tmp_path_factory.mktemp("dashboard")) as found:
        yield found


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Gateway:
    """An empty one."""
    return make_gateway(redis_client, tmp_path)


def visitor(gateway: Gateway) -> TestClient:
    """A browser that has not signed in."""
    return TestClient(create_app(gateway.parts), headers=OWN, raise_server_exceptions=False, follow_redirects=False)


def signed_in(gateway: Gateway) -> TestClient:
    browser = visitor(gateway)
    assert browser.post("/ui/sign-in", data={"token": TOKEN}).status_code == 303
    return browser


class Tags(HTMLParser):
    """Every start tag of a page with its attributes, and all its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def has(self, tag: str, **wanted: str) -> bool:
        return any(name == tag and wanted.items() <= given.items() for name, given in self.tags)


def pages_of(made: Made) -> list[str]:
    one, hostile = made.jobs["succeeded"], made.jobs["hostile"]
    paths = ["/ui/jobs", "/ui/datasets", "/ui/corpora", "/ui/corpora/manuals?q=parcel", "/ui/submit"]
    paths += [f"/ui/datasets/{name}" for name in (made.dataset, made.hostile_dataset)]
    paths += [f"/ui/jobs/{job}" for job in made.jobs.values()]
    paths += [f"/ui/jobs/{job}/{tab}" for job in (one, hostile) for tab in ("results", "selection", "model", "log")]
    return [*paths, f"/ui/jobs/{made.jobs['running']}/results", f"/ui/compare?id={one}&id={hostile}"]


# --- who gets in ----------------------------------------------------------------------------------------------------


def test_without_a_session_every_page_leads_to_the_sign_in_page(gateway: Gateway) -> None:
    browser = visitor(gateway)
    for path in (
        "/ui/jobs",
        "/ui/jobs/x",
        "/ui/jobs/x/points?stage=joint",
        "/ui/jobs/x/files/model.onnx",
        "/ui/submit",
    ):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/ui/sign-in"), path
    assert browser.get("/ui/jobs/live", headers={"HX-Request": "true"}).headers["hx-redirect"] == "/ui/sign-in"
    assert browser.get("/").headers["location"] == "/ui/jobs"


def test_the_token_typed_once_opens_a_session_that_scripts_cannot_read(gateway: Gateway) -> None:
    browser = visitor(gateway)
    answer = browser.post("/ui/sign-in", data={"token": f" {TOKEN} ", "next": "/ui/datasets"})
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/ui/datasets"
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/ui", "Max-Age="))
    assert TOKEN not in cookie
    assert browser.get("/ui/datasets").status_code == 200
    assert browser.post("/ui/sign-out").status_code == 303
    assert browser.get("/ui/datasets").status_code == 303


def test_another_token_is_refused_and_opens_nothing(gateway: Gateway) -> None:
    browser = visitor(gateway)
    answer = browser.post("/ui/sign-in", data={"token": "tlm_other"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    assert "not the API token" in answer.text


@pytest.mark.parametrize("value", ["", "x", "99999999999.00", "99999999999." + "a" * 64, "é.é"])
def test_a_session_that_was_not_issued_here_is_none(gateway: Gateway, value: str) -> None:
    answer = visitor(gateway).get("/ui/jobs", headers={"Cookie": f"tlm_session={value}".encode()})
    assert answer.status_code == 303


@pytest.mark.parametrize("next", ["https://evil.example/", "//evil.example", "/ui/\\evil", "/ui//evil", "javascript:x"])
def test_signing_in_never_leads_elsewhere(gateway: Gateway, next: str) -> None:
    answer = visitor(gateway).post("/ui/sign-in", data={"token": TOKEN, "next": next})
    assert answer.headers["location"] == "/ui/jobs"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_write_from_another_site_is_refused(filled: tuple[Gateway, Made], headers: dict[str, str]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    for path in (f"/ui/jobs/{made.jobs['running']}/do/cancel", "/ui/submit", "/ui/datasets", "/ui/sign-out"):
        assert browser.post(path, headers=headers).status_code == 403, path
    assert gateway.parts.jobs.get(T, made.jobs["running"]).state is State.RUNNING


# --- what pages are made of -----------------------------------------------------------------------------------------


def test_pages_allow_nothing_inline_and_nothing_from_elsewhere(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    for path in [*pages_of(made), "/ui/sign-in", "/ui/nowhere"]:
        answer = browser.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, path
        assert answer.headers["cache-control"] == "no-store"
        for tag, given in Tags(answer.text).tags:
            assert tag != "style" and "style" not in given, (path, tag, given)
            assert not any(name.startswith("on") for name in given), (path, tag, given)
            for name in ("src", "href", "action", "hx-get", "hx-post"):
                assert (given.get(name) or "/")[0] in "/#?", (path, tag, given)
            if tag in ("script", "link") and given.get("rel") != "icon":
                assert (given["integrity"] or "").startswith("sha384-"), (path, given)


def test_every_linked_file_has_the_hash_that_the_page_tells(gateway: Gateway) -> None:
    browser = visitor(gateway)
    linked = [given for tag, given in Tags(browser.get("/ui/sign-in").text).tags if tag in ("script", "link")]
    assert len(linked) >= 4
    for given in linked:
        answer = browser.get(given.get("src") or given.get("href") or "")
        assert (answer.status_code, "immutable" in answer.headers["cache-control"]) == (200, True)
    for one in vendored():
        assert integrity_of(STATIC / "vendor" / one["file"]) == one["integrity"], one["file"]
    listed = {one["file"] for one in vendored()}
    assert listed == {path.name for path in (STATIC / "vendor").iterdir()} - {"vendor.json", "LICENSES.txt"}


def test_the_first_page_weighs_at_most_200_kilobytes(filled: tuple[Gateway, Made]) -> None:
    browser = signed_in(filled[0])
    answer = browser.get("/ui/jobs")
    files = [
        given.get("src") or given.get("href") for tag, given in Tags(answer.text).tags if tag in ("script", "link")
    ]
    assert len(answer.content) + sum(len(browser.get(name or "").content) for name in files) <= 200_000


def test_hostile_labels_texts_and_names_stay_text(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    seen = 0
    for path in pages_of(made):
        answer = browser.get(path)
        assert answer.status_code == 200, (path, answer.text[:500])
        read = Tags(answer.text)
        assert not any(tag == "img" for tag, _ in read.tags), path
        assert all(given.get("src") for tag, given in read.tags if tag == "script"), path
        seen += HOSTILE in read.words
    assert seen >= 5, "results, selection, data set, log and facts of the job show it"
    for path, data in (
        (f"/ui/jobs/{made.jobs['hostile']}/predict", {"texts": HOSTILE}),
        ("/ui/submit", {"dataset": HOSTILE, "seeds": HOSTILE, "overrides": HOSTILE}),
    ):
        assert not Tags(browser.post(path, data=data).text).has("img"), path
    for path in (f"/ui/jobs/{HOSTILE}", f"/ui/corpora/manuals?q={HOSTILE}", f"/ui/jobs/{made.jobs['alone']}/do/x"):
        assert not Tags(browser.get(path).text).has("img"), path


def test_every_field_has_a_label_and_every_page_one_heading(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    for path in pages_of(made):
        text = browser.get(path).text
        read = Tags(text)
        named = {given.get("for") for tag, given in read.tags if tag == "label"}
        for tag, given in read.tags:
            if tag in ("input", "select", "textarea") and given.get("type") not in ("hidden", "checkbox", "radio"):
                assert given.get("id") in named, (path, given)
        assert sum(tag == "h1" for tag, _ in read.tags) == 1, path
        ids = [given["id"] for _, given in read.tags if "id" in given]
        assert len(ids) == len(set(ids)), path


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_the_list_shows_each_job_with_its_state_in_words(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    text = browser.get("/ui/jobs").text
    for state in ("queued", "paused", "running", "succeeded", "failed", "cancelled"):
        assert f'<span class="state {state}">{state}</span>' in text
    assert all(job in text for job in made.jobs.values())
    only = browser.get("/ui/jobs?state=failed").text
    assert made.jobs["failed"] in only and made.jobs["running"] not in only
    part = browser.get("/ui/jobs", headers={"HX-Request": "true"}).text
    assert part.lstrip().startswith('<div id="jobs"') and 'hx-trigger="every 3s"' in part
    assert "hx-trigger" not in browser.get("/ui/jobs?state=failed", headers={"HX-Request": "true"}).text


def test_a_running_job_shows_its_stage_and_what_can_be_done(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    job = made.jobs["running"]
    browser = signed_in(gateway)
    text = browser.get(f"/ui/jobs/{job}").text
    assert re.search(r'<li class="running" aria-current="step">\s*<span class="name">joint</span>', text)
    assert "405" in text and "15,320" in text and "1 min 9 s" in text
    assert f"/ui/jobs/{job}/do/pause" in text and f"/ui/jobs/{job}/do/resume" not in text
    assert "no number; write" not in text


def test_a_live_part_asks_for_the_whole_page_when_the_state_has_changed(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser, job = signed_in(gateway), made.jobs["running"]
    same = browser.get(f"/ui/jobs/{job}/live?was=running.joint", headers={"HX-Request": "true"})
    assert (same.status_code, "hx-refresh" in same.headers) == (200, False)
    assert 'hx-swap-oob="outerMorph"' in same.text
    other = browser.get(f"/ui/jobs/{job}/live?was=queued.None", headers={"HX-Request": "true"})
    assert (other.status_code, other.headers["hx-refresh"]) == (204, "true")


def test_what_is_done_with_a_job_goes_through_its_states(gateway: Gateway) -> None:
    made = fill(gateway)
    browser, job = signed_in(gateway), made.jobs["paused"]
    assert browser.post(f"/ui/jobs/{job}/do/resume").headers["location"] == f"/ui/jobs/{job}"
    assert gateway.parts.jobs.get(T, job).state is State.QUEUED
    browser.post(f"/ui/jobs/{job}/do/cancel")
    assert gateway.parts.jobs.get(T, job).state is State.CANCELLED
    again = browser.post(f"/ui/jobs/{job}/do/resume")
    assert (again.status_code, "not possible" in again.text) == (409, True)
    assert browser.post(f"/ui/jobs/{job}/do/rename").status_code == 404
    once, twice = (browser.post(f"/ui/jobs/{job}/do/retry", data={"key": "k"}).headers["location"] for _ in range(2))
    assert once == twice != f"/ui/jobs/{job}"
    new = gateway.parts.jobs.get(T, once.rsplit("/", 1)[1])
    assert new.origin is not None and (new.origin.job, new.state) == (job, State.QUEUED)
    assert browser.post(f"/ui/jobs/{made.jobs['succeeded']}/do/retry").status_code == 409
    assert browser.post(f"{once}/do/delete").status_code == 409, "it is not over"
    assert browser.post(f"/ui/jobs/{job}/do/delete").headers["location"] == "/ui/jobs"
    assert browser.get(f"/ui/jobs/{job}").status_code == 404
    assert browser.post(f"/ui/datasets/{made.dataset}/delete").status_code == 409, "jobs need it"
    browser.post(f"/ui/jobs/{made.jobs['hostile']}/do/delete")
    assert browser.post(f"/ui/datasets/{made.hostile_dataset}/delete").headers["location"] == "/ui/datasets"
    assert browser.get(f"/ui/datasets/{made.hostile_dataset}").status_code == 404


def test_curves_come_from_what_was_told_and_from_what_was_kept(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    running = browser.get(f"/ui/jobs/{made.jobs['running']}/points?stage=joint").json()
    (curve,) = running["curves"]
    assert running["live"] and curve["name"] == "seed 0"
    assert curve["series"]["mlm"]["x"][-1] == 405
    assert max(curve["series"]["learning_rate"]["y"]) == pytest.approx(3e-3, rel=0.1)
    over = browser.get(f"/ui/jobs/{made.jobs['succeeded']}/points?stage=finetune").json()
    assert [one["name"] for one in over["curves"]] == ["seed 0", "seed 1", "seed 2"]
    assert over["curves"][2]["series"]["score"]["x"] == list(range(0, 141, 14))
    assert not over["live"]


def test_the_log_is_followed_from_where_it_ended(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser, job = signed_in(gateway), made.jobs["running"]
    text = browser.get(f"/ui/jobs/{job}/log").text
    after = re.search(r"log/more\?after=([\d-]+)", text)
    assert after and "tokenizer: 8,192 tokens" in text
    gateway.parts.jobs.report(T, job, 1, logs=["one line more"])
    part = browser.get(f"/ui/jobs/{job}/log/more?after={after[1]}", headers={"HX-Request": "true"}).text
    assert "one line more" in part and "tokenizer" not in part and "hx-get" in part


# --- results --------------------------------------------------------------------------------------------------------


def test_results_show_scores_classes_confusions_and_cost_beside_the_papers(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    text = browser.get(f"/ui/jobs/{made.jobs['succeeded']}/results").text
    words = " ".join(Tags(text).words.split())
    report = browser.get(f"/v1/jobs/{made.jobs['succeeded']}/report", headers=AUTH).json()
    mean, spread = report["mean"]["test"]["macro_f1"], report["spread"]["test"]["macro_f1"]
    assert f"{mean:.3f} ± {spread:.3f} macro-F1" in words
    assert all(label in words for label in LABELS)
    assert "4.1 × 10¹³ FLOPs 79,000 times less than the 3.2 × 10¹⁸ of the paper’s small scale" in words
    confusion = report["seeds"][2]["test"]["confusion"]
    cells = re.findall(r'<td class="s\d(?: right)?">(\d+)</td>', text)
    assert [int(cell) for cell in cells] == [n for row in confusion for n in row]
    other = browser.get(f"/ui/jobs/{made.jobs['succeeded']}/results?seed=0").text
    assert "test, seed 0" in other


def test_a_result_that_is_not_there_yet_says_when_it_will_be(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    for tab in ("results", "model"):
        answer = browser.get(f"/ui/jobs/{made.jobs['running']}/{tab}")
        assert answer.status_code == 200 and "when the stage" in answer.text
    assert "/selection" not in browser.get(f"/ui/jobs/{made.jobs['alone']}").text


def test_the_selection_is_searched_and_tells_who_asked(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser, path = signed_in(gateway), f"/ui/jobs/{made.jobs['succeeded']}/selection"
    first = browser.get(path).text
    assert first.count('<p class="meta">') == 20 and "Next 20" in first and "asked for by" in first
    row, text = re.findall(r'row (\d+), rank 1</span> <span class="tag">\w+</span> ([^<]+)<', first)[0]
    task = gateway.parts.artifacts.localize(made_task(gateway, made.jobs["succeeded"])) / "train.parquet"
    import pyarrow.parquet as pq

    assert pq.read_table(task)["text"][int(row) - 1].as_py() == text
    found = browser.get(path + "?q=PARCEL", headers={"HX-Request": "true"}).text
    texts = re.findall(r'<p class="text">([^<]*)</p>', found)
    assert texts and all("parcel" in one.lower() for one in texts)
    assert "No selected passage holds" in browser.get(path + "?q=zzz").text


def made_task(gateway: Gateway, job: str) -> Any:
    from services.common.artifacts_of import published

    return published(gateway.parts.jobs, gateway.parts.jobs.get(T, job))["validate"]


def test_the_model_classifies_what_is_typed(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser, path = signed_in(gateway), f"/ui/jobs/{made.jobs['succeeded']}/predict"
    part = browser.post(path, data={"texts": "invoice payment\n\nlate parcel"}, headers={"HX-Request": "true"}).text
    assert re.findall(r'class="best"><th scope="row" class="label">(\w+)<', part) == ["billing", "delivery"]
    assert "<html" in browser.post(path, data={"texts": "invoice"}).text, "it works without a script"
    empty = browser.post(path, data={"texts": " "}, headers={"HX-Request": "true"})
    assert (empty.status_code, "there is no text" in empty.text) == (422, True)
    assert browser.post(f"/ui/jobs/{made.jobs['running']}/predict", data={"texts": "x"}).status_code == 409


def test_files_are_sent_to_a_session(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser, job = signed_in(gateway), made.jobs["succeeded"]
    listed = re.findall(r'href="(/ui/jobs/[^"]+/files/[^"]+)"', browser.get(f"/ui/jobs/{job}/model").text)
    assert f"/ui/jobs/{job}/files/model/weights.bin" in listed
    for path in listed:
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["content-disposition"][:10]) == (200, "attachment")
    assert browser.get(f"/ui/jobs/{job}/files/nope").status_code == 404


def test_studies_show_their_words_and_their_plot(gateway: Gateway) -> None:
    store, artifacts = gateway.parts.jobs, gateway.parts.artifacts
    others = {"share_tickets": ShareTickets(others=("b",))}
    for kind in ("learning_curve", "share_tickets"):
        shared = kind == "share_tickets"
        spec = make_spec(kind=kind, **(others if shared else {}))
        other = OtherData(id="ds_2", ref=make_resolved().dataset)
        job, _ = store.submit(T, spec, make_resolved(others=(other,) if shared else ()))
        claimed = store.claim("maker", 60)
        assert claimed is not None
        folder = gateway.root / "made" / kind
        folder.mkdir(parents=True)
        report = make_report(LABELS, (0, 1), 0.7) | {"words": f"Said of {HOSTILE}."}
        if shared:
            alone = {name: report[name] for name in ("mean", "spread")}
            report = {"words": report["words"], "mean": {"test": {"value": 0.5}}, "spread": {"test": {"value": None}}}
            report |= {"tasks": [{"name": "a", "metric": "accuracy", "alone": alone}]}
            report |= {"average": {"alone": {"mean": 0.5, "std": None}}}
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "plot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        ref = artifacts.write(f"default/{kind}", folder, artifact=kind, stage="curve")
        made = {plan_of(claimed).report: {"artifact": kind, "ref": ref.model_dump()}}
        store.finish(claimed, "maker", {"artifacts": made, "summary": {"mean": report["mean"], "words": "x"}})
        browser = signed_in(gateway)
        for path in ("/ui/jobs", *(f"/ui/jobs/{job.id}{tab}" for tab in ("", "/results", "/log"))):
            answer = browser.get(path)
            assert (answer.status_code, Tags(answer.text).has("img", onerror="x")) == (200, False), path
        assert HOSTILE in Tags(browser.get(f"/ui/jobs/{job.id}/results").text).words
        assert 'class="running"' not in browser.get(f"/ui/jobs/{job.id}").text
        plot = browser.get(f"/ui/jobs/{job.id}/plot.svg")
        assert (plot.headers["content-type"], "script-src 'self'" in plot.headers["content-security-policy"]) == (
            "image/svg+xml",
            True,
        )
        assert browser.get(f"/ui/compare?id={job.id}").status_code == 200


# --- data sets, corpora, submitting, comparing ----------------------------------------------------------------------


def test_a_data_set_is_uploaded_and_its_faults_are_shown_with_their_rows(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    train = "text,label\n" + "".join(f"good {n},pos\nbad {n},neg\n" for n in range(20))
    answer = post_form(browser, {"name": "toy", "text_column": ""}, {"train": train, "test": "", "validation": ""})
    assert answer.status_code == 303, answer.text
    shown = browser.get(answer.headers["location"]).text
    assert "version 1" in shown and "pos" in shown and "good 0" in shown
    answer = post_form(browser, {"name": "toy"}, {"train": train + "only text\n"})
    assert (answer.status_code, "row 41" in answer.text) == (422, True)


def post_form(browser: TestClient, texts: dict[str, str], files: dict[str, str]) -> Any:
    """As browsers do: a file box that was left empty is a file without name and content."""
    parts = [f'name="{name}"\r\n\r\n{text}' for name, text in texts.items()]
    parts += [f'name="{n}"; filename="{n + ".csv" if body else ""}"\r\n\r\n{body}' for n, body in files.items()]
    body = "".join(f"--edge\r\nContent-Disposition: form-data; {part}\r\n" for part in parts) + "--edge--\r\n"
    return browser.post(
        "/ui/datasets", content=body.encode(), headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )


def test_a_corpus_is_searched_and_an_index_that_is_away_is_said_on_the_page(gateway: Gateway) -> None:
    fill(gateway)
    browser = signed_in(gateway)
    assert "93,518" in browser.get("/ui/corpora").text
    assert "about late parcel" in browser.get("/ui/corpora/manuals?q=late+parcel").text
    gateway.retriever.away = True
    answer = browser.get("/ui/corpora/manuals/search?q=x", headers={"HX-Request": "true"})
    assert (answer.status_code, "does not answer" in answer.text) == (200, True)


def test_a_form_sent_twice_is_one_job(gateway: Gateway) -> None:
    fill(gateway)
    browser = signed_in(gateway)
    page = Tags(browser.get("/ui/submit").text)
    key = next(given["value"] for tag, given in page.tags if tag == "input" and given.get("name") == "key")
    data = {
        "dataset": "tickets",
        "corpus": "manuals",
        "seeds": "0, 1",
        "overrides": "joint.rho2 = 5\n",
        "key": key or "",
    }
    first, second = (browser.post("/ui/submit", data=data).headers["location"] for _ in range(2))
    assert first == second
    job = gateway.parts.jobs.get(T, first.rsplit("/", 1)[1])
    assert (job.spec.seeds, job.spec.set, job.resolved.recipe.joint.rho2) == ((0, 1), {"joint.rho2": 5}, 5)
    alone = browser.post("/ui/submit", data={**data, "corpus": "", "key": "another"}).headers["location"]
    assert gateway.parts.jobs.get(T, alone.rsplit("/", 1)[1]).resolved.corpus_name is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"seeds": "one"}, "whole numbers"),
        ({"overrides": "joint.rho9 = 5"}, "did you mean"),
        ({"overrides": "joint.rho2"}, "key = value"),
        ({"overrides": "joint.rho2 = NaN"}, "NaN"),
        ({"scale": "huge"}, "/scale"),
        ({"dataset": "nope"}, "no data set"),
    ],
)
def test_a_form_that_cannot_be_submitted_keeps_what_was_typed(
    filled: tuple[Gateway, Made], data: Any, says: str
) -> None:
    gateway, _ = filled
    before = len(gateway.parts.jobs.list_jobs(T, limit=100)[0])
    whole = {"dataset": "tickets", "corpus": "manuals", "seeds": "0, 7", **data}
    answer = signed_in(gateway).post("/ui/submit", data=whole)
    assert (answer.status_code, says in answer.text) == (422, True), answer.text
    assert all(value in answer.text for name, value in whole.items() if name in ("seeds", "overrides"))
    assert len(gateway.parts.jobs.list_jobs(T, limit=100)[0]) == before


def test_a_preview_tells_recipe_and_cost_and_submits_nothing(filled: tuple[Gateway, Made]) -> None:
    gateway, _ = filled
    before = len(gateway.parts.jobs.list_jobs(T, limit=100)[0])
    answer = signed_in(gateway).post(
        "/ui/submit/preview", data={"dataset": "tickets", "corpus": "manuals", "overrides": "joint.rho2 = 7"}
    )
    assert answer.status_code == 200 and "ρ₂ 7" in answer.text and "4f1c2a9be07d" in answer.text
    assert re.search(r"<dt>FLOPs</dt><dd>[\d.]+ × 10", answer.text) and "built-in" in answer.text
    assert len(gateway.parts.jobs.list_jobs(T, limit=100)[0]) == before


def test_a_comparison_shows_what_differs_and_both_scores(filled: tuple[Gateway, Made]) -> None:
    gateway, made = filled
    browser = signed_in(gateway)
    ids = f"id={made.jobs['succeeded']}&id={made.jobs['alone']}"
    text = browser.get(f"/ui/compare?{ids}").text
    assert "selection.selector" in text and "joint.rho1" not in text
    assert text.count("± ") == 3, "the spread of each score of the one with three seeds"
    points = browser.get(f"/ui/compare/points?stage=finetune&{ids}").json()
    assert [curve["name"] for curve in points["curves"]] == ["A", "B"]
    many = "&".join(f"id={job}" for job in made.jobs.values())
    assert browser.get(f"/ui/compare?{many}").status_code == 422
    assert browser.get("/ui/compare?id=nope").status_code == 404


def test_what_goes_wrong_is_a_page_and_for_scripts_a_part_of_one(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    whole = browser.get("/ui/jobs/nope")
    assert (whole.status_code, "no job" in whole.text, "<html" in whole.text) == (404, True, True)
    part = browser.get("/ui/jobs/nope/live", headers={"HX-Request": "true"})
    assert (part.status_code, "no job" in part.text, "<html" in part.text) == (404, True, False)
    assert browser.get("/ui/jobs?state=odd").status_code == 422
