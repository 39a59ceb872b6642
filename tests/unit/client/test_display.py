"""The progress display without a terminal prints a few plain lines."""

from __future__ import annotations

import io

from rich.console import Console

from tests.unit.client.gateway import job_summary, load_view
from tlm_client.display import Display, duration, size, spark
from tlm_client.transfer import FileProgress
from tlm_core.wire import CorpusLoad, JobEvent, JobSummary


def plain(now: list[float]) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, soft_wrap=True, highlight=False), clock=lambda: now[0]), out


def progress(step: int, node: str = "joint.s0") -> JobEvent:
    return JobEvent(type="progress", data={"stage": "joint", "node": node, "step": step, "total": 100})


def test_stage_is_printed_at_its_start_and_every_ten_seconds() -> None:
    now = [0.0]
    display, out = plain(now)
    with display:
        display.begin("job_1")
        for second in range(25):
            now[0] = float(second)
            display.job_event(progress(second))
        display.job_event(progress(1, "finetune.s0"))
    lines = out.getvalue().splitlines()
    assert all(line.startswith("job_1 ") for line in lines)
    assert [line.split()[-1] for line in lines] == ["0/100", "10/100", "20/100", "1/100"]


def test_stages_that_report_in_turn_print_one_line_each() -> None:
    now = [0.0]
    out = io.StringIO()
    console = Console(file=out, soft_wrap=True, highlight=False)
    with Display(console, plain_seconds=60.0, clock=lambda: now[0]) as display:
        for second in range(90):
            now[0] = float(second)
            display.job_event(progress(second, f"joint.s{second % 3}"))
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["joint.s0", "joint.s1", "joint.s2", "joint.s2"]


def test_control_characters_are_replaced() -> None:
    display, out = plain([0.0])
    with display:
        display.begin("\x1b]0;title\x07")
        display.update("\x1b[2J", 1, 2, "\x9b")
        display.line("\x1bc")
    assert not set("\x1b\x07\x9b") & set(out.getvalue())


def test_end_of_a_short_download_is_printed() -> None:
    display, out = plain([0.0])
    with display:
        for done in (1_000, 3_000, 4_000):
            display.bytes(FileProgress("model.onnx", done, 4_000))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["25%", "100%"]


def test_download_that_waits_for_another_one_is_printed() -> None:
    display, out = plain([0.0])
    with display:
        display.bytes(FileProgress("model.onnx", 1_000, 4_000, waits=True))
    assert out.getvalue().strip() == "model.onnx  25% 1.0 kB of 4.0 kB  waits for another download into its folder"


def test_failed_attempt_waiting_and_warning_show_their_message() -> None:
    display, out = plain([0.0])
    with display:
        event = JobEvent(type="job.requeued", attempt=1, data={"message": "[a] worker died.", "delay_seconds": 2.0})
        display.job_event(event)
        display.job_event(JobEvent(type="job.waiting", attempt=1, data={"message": "no room yet"}))
        display.job_event(JobEvent(type="stage.warning", attempt=1, data={"message": "3 texts are cut"}))
    lines = out.getvalue().splitlines()
    assert lines == [
        "Attempt 1 ended: [a] worker died. The next attempt starts in 2 s.",
        "Waiting: no room yet",
        "Warning: 3 texts are cut",
    ]


def test_silent_workers_hide_rate_and_time_left() -> None:
    now = [0.0]
    display, out = plain(now)
    live = {"stage": "joint", "node": "joint.s0", "step": 5, "total": 10, "rate": 2.5, "share": 0.3, "eta_seconds": 62}
    queued = {"waiting": {"code": "queued", "reason": "1 job ahead in the queue.", "position": 2}}
    silent = [{"state": "running", "progress": live, "silent_seconds": seconds} for seconds in (None, 35.0, 45.0)]
    with display:
        paused, over = ({"state": state, "progress": live} for state in ("paused", "succeeded"))
        for fields in (queued, queued, {"state": "running"}, *silent, paused, over):
            display.standing(JobSummary(**job_summary(**fields)))
            now[0] += 10
    assert out.getvalue().splitlines() == [
        "waiting: 1 job ahead in the queue.",
        "running",
        "joint.s0  30% 5/10  2.5 steps/s  1:02 left",
        "joint.s0  30% workers last reported 0:35 ago",
        "joint.s0  30% workers last reported 0:45 ago",
        "paused",
    ]


def test_time_left_includes_later_operations() -> None:
    display, out = plain([0.0])
    live = {"stage": "joint", "node": "joint.s0", "step": 5, "total": 10, "share": 0.3, "eta_seconds": 62}
    with display:
        display.begin("task only:", later=120)
        display.job_event(JobEvent(type="progress", data=live))
        display.begin("TLM:")
        display.job_event(JobEvent(type="progress", data=live))
    assert [line.rsplit("  ", 1)[1] for line in out.getvalue().splitlines()] == ["3:02 left", "1:02 left"]


def test_corpus_upload_shows_rate_and_time_left() -> None:
    now = [100.0]
    display, out = plain(now)
    with display:
        display.begin("corpus docs:")
        cutting = (0, 500, 0), (10, 5_500, 0)
        indexing = (12, 0, 9_000), (22, 3_000, 9_000)
        for number, (second, done, total) in enumerate((*cutting, *indexing)):
            state = "cutting" if number < 2 else "indexing"
            now[0] = 100.0 + second
            waiting = "The disk is full." if number == 3 else ""
            display.load(CorpusLoad(**load_view(state=state, done=done, total=total, waiting=waiting)))
    assert out.getvalue().splitlines() == [
        "corpus docs: cutting 500 passages",
        "corpus docs: cutting 5,500 passages  500/s",
        "corpus docs: indexing   0% 0/9,000 passages",
        "corpus docs: indexing  33% 3,000/9,000 passages  300/s  0:20 left  waits: The disk is full.",
    ]


def test_sizes_of_small_files_are_in_kilobytes() -> None:
    assert [size(109), size(2_340_000)] == ["0.1 kB", "2.3 MB"]


def test_duration_has_clock_format() -> None:
    assert [duration(s) for s in (0, 61.4, 3661, -1)] == ["0:00", "1:01", "1:01:01", "0:00"]
    assert [duration(s) for s in (172_799, 172_800, 365_805_497)] == ["47:59:59", "2 days 0 h", "4,233 days 20 h"]


def test_spark_scales_values_to_blocks() -> None:
    assert spark([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert spark([5.0, 5.0]) == "▁▁"
    assert spark([]) == ""
    assert len(spark(list(range(1000)))) == 24
