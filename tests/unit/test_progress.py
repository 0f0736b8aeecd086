"""Fractions and CPU times over all tasks of a job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.progress import Progress


def test_nothing_is_done_at_first() -> None:
    status = Progress([1, 1]).status()
    assert (status.fraction_done, status.cpu_time_s, status.activity) == (0, 0, "starting")


def test_weights_are_shares() -> None:
    progress = Progress([1, 3])
    progress.task_done()
    assert progress.status().fraction_done == 0.25
    progress.task_done()
    assert progress.status().fraction_done == 1


def test_cpu_times_of_machines_add_up() -> None:
    progress = Progress([1, 1])
    first, second = iter([1.0, 2.0, 5.0]), iter([0.0, 7.0])
    progress.follow(lambda: next(first))
    assert [progress.status().cpu_time_s for _ in range(2)] == [1, 2]
    progress.follow(lambda: next(second))
    assert [progress.status().cpu_time_s for _ in range(2)] == [5, 12]


def test_the_activity_is_passed_on() -> None:
    progress = Progress([1])
    progress.activity = "booting"
    assert progress.status().activity == "booting"


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50))
def test_the_fraction_never_falls_and_ends_at_1(weights: list[float]) -> None:
    progress = Progress(weights)
    fractions = [progress.status().fraction_done]
    for _ in weights:
        progress.task_done()
        fractions.append(progress.status().fraction_done)
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == pytest.approx(1)
    assert fractions[-1] <= 1
