"""Progress at every width, against clocks that the tests move."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipelines import console as module
from pipelines.console import Bar, format_duration, progress_bar, shorten

WIDTHS = (40, 80, 200)
METRICS = "dsm_loss 0.510  grad_norm 0.703  step_seconds 0.0206  data_wait_fraction 0.01"


class Clock:
    """Seconds that pass when the test moves them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def render(renderable: Any, width: int) -> list[str]:
    """What a terminal of this width shows, line by line."""
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, soft_wrap=True)
    with terminal.capture() as capture:
        terminal.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


# --- time left


def test_time_left_counts_from_the_first_finished_item(clock: Clock):
    bar = Bar("evaluate", total=11, clock=clock)
    clock.now += 60  # Ray starts, models are loaded
    bar.update(1)
    assert bar.format_time_left() == ""  # one item: no pace yet
    clock.now += 4
    bar.update(3)  # two items in 4 s: 2 s each
    assert bar.format_time_left() == "0:16"


def test_time_left_counts_down_between_items(clock: Clock):
    bar = Bar("evaluate", total=11, clock=clock)
    bar.update(1)
    clock.now += 20
    bar.update(2)
    assert bar.format_time_left() == "3:00"
    clock.now += 5
    assert bar.format_time_left() == "2:55"
    clock.now += 1e4
    assert bar.format_time_left() == "0:00"


def test_items_of_an_earlier_run_do_not_speed_up_the_estimate(clock: Clock):
    bar = Bar("ingest", total=1010, done=1000, clock=clock)
    clock.now += 60
    bar.update(1001)
    clock.now += 10
    bar.update(1002)
    assert bar.format_time_left() == "1:20"  # 8 more at 10 s


def test_a_resumed_run_estimates_from_where_it_resumed_without_its_start(clock: Clock):
    bar = Bar("train-teacher", total=9000, clock=clock)
    clock.now += 90  # Ray, workers, data
    bar.begin(4665)
    clock.now += 20
    bar.update(4765)  # 0.2 s a step, warm-up included: all there is to estimate from
    assert bar.format_time_left() == format_duration(0.2 * (9000 - 4765))
    clock.now += 10
    bar.update(4865)  # 0.1 s a step since
    assert bar.format_time_left() == format_duration(0.1 * (9000 - 4865))


def test_a_restarted_group_estimates_anew(clock: Clock):
    bar = Bar("train-teacher", total=300, clock=clock)
    bar.begin(0)
    for step in (100, 200):
        clock.now += 10
        bar.update(step)
    clock.now += 500  # a node is lost, and its group starts again from the checkpoint
    bar.begin(100)
    assert (bar.done, bar.format_time_left()) == (100, "")
    clock.now += 20
    bar.update(200)
    assert bar.format_time_left() == "0:20"


def test_nothing_is_left_at_the_end(clock: Clock):
    bar = Bar("evaluate", total=2, clock=clock)
    bar.update(1)
    clock.now += 5
    bar.update(2)
    assert bar.format_line() == "evaluate: 2/2"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_durations_over_an_hour_have_hours(seconds: float, text: str):
    assert format_duration(seconds) == text


# --- one line at every width


def make_running_bar(clock: Clock, note: str) -> Bar:
    bar = Bar("distill-layers", total=12000, clock=clock)
    bar.begin(0)
    clock.now += 10
    bar.update(3000, note)
    return bar


@pytest.mark.parametrize("width", WIDTHS)
def test_count_and_time_left_stay_and_the_note_is_shortened(clock: Clock, width: int):
    bar = make_running_bar(clock, METRICS)
    line = bar.format_line(width)
    assert line.startswith("distill-layers: 3000/12000, 0:30 left")
    assert cell_len(line) <= width
    assert line.endswith(METRICS) == (width == 200)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("note", ["", METRICS, "a/very/long/" * 30 + "name.flac", "音楽" * 60])
def test_a_terminal_shows_one_line_with_count_and_time_left(clock: Clock, width: int, note: str):
    lines = render(make_running_bar(clock, note), width)
    assert len(lines) == 1
    assert cell_len(lines[0]) <= width
    assert "3000/12000  0:10, 0:30 left" in lines[0]
    assert ("━" in lines[0]) == (width > 40)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_label_gives_way_to_the_count(clock: Clock, width: int):
    bar = Bar("pull presto-generator@champion of a very long name", total=2 * 10**9, clock=clock)
    bar.begin(0)
    clock.now += 1
    bar.update(10**9, "model.safetensors")
    (line,) = render(bar, width)
    assert "1000000000/2000000000  0:01, 0:01 left"[: width - 2] in line
    assert cell_len(line) <= width


@pytest.mark.parametrize("width", [0, 1, 5, 17, 18, 34, 100])
def test_a_cut_text_fits_and_ends_in_an_ellipsis(width: int):
    short = shorten("loss 0.51  grad 0.7  x 1", width)
    assert cell_len(short) <= width
    assert short == "loss 0.51  grad 0.7  x 1" or not width or short.endswith("…")


def test_a_cut_falls_between_metrics():
    assert shorten("loss 0.51  grad_norm 0.7", 20) == "loss 0.51…"


# --- while nothing moves


def test_what_is_waited_for_is_shown_until_the_first_item(clock: Clock):
    bar = Bar("evaluate", total=6, waits_for="starting Ray", clock=clock)
    clock.now += 12
    assert bar.format_line() == "evaluate: starting Ray … 0:12"
    assert "evaluate: starting Ray … 0:12" in render(bar, 80)[0]
    bar.update(1)
    assert bar.format_line() == "evaluate: 1/6"


@pytest.mark.parametrize("width", WIDTHS)
def test_waiting_fits_into_one_line(clock: Clock, width: int):
    bar = Bar("train-teacher", total=6, done=2, waits_for="starting Ray", clock=clock)
    (line,) = render(bar, width)
    assert cell_len(line) <= width
    assert "train-teacher: starting Ray …" in line


def test_a_log_names_what_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(module, "FIRST_LINE_S", 0.001)
    with progress_bar("evaluate", 1, waits_for="starting Ray") as bar:
        deadline = time.monotonic() + 30
        while bar.last_line_time == bar.start_time and time.monotonic() < deadline:  # until the line is printed
            time.sleep(0.001)
        bar.update(1)
    assert capsys.readouterr().err.splitlines() == ["evaluate: starting Ray … 0:00", "evaluate: 1/1"]


def test_a_log_has_a_line_every_ten_seconds_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]):
    bar = Bar("train-teacher", total=100, clock=clock)
    bar.begin(0)
    for step in range(1, 101):
        clock.now += 1
        bar.update(step, METRICS)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].split()[1] for line in lines] == [f"{n}/100" for n in range(10, 101, 10)]
    assert lines[0].startswith("train-teacher: 10/100, 1:30 left  dsm_loss 0.510  grad_norm 0.703")
    assert all(len(line) <= 80 for line in lines)
