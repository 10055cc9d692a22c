"""The time left that a progress display names is what the measured rate gives."""

import pytest

from edgevit.commands import terminal
from edgevit.commands.pace import Pace


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_constant_rate_gives_the_truth_and_what_came_before_the_first_report_does_not_count(clock):
    pace = Pace(clock)
    assert pace.left_s(8, 1000) is None
    for done in range(16, 1001, 8):
        clock.now += 0.5
        left = pace.left_s(done, 1000)
        assert left is None if done < 8 * 5 else left == pytest.approx((1000 - done) * 0.5 / 8)
    assert left == 0


def test_after_a_change_of_the_rate_the_last_minute_counts(clock):
    pace = Pace(clock)
    for done in range(1000):
        clock.now += 0.1
        pace.left_s(done, 2000)
    for done in range(1000, 1200):
        clock.now += 0.4
        left = pace.left_s(done, 2000)
    assert left == pytest.approx(801 * 0.4)
    assert len(pace.marks) < 70


def test_a_stage_that_stands_still_or_starts_over_names_no_time(clock):
    pace = Pace(clock)
    for done, known in ((0, False), (0, False), (50, True), (0, False), (10, True)):
        clock.now += 3
        assert (pace.left_s(done, 100) is not None) == known
    assert pace.left_s(10, 100) == pytest.approx(27)  # 10 in 3 s, of the second run
    quick = Pace(clock)
    for done in (1, 100, 1):  # within a second, then long after
        quick.left_s(done, 100)
    clock.now += 1000
    quick.left_s(100, 100)
    quick.left_s(1, 100)
    clock.now += 3
    assert quick.left_s(10, 100) == pytest.approx(30)


def test_a_log_names_each_stage_once_and_what_is_left_every_thirty_seconds(clock, capsys):
    show = terminal._plain(clock)
    show("load", 0, 0)
    for done in range(1, 101):
        clock.now += 1
        show("evaluate a", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "edgevit: load",
        "edgevit: evaluate a (100)",
        "edgevit: evaluate a: 31 of 100, 69 s left",
        "edgevit: evaluate a: 61 of 100, 39 s left",
        "edgevit: evaluate a: 91 of 100, 9 s left",
    ]


def test_a_terminal_shows_what_is_left_beside_the_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(Pace, "left_s", lambda self, done, total: 2.0 * (total - done))
    with terminal.progress() as show:
        show("evaluate a", 3, 10)
    assert "14 s left" in capsys.readouterr().err
