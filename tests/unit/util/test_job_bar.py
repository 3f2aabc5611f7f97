"""The progress of a workflow's jobs, by a clock that the test moves."""

import contextlib
import fcntl
import io
import os
import struct
import termios

import pytest

from mobilebert.util.job_bar import LAST, JobBar


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal():
    """Yield (a stream to a terminal of 120 columns, a function that reads what it shows)."""
    shown, written = os.openpty()
    fcntl.ioctl(written, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.set_blocking(shown, False)

    def read():
        text = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(shown, 4096):
                text += part
        return text.decode()

    with open(written, "w") as stream:
        yield stream, read
    os.close(shown)


def test_a_log_gets_one_line_for_each_job_that_ends(clock):
    stream = io.StringIO()
    bar = JobBar({"data": 1, "finetune": 2}, stream, clock)
    bar.begin(1, "data", "data")
    clock.now = 20
    bar.end(1)
    bar.begin(2, "finetune", "finetune/m/sst2")
    clock.now = 90
    bar.end(2)
    bar.end(7)  # the target of the workflow never began
    bar.close()
    assert stream.getvalue().splitlines() == [
        "[1/3] data: 00:20 (00:20 so far, about 00:40 left)",
        "[2/3] finetune/m/sst2: 01:10 (01:30 so far, about 01:10 left)",
        "2 of 3 jobs in 01:30",
    ]


def test_the_time_left_counts_running_jobs_and_how_many_run_at_once(clock):
    bar = JobBar({"finetune": 6, "report": 1}, io.StringIO(), clock)
    assert bar.seconds_left() is None
    for number in (1, 2):
        bar.begin(number, "finetune", f"finetune/{number}")
    clock.now = 10
    for number in (1, 2):
        bar.end(number)
    for number in (3, 4):
        bar.begin(number, "finetune", f"finetune/{number}")
    clock.now = 14
    # Two jobs of 10 s were at work all the time. Left are 6 s of each of the two that run, two more
    # and the report, which is taken to last as long as the jobs so far.
    assert bar.seconds_left() == pytest.approx((6 + 6 + 20 + 10) / 2)


def test_a_failed_job_is_named_with_its_log_and_the_last_lines(clock, tmp_path):
    log = tmp_path / "sst2.log"
    log.write_text("".join(f"line {number}\n" for number in range(40)) + "x" * 5000 + "\n")
    stream = io.StringIO()
    bar = JobBar({"finetune": 2}, stream, clock)
    bar.begin(1, "finetune", "finetune/m/sst2")
    bar.fail(1, "finetune", [str(log)])
    bar.fail(2, "finetune", [str(tmp_path / "never-written.log")])
    bar.close()
    first, *lines, last, end = stream.getvalue().splitlines()
    assert first == f"failed: finetune/m/sst2; log: {log}"
    assert lines[0] == f"    line {40 - LAST + 1}"
    assert len(lines) == LAST
    assert len(lines[-1]) < 250
    assert last == f"failed: finetune; log: {tmp_path / 'never-written.log'}"
    assert end == "0 of 2 jobs in 00:00; failed: finetune/m/sst2, finetune"


def test_a_job_that_ends_well_at_its_second_try_has_not_failed(clock):
    stream = io.StringIO()
    bar = JobBar({"finetune": 2}, stream, clock)
    for _ in range(2):
        bar.begin(1, "finetune", "finetune/m/sst2")
        clock.now += 10
        bar.fail(1, "finetune", [])
    bar.begin(1, "finetune", "finetune/m/sst2")
    clock.now += 10
    bar.end(1)
    assert bar.seconds_left() == 10  # of the other job
    bar.close()
    assert stream.getvalue().splitlines()[:2] == ["failed: finetune/m/sst2"] * 2
    assert stream.getvalue().splitlines()[-1] == "1 of 2 jobs in 00:30"


def test_a_terminal_shows_a_bar_with_the_running_jobs_and_no_line_for_each(clock, terminal):
    stream, read = terminal
    bar = JobBar({"finetune": 2}, stream, clock)
    bar.begin(1, "finetune", "finetune/m/{a}")
    clock.now = 60
    bar.end(1)
    bar.begin(2, "finetune", "finetune/m/b")
    bar.say("a warning")
    bar.close()
    text = read()
    states = [state.strip() for state in text.split("\r") if state.strip()]
    assert states[0].startswith("0/2 jobs |")
    assert states[0].endswith("00:00 so far: finetune/m/{a}")
    assert any(
        state.startswith("1/2 jobs |") and state.endswith("01:00 so far, about 01:00 left: finetune/m/b") for state in states
    )
    assert "a warning" in states
    assert states[-1] == "1 of 2 jobs in 01:00"
    assert "[1/2]" not in text
