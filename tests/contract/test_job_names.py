"""Names of jobs, and short references to them in the client and on the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.contract.dashboard_pages import signed_in
from tests.contract.gateway import TOKEN, Gateway
from tests.factories import make_resolved, make_spec
from tlm_client.cli import app
from tlm_client.client import TLMClient
from tlm_core.errors import InvalidRequest, NotFound

T = "default"


@pytest.fixture
def url(gateway: Gateway) -> Iterator[str]:
    with gateway.served() as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[TLMClient]:
    with TLMClient(url, TOKEN, tries=1) as client:
        yield client


def submit(gateway: Gateway, name: str | None = None) -> str:
    return gateway.parts.jobs.submit(T, make_spec(name=name), make_resolved())[0].id


def test_search_matches_names_and_starts_of_ids(gateway: Gateway, client: TLMClient) -> None:
    nightly, other, plain = submit(gateway, "Nightly run 7"), submit(gateway, "weekly"), submit(gateway)
    assert client.job(nightly).name == "Nightly run 7" and client.job(plain).name is None

    def listed(search: str, state: str | None = None) -> list[str]:
        return [job.id for job in client.jobs(state, search=search)]

    assert listed("nightly") == listed("RUN 7", "queued") == [nightly]
    assert listed("nightly", "running") == []
    assert listed("job_") == [plain, other, nightly]
    assert listed(other) == listed(other.removeprefix("job_")) == [other]
    gateway.parts.jobs.cancel(T, nightly)
    client.delete_job(nightly)
    assert listed("nightly") == []


def test_pages_of_a_search_are_complete(gateway: Gateway) -> None:
    jobs = [submit(gateway, f"run {number}") for number in range(5)]
    first, more = gateway.parts.jobs.list_jobs(T, search="run", limit=3)
    rest, end = gateway.parts.jobs.list_jobs(T, search="run", after=first[-1].id, limit=3)
    assert [job.id for job in (*first, *rest)] == jobs[::-1]
    assert (more, end) == (True, False)


def test_reference_is_a_unique_start_of_an_id_or_the_latest_job(gateway: Gateway, client: TLMClient) -> None:
    with pytest.raises(NotFound, match="There are no jobs"):
        client.job_id("@latest")
    old, new = submit(gateway), submit(gateway, "job")
    assert client.job_id("@latest") == new
    assert client.job_id(old[:-1]) == client.job_id(old.removeprefix("job_")[:-1]) == client.job_id(old) == old
    with pytest.raises(InvalidRequest, match=r"'job_' is the start of 2 ids"):
        client.job_id("job_")
    with pytest.raises(NotFound, match="No job 'zzz'"):
        client.job_id("zzz")


def test_unknown_name_of_a_job_suggests_the_closest_name(gateway: Gateway, client: TLMClient) -> None:
    submit(gateway, "nightly")
    submit(gateway, "weekly")
    submit(gateway)
    with pytest.raises(NotFound, match=r"No job 'nihgtly'\. Did you mean 'nightly'\?"):
        client.job_id("nihgtly")


def test_empty_or_short_reference_means_no_job(gateway: Gateway, client: TLMClient) -> None:
    job = submit(gateway)
    for reference in ("", " "):
        with pytest.raises(InvalidRequest, match="The job reference is empty"):
            client.job_id(reference)
    for reference in ("j", "job", "job_", job[:7], job[4:7]):
        with pytest.raises(
            InvalidRequest, match=f"'{reference}' is too short for the start of an id. Give at least 4 "
        ):
            client.job_id(reference)
    assert client.job_id(job[:8]) == client.job_id(job[4:8]) == job
    submit(gateway, "j")
    assert client.job(client.job_id("j")).name == "j"


@pytest.mark.parametrize("name", ["a@b", "@latest", "job_7", "run @ noon"])
def test_new_name_that_looks_like_an_alias_or_an_id_is_refused(gateway: Gateway, name: str) -> None:
    stored = submit(gateway, name)
    with gateway.test_client() as api:
        assert api.get(f"/v1/jobs/{stored}").json()["name"] == name, "Older records may have such names."
        for path in ("/v1/jobs", "/v1/jobs/estimate", "/v1/jobs?dry_run=true"):
            answer = api.post(path, json={"name": name, "dataset": "toy"})
            assert (answer.status_code, f"Invalid name '{name}'. Choose a name" in answer.text) == (422, True)


def test_page_of_a_name_redirects_to_the_newest_job_with_it(gateway: Gateway) -> None:
    submit(gateway, "nightly")
    new = submit(gateway, "nightly")
    submit(gateway, "nightly, longer")
    browser = signed_in(gateway)
    answer = browser.get("/ui/jobs/nightly", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/jobs/{new}")
    assert browser.get("/ui/jobs/night").status_code == 404


def test_name_means_the_newest_job_with_it(gateway: Gateway, client: TLMClient) -> None:
    submit(gateway, "nightly")
    new = submit(gateway, "nightly")
    submit(gateway, "nightly, longer")
    assert client.job_id("nightly") == new
    with pytest.raises(NotFound, match="No job 'night'"):
        client.job_id("night")
    named_like_an_id = submit(gateway, new[:-1])
    assert client.job_id(new[:-1]) == named_like_an_id
    spaced = submit(gateway, "run @ noon")
    assert client.job_id("run @ noon") == spaced


def test_commands_accept_references(gateway: Gateway, url: str) -> None:
    job = submit(gateway, "nightly")

    def tlm(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["--url", url, "--token", TOKEN, *arguments])
        assert result.exit_code == code, result.output
        return result

    assert f"{job} (nightly): queued, attempt 0" in tlm("show", "@latest").stdout
    assert f"{job} (nightly): queued, attempt 0" in tlm("show", "nightly").stdout
    assert f"{job} is paused" in tlm("pause", job[4:-2]).stdout
    assert (tlm("logs", job).stdout, tlm("logs", job).stderr) == ("", f"note: The log of {job} is empty.\n")
    assert "nightly" in tlm("jobs", "--search", "night").stdout
    prune = tlm("submit", "--kind", "prune", "--options", '{"job": "@latest"}', code=1)
    assert f"Job {job} is paused. Resume it, and wait until it has succeeded." in prune.stderr
    tlm("cancel", "@latest")
    prune = tlm("estimate", "--kind", "prune", "--options", '{"job": "@latest"}', code=1)
    assert f"Job {job} is cancelled. Name a succeeded job from the list of models." in prune.stderr
    missing = tlm("show", "job_z", "--json", code=4)
    assert missing.stdout == "" and '"not_found"' in missing.stderr


def test_dashboard_shows_names_of_jobs(gateway: Gateway) -> None:
    job = submit(gateway, "nightly <7>")
    for path in ("/ui/jobs", f"/ui/jobs/{job}", "/ui/jobs?q=nightly"):
        assert "nightly &lt;7&gt;" in signed_in(gateway).get(path).text
