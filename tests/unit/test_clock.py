"""The running clock, in simulated time."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.clock import RunningClock

from . import simulated_time

SPANS = st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=1, max_size=12)
"""Whether the clock goes, and for how many seconds."""


def test_a_new_clock_goes() -> None:
    async def story() -> None:
        clock = RunningClock()
        await asyncio.sleep(3)
        assert clock.elapsed_s == 3

    simulated_time.run(story())


def test_it_stands_still_between_stop_and_go_however_often_they_are_said() -> None:
    async def story() -> None:
        clock = RunningClock()
        for seconds in (1, 2):
            clock.go()
            await asyncio.sleep(seconds)
        for seconds in (10, 20):
            clock.stop()
            await asyncio.sleep(seconds)
        assert clock.elapsed_s == 3
        clock.go()
        await asyncio.sleep(4)
        assert clock.elapsed_s == 7

    simulated_time.run(story())


@given(SPANS)
def test_it_counts_the_time_in_which_it_goes(spans: list[tuple[bool, int]]) -> None:
    async def story() -> float:
        clock = RunningClock()
        await live(clock, spans)
        return clock.elapsed_s

    assert simulated_time.run(story()) == sum(seconds for goes, seconds in spans if goes)


@given(SPANS, st.integers(0, 100))
def test_a_limit_is_reached_after_its_running_time(spans: list[tuple[bool, int]], limit_s: int) -> None:
    async def story() -> float:
        clock = RunningClock()
        async with asyncio.TaskGroup() as group:
            group.create_task(live(clock, [*spans, (True, 1000)]))
            with pytest.raises(TimeoutError):
                async with clock.timeout(limit_s):
                    await asyncio.Event().wait()
            return clock.elapsed_s

    assert simulated_time.run(story()) == pytest.approx(limit_s)


@given(SPANS)
def test_a_limit_that_is_not_reached_does_nothing(spans: list[tuple[bool, int]]) -> None:
    async def story() -> None:
        clock = RunningClock()
        async with clock.timeout(sum(seconds for goes, seconds in spans if goes) + 1):
            await live(clock, spans)
        await asyncio.sleep(1000)

    simulated_time.run(story())


@given(SPANS, st.integers(0, 100))
def test_who_sleeps_wakes_up_after_so_much_running_time(spans: list[tuple[bool, int]], seconds: int) -> None:
    async def story() -> float:
        clock = RunningClock()
        async with asyncio.TaskGroup() as group:
            group.create_task(live(clock, [*spans, (True, 1000)]))
            await clock.sleep(seconds)
            return clock.elapsed_s

    assert simulated_time.run(story()) == pytest.approx(seconds)


def test_a_sleep_can_be_cancelled_and_ends_by_no_other_limit_than_its_own() -> None:
    async def story() -> float:
        clock = RunningClock()
        sleeping = asyncio.create_task(clock.sleep(100))
        await asyncio.sleep(3)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        with pytest.raises(TimeoutError):
            async with clock.timeout(4):
                await clock.sleep(100)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await clock.sleep(100)
        return clock.elapsed_s

    assert simulated_time.run(story()) == 12


def test_a_limit_within_a_limit() -> None:
    async def story() -> list[float]:
        clock = RunningClock()
        struck_at_s = []
        with suppress(TimeoutError):
            async with clock.timeout(5):
                with suppress(TimeoutError):
                    async with clock.timeout(2):
                        await asyncio.sleep(100)
                struck_at_s.append(clock.elapsed_s)
                await asyncio.sleep(100)
        struck_at_s.append(clock.elapsed_s)
        return struck_at_s

    assert simulated_time.run(story()) == [2, 5]


def test_a_clock_that_was_stopped_before_the_limit_was_set() -> None:
    async def story() -> float:
        clock = RunningClock()
        await asyncio.sleep(5)
        clock.stop()
        with suppress(TimeoutError):
            async with clock.timeout(1):
                await asyncio.sleep(100)
                clock.go()
                await asyncio.sleep(100)
        return clock.elapsed_s

    assert simulated_time.run(story()) == 6


def test_stop_and_go_are_harmless_once_a_limit_was_reached() -> None:
    async def story() -> None:
        clock = RunningClock()
        async with clock.timeout(1):
            try:
                await asyncio.sleep(100)
            finally:
                clock.stop()
                clock.go()

    with pytest.raises(TimeoutError):
        simulated_time.run(story())


def test_no_limit() -> None:
    async def story() -> None:
        async with RunningClock().timeout(float("inf")):
            await asyncio.sleep(1e5)

    simulated_time.run(story())


def test_others_stop_and_go_with_it() -> None:
    heard: list[str] = []

    async def story() -> None:
        clock = RunningClock()
        with clock.followed_by(stop=lambda: heard.append("stop"), go=lambda: heard.append("go")):
            for _ in range(2):
                clock.stop()
            for _ in range(2):
                clock.go()
        clock.stop()
        with clock.followed_by(stop=lambda: heard.append("stop"), go=lambda: heard.append("go")):
            pass
        clock.go()

    simulated_time.run(story())
    assert heard == ["stop", "go", "stop"]


def test_an_error_in_the_body_comes_out() -> None:
    async def story() -> None:
        clock = RunningClock()
        with pytest.raises(KeyError):
            async with clock.timeout(1):
                raise KeyError
        await asyncio.sleep(2)

    simulated_time.run(story())


async def live(clock: RunningClock, spans: list[tuple[bool, int]]) -> None:
    for goes, seconds in spans:
        if goes:
            clock.go()
        else:
            clock.stop()
        await asyncio.sleep(seconds)
    clock.go()
