"""CPU time from samples of 20 s, and what it is taken for in between."""

import random

import pytest

from vmwrapper.hypervisor.vmware.vsphere.usage import CpuTime, memory_bytes, rate


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_only_while_it_runs(clock: Clock) -> None:
    used = CpuTime(2, clock=clock)
    clock.now_s = 10
    assert used.total_s() == 0
    used.runs()
    clock.now_s = 13
    assert used.total_s() == 6
    used.stands()
    clock.now_s = 100
    assert used.total_s() == 6
    used.runs()
    used.runs()
    clock.now_s = 101
    assert used.total_s() == 8


def test_samples_count_and_the_rest_is_guessed(clock: Clock) -> None:
    used = CpuTime(1, clock=clock)
    used.runs()
    used.at_rate(0.5)
    clock.now_s = 30
    used.sampled([10_000])
    assert used.total_s() == 10 + 0.5 * 10
    clock.now_s = 34
    assert used.total_s() == 10 + 0.5 * 14


def test_what_a_server_can_not_mean_is_bounded(clock: Clock) -> None:
    used = CpuTime(2, clock=clock)
    used.runs()
    clock.now_s = 20
    used.sampled([-1])
    assert used.total_s() == 0
    used.sampled([10**9])
    assert used.total_s() == 40
    used.at_rate(1000)
    clock.now_s = 21
    assert used.total_s() <= 42


def test_it_never_falls(clock: Clock) -> None:
    chance = random.Random(1)
    used = CpuTime(2, clock=clock)
    seen = []
    for _ in range(2000):
        clock.now_s += chance.random() * 10
        chance.choice(
            [
                used.runs,
                used.stands,
                used.ends,
                lambda: used.sampled([chance.randint(-1, 50_000)]),
                lambda: used.at_rate(chance.random() * 3),
            ]
        )()
        seen.append(used.total_s())
    assert seen == sorted(seen)
    assert seen[-1] > 100


@pytest.mark.parametrize(
    ("used", "most", "expected"), [(1000, 4000, 0.5), (None, 4000, None), (0, 4000, None), (5, None, None)]
)
def test_the_rate_by_quick_stats(used: int | None, most: int | None, expected: float | None) -> None:
    said = {"summary.quickStats.overallCpuUsage": used, "summary.runtime.maxCpuUsage": most}
    assert rate(said, 2) == expected


def test_memory() -> None:
    assert memory_bytes({"summary.quickStats.hostMemoryUsage": 3}) == 3 << 20
    assert memory_bytes({}) == 0
