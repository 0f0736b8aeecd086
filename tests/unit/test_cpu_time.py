"""What counts as CPU time, in simulated time."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.cpu_time import CpuTime
from vmwrapper.job.model import CpuTimeBasis

from . import simulated_time


class Host:
    """What processes have used of it."""

    machine_s = 0.0
    own_s = 0.0


def during(
    story: Callable[[CpuTime, RunningClock, Host], Coroutine[None, None, None]], *, before_s: float = 0.0
) -> None:
    async def told() -> None:
        clock, host = RunningClock(), Host()
        await story(CpuTime(before_s, clock, own_s=lambda: host.own_s), clock, host)

    simulated_time.run(told())


def test_the_machine_and_the_wrapper_count() -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        host.own_s = 0.5
        await asyncio.sleep(100)
        cpu_time.begin_task(lambda: host.machine_s, basis=CpuTimeBasis.HOST, cpus=1)
        host.machine_s, host.own_s = 40.0, 0.75
        assert cpu_time.total_s() == 40.75
        cpu_time.end_task()
        assert cpu_time.total_s() == 40.75

    during(story)


def test_machines_add_up() -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        await asyncio.sleep(100)
        cpu_time.begin_task(lambda: 10.0, basis=CpuTimeBasis.HOST, cpus=1)
        host.own_s = 1.0
        cpu_time.end_task()
        cpu_time.begin_task(lambda: 20.0, basis=CpuTimeBasis.HOST, cpus=1)
        host.own_s = 2.0
        assert cpu_time.total_s() == 32

    during(story)


def test_it_never_grows_faster_than_all_cpus_can() -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        cpu_time.begin_task(lambda: host.machine_s, basis=CpuTimeBasis.HOST, cpus=2)
        host.machine_s = 1e6
        for second in range(1, 10):
            await asyncio.sleep(1)
            assert cpu_time.total_s() == 50 + 2 * second
        clock.stop()
        await asyncio.sleep(1000)
        assert cpu_time.total_s() == 68

    during(story, before_s=50)


def test_it_never_falls() -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        cpu_time.begin_task(lambda: host.machine_s, basis=CpuTimeBasis.HOST, cpus=1)
        await asyncio.sleep(100)
        host.machine_s = 10
        assert cpu_time.total_s() == 10
        host.machine_s = 5
        assert cpu_time.total_s() == 10

    during(story)


def test_the_guests_own_count() -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        cpu_time.begin_task(lambda: 77.0, basis=CpuTimeBasis.GUEST, cpus=1)
        await asyncio.sleep(100)
        assert cpu_time.total_s() == 0
        cpu_time.guest_says(30)
        cpu_time.guest_says(20)
        assert cpu_time.total_s() == 30
        cpu_time.guest_says(1e9)
        assert cpu_time.total_s() == 100
        cpu_time.end_task()
        cpu_time.begin_task(lambda: 77.0, basis=CpuTimeBasis.GUEST, cpus=1)
        await asyncio.sleep(10)
        assert cpu_time.total_s() == 100

    during(story)


def test_elapsed_time_stands_still_with_the_guest() -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        await asyncio.sleep(5)
        cpu_time.begin_task(lambda: 77.0, basis=CpuTimeBasis.ELAPSED, cpus=1)
        await asyncio.sleep(10)
        clock.stop()
        await asyncio.sleep(1000)
        assert cpu_time.total_s() == pytest.approx(10)

    during(story)


@pytest.mark.parametrize("basis", CpuTimeBasis)
def test_a_checkpoint_of_an_earlier_episode_counts_on(basis: CpuTimeBasis) -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        cpu_time.go_on(50, guest_s=20)
        assert cpu_time.total_s() == 50
        await asyncio.sleep(10)  # the machine goes back to the checkpoint
        cpu_time.begin_task(lambda: host.machine_s, basis=basis, cpus=2)
        cpu_time.go_on(50, guest_s=20)
        assert cpu_time.guest_s == 20
        await asyncio.sleep(10)
        host.machine_s, host.own_s = 6.0, 1.0
        cpu_time.guest_says(27)
        assert cpu_time.total_s() == 50 + {"host": 7, "guest": 7, "elapsed": 10}[basis]
        cpu_time.guest_says(1e9)
        host.machine_s = 1e9
        assert cpu_time.total_s() <= 50 + 10 + 2 * 10

    during(story, before_s=5)


def test_nothing_falls_where_only_an_older_checkpoint_can_be_used_or_none() -> None:
    async def story(cpu_time: CpuTime, clock: RunningClock, host: Host) -> None:
        cpu_time.go_on(50, guest_s=20)
        cpu_time.begin_task(lambda: host.machine_s, basis=CpuTimeBasis.HOST, cpus=1)
        for before_s in (30, 5):
            cpu_time.go_on(before_s, guest_s=0)
            await asyncio.sleep(100)
            assert cpu_time.total_s() == 50
        host.machine_s = 46
        assert cpu_time.total_s() == 51

    during(story, before_s=5)
