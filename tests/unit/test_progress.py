"""Fractions and operations over all tasks of a job, in simulated time."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.api import Operations
from vmwrapper.boinc.init_data import HostInfo, InitData
from vmwrapper.checkpoint import Checkpoint, Reached, Record
from vmwrapper.clock import RunningClock
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.job.model import CpuTimeBasis
from vmwrapper.progress import Progress, credit_message, estimated_fraction, expected_s

from . import simulated_time


def during(
    story: Callable[[Progress, RunningClock], Coroutine[None, None, None]],
    weights: Sequence[float] = (1,),
    record: Record | None = None,
) -> None:
    """Tell a story in simulated time about a job that should take 1,000 s."""

    async def told() -> None:
        clock = RunningClock()
        await story(Progress(weights, record or Record(job="j"), clock, expected_s=1000), clock)

    simulated_time.run(told())


def test_nothing_is_done_at_first() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        status = progress.status()
        assert (status.fraction_done, status.cpu_time_s, status.activity) == (0, 0, "starting")
        assert status.operations is None
        assert (status.working_set_bytes or 0) > 1e6

    during(story)


def test_weights_are_shares() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.end_task()
        assert progress.status().fraction_done == 0.25
        progress.begin_task(estimated=True)
        progress.fraction_of_task(0.5)
        assert progress.status().fraction_done == 0.25 + 0.75 / 2
        progress.end_task()
        assert progress.status().fraction_done == 1

    during(story, [1, 3])


def test_an_earlier_episode_counts() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        await asyncio.sleep(5)
        status = progress.status()
        assert status.fraction_done == 0.5
        assert (status.cpu_time_s, status.checkpoint_cpu_time_s, progress.elapsed_s) == (7, 7, 16)
        assert status.operations == Operations(floating_point=2e9, integer=0)

    during(story, [1, 1], Record(job="j", tasks_done=1, cpu_time_s=7, elapsed_s=11, floating_point_operations=2e9))


def test_the_checkpoint_is_told_when_it_is_on_the_disk() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.cpu_time.begin_task(lambda: 3.0, basis=CpuTimeBasis.HOST, cpus=4)
        await asyncio.sleep(10)
        progress.cpu_time.end_task()
        progress.end_task()
        record = progress.record()
        assert (record.job, record.tasks_done, record.elapsed_s) == ("j", 1, 10)
        assert progress.status().checkpoint_cpu_time_s == 0
        progress.checkpointed(record)
        assert progress.status().checkpoint_cpu_time_s == record.cpu_time_s >= 3

    during(story, [1, 1])


def test_a_program_that_tells_nothing_comes_near_its_end_but_never_there() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.begin_task(estimated=True)
        await asyncio.sleep(500)
        assert progress.status().fraction_done == pytest.approx(0.5)
        clock.stop()
        await asyncio.sleep(5000)
        assert progress.status().fraction_done == pytest.approx(0.5)
        clock.go()
        await asyncio.sleep(5e5)
        assert 0.99 < progress.status().fraction_done < 1

    during(story)


def test_what_the_program_says_counts_and_never_falls() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.begin_task(estimated=True)
        await asyncio.sleep(500)
        progress.status()
        progress.fraction_of_task(0.2)
        assert progress.status().fraction_done == pytest.approx(0.5)  # as it was estimated
        progress.fraction_of_task(0.75)
        progress.fraction_of_task(0.7)
        assert progress.status().fraction_done == 0.75

    during(story)


def test_a_program_that_will_tell_is_not_estimated() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.begin_task(estimated=False)
        await asyncio.sleep(3000)
        assert progress.status().fraction_done == 0
        progress.fraction_of_task(0.01)
        assert progress.status().fraction_done == 0.01
        progress.fraction_of_task(1)
        assert progress.status().fraction_done == 0.999  # until its outputs are there

    during(story)


def test_every_checkpoint_is_seen() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.end_task()
        assert progress.record().cpu_time_s > 7

    during(story, [1, 1], Record(job="j", cpu_time_s=7))


def test_operations_add_up_and_never_fall() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.computed(Operations(floating_point=3, integer=10))
        progress.computed(Operations(floating_point=2, integer=11))
        progress.end_task()
        progress.computed(Operations(floating_point=1, integer=1))
        assert progress.status().operations == Operations(floating_point=4, integer=12)

    during(story, [1, 1])


REACHED = Reached(
    cpu_time_s=40.0,
    elapsed_s=50.0,
    fraction_of_task=0.5,
    program_ran_s=30.0,
    floating_point_operations=3e9,
    integer_operations=4e6,
    guest_cpu_time_s=20.0,
)
SAFE = Record(
    job="j",
    tasks_done=1,
    tasks_in_place=1,
    cpu_time_s=7.0,
    elapsed_s=11.0,
    floating_point_operations=2e9,
    failed_tries=3,
    failed_as="MachineExited",
    checkpoints=(
        Checkpoint(reached=REACHED, snapshot=Snapshot(2, "newest"), backend="memory"),
        Checkpoint(
            reached=replace(REACHED, cpu_time_s=25.0, elapsed_s=35.0), snapshot=Snapshot(1, "older"), backend="memory"
        ),
    ),
)


def test_it_goes_on_from_the_newest_checkpoint() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        assert progress.checkpoints == SAFE.checkpoints
        status = progress.status()
        assert (status.fraction_done, status.cpu_time_s, status.checkpoint_cpu_time_s) == (0.75, 40, 40)
        assert status.operations == Operations(floating_point=5e9, integer=4e6)
        await asyncio.sleep(9)  # the machine goes back
        progress.go_on(REACHED)
        assert progress.reached() == replace(REACHED, cpu_time_s=pytest.approx(40, abs=0.01))
        await asyncio.sleep(10)
        assert (progress.elapsed_s, progress.program_ran_s) == (60, 40)

    during(story, [1, 1], SAFE)


def test_an_estimate_goes_on_from_a_checkpoint() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.go_on(replace(REACHED, fraction_of_task=None, program_ran_s=200.0))
        assert progress.status().fraction_done == pytest.approx(0.2)
        await asyncio.sleep(100)
        assert progress.status().fraction_done == pytest.approx(0.3)
        assert progress.reached().fraction_of_task is None

    during(story)


def test_from_an_older_checkpoint_nothing_falls() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        before = progress.status()
        progress.go_on(replace(REACHED, fraction_of_task=0.25, cpu_time_s=25.0, elapsed_s=35.0, program_ran_s=15.0))
        status = progress.status()
        assert (status.fraction_done, status.cpu_time_s) == (before.fraction_done, before.cpu_time_s)
        assert (progress.elapsed_s, progress.program_ran_s) == (35, 15)

    during(story, [1, 1], SAFE)


def test_a_task_that_begins_anew_goes_on_behind_the_last_one_that_is_done() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.status()
        await asyncio.sleep(5)
        progress.begin_anew()
        assert list(progress.checkpoints) == []
        assert progress.elapsed_s == 11
        assert progress.status().operations == Operations(floating_point=2e9, integer=0)
        assert progress.status().fraction_done == 0.75  # as it was told
        progress.begin_task(estimated=False)
        await asyncio.sleep(5)
        assert (progress.elapsed_s, progress.program_ran_s) == (16, 5)
        progress.end_task()
        assert progress.record().checkpoints == ()
        assert progress.record().elapsed_s == 16

    during(story, [1, 1], SAFE)


def test_a_checkpoint_is_told_when_it_is_on_the_disk() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        checkpoint = Checkpoint(reached=replace(REACHED, cpu_time_s=44.0), snapshot=Snapshot(3, ""), backend="memory")
        record = progress.record_of([checkpoint, SAFE.checkpoints[0]])
        assert record == replace(
            SAFE, checkpoints=(checkpoint, SAFE.checkpoints[0]), failed_tries=0, failed_as=""
        )  # since it got further
        assert progress.status().checkpoint_cpu_time_s == 40
        progress.checkpointed(record)
        assert progress.status().checkpoint_cpu_time_s == 44
        assert list(progress.checkpoints) == [checkpoint, SAFE.checkpoints[0]]
        assert progress.reached().cpu_time_s > 44  # or the client sees no new one

    during(story, [1, 1], SAFE)


def test_the_end_of_a_task_forgets_its_checkpoints() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        progress.cpu_time.end_task()
        progress.end_task()
        record = progress.record()
        assert (record.tasks_done, record.checkpoints, record.elapsed_s) == (2, (), 50)
        assert record.cpu_time_s > 40
        assert record.operations == Operations(floating_point=5e9, integer=4e6)

    during(story, [1, 1], SAFE)


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(1e-3, 1e9))
def test_an_estimate_grows_with_time_and_stays_below_1(a: float, b: float, expected: float) -> None:
    earlier, later = sorted([a, b])
    assert 0 <= estimated_fraction(earlier, expected) <= estimated_fraction(later, expected)
    assert estimated_fraction(later, expected) < 1


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50))
def test_the_fraction_never_falls_and_ends_at_1(weights: list[float]) -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        fractions = [progress.status().fraction_done]
        for _ in weights:
            progress.begin_task(estimated=True)
            await asyncio.sleep(10)
            fractions.append(progress.status().fraction_done)
            progress.end_task()
            fractions.append(progress.status().fraction_done)
        assert fractions == sorted(fractions)
        assert fractions[0] == 0
        assert fractions[-1] == pytest.approx(1)
        assert fractions[-1] <= 1

    during(story, weights)


def test_how_long_a_job_should_take() -> None:
    job = {"project_dir": "/p", "result_name": "r"}
    fast = HostInfo(p_fpops=1e9)
    assert expected_s(InitData(**job, rsc_fpops_est=4e12, host_info=fast, ncpus=2)) == 2000  # type: ignore[arg-type]
    assert expected_s(InitData(**job, rsc_fpops_est=4e12)) is None  # type: ignore[arg-type]
    assert expected_s(InitData(**job, host_info=fast)) is None  # type: ignore[arg-type]


def test_the_message_to_the_server() -> None:
    async def story(progress: Progress, clock: RunningClock) -> None:
        assert credit_message(progress.status(), 9.5) == "<cpu_time>7.000000</cpu_time>\n<runtime>9.500000</runtime>\n"
        progress.computed(Operations(floating_point=3, integer=10))
        assert "<fpops>3.000000</fpops>\n<intops>10.000000</intops>\n" in credit_message(progress.status(), 9.5)

    during(story, record=Record(job="j", cpu_time_s=7))
