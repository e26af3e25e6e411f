"""Progress with a clock of its own: phases are named and left out of the rate, and a bar fits its terminal."""

import io

import pytest
from rich.console import Console

from jaxkd._core.progress import Pace, show_progress


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def test_the_remaining_time_does_not_include_compilation(clock):
    pace = Pace(100, now=clock)
    assert pace.text() == "ETA -:--:--"
    with pace.phase("compiling"):
        clock.seconds += 600
        assert pace.text() == "compiling"
    texts = []
    for step in (10, 20, 30):
        clock.seconds += 5
        pace.reach(step)
        texts.append(pace.text())
    with pace.phase("compiling"):  # the first evaluation
        clock.seconds += 300
    clock.seconds += 5
    pace.reach(40)
    assert [*texts, pace.text()] == ["ETA 0:00:45", "ETA 0:00:40", "ETA 0:00:35", "ETA 0:00:30"]
    assert pace.rate == 2.0


def test_a_resumed_run_counts_its_own_steps_only(clock):
    pace = Pace(100, first=80, now=clock)
    clock.seconds += 10
    pace.reach(90)
    assert pace.text() == "ETA 0:00:10"


def test_late_metrics_of_an_earlier_step_do_not_turn_back(clock):
    pace = Pace(100, now=clock)
    clock.seconds += 10
    pace.reach(50)
    pace.reach(25)
    assert (pace.step, pace.rate) == (50, 5.0)


def test_a_phase_that_fails_has_ended(clock):
    pace = Pace(10, now=clock)
    with pytest.raises(RuntimeError), pace.phase("compiling"):
        raise RuntimeError
    assert pace.text() == "ETA -:--:--"


@pytest.mark.parametrize("what", ["step", "attention transfer, seeds 0 to 9:", "[seed=0]:"])
def test_a_bar_fits_80_columns_and_keeps_its_name(what, clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    row = {"step": 68, "epoch": 1.0} | {f"train/{term}[seed={i}]": 0.5 for term in ("loss", "kd") for i in range(10)}
    with show_progress(1632, what=what, console=console, now=clock) as show:
        with show.phase("compiling"):
            clock.seconds += 30
        clock.seconds += 2
        show(68, row)
    last = console.file.getvalue().replace("\r", "\n").replace("\x1b[2K", "").splitlines()[-2:]
    assert any(f"{what}   68/1632 " in line and "ETA 0:00:46" in line for line in last), last
    assert all(len(line.replace("\x1b[?25h", "")) <= 80 for line in last), last


def test_the_metrics_of_a_sweep_are_shown_as_means(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with show_progress(10, console=console, now=clock) as show:
        show(5, {"train/loss[seed=0]": 1.0, "train/loss[seed=1]": 3.0, "train/loss/weight[seed=0]": 1.0})
    assert "train/loss 2.0000" in console.file.getvalue()


def test_lines_come_every_ten_seconds_and_at_the_end(clock):
    console = Console(file=io.StringIO())
    with show_progress(4, what="kd, seed 0:", console=console, now=clock) as show:
        with show.phase("compiling"):
            clock.seconds += 8
        for step in (1, 2, 3, 4):
            clock.seconds += 4
            show(step, {"train/loss": 1.0 / step})
    assert console.file.getvalue().splitlines() == [
        "kd, seed 0: 1/4  train/loss 1.0000  (0.25 steps/s, ETA 0:00:12)",
        "kd, seed 0: 4/4  train/loss 0.2500  (0.25 steps/s, ETA 0:00:00)",
    ]
