"""Errors and ends of work that goes on side by side."""

import asyncio
import threading
import time

import pytest

from vmwrapper.concurrency import beside, repeated, to_its_end, to_thread_and_soon_back, ungrouped
from vmwrapper.errors import GuestSilent, HostDiskFailed, MachineExited


async def fails(error: Exception, *, after_s: float = 0.0) -> None:
    await asyncio.sleep(after_s)
    raise error


class Guard:
    """Goes on until it is cancelled, and takes a moment to clean up."""

    ended = False

    async def watch(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.ended = True


class TestUngrouped:
    def test_what_is_no_group_comes_out_as_it_is(self) -> None:
        error = KeyError("x")
        with pytest.raises(KeyError) as raised, ungrouped():
            raise error
        assert raised.value is error

    def test_nothing(self) -> None:
        with ungrouped():
            pass

    def test_an_expected_error_comes_before_others(self) -> None:
        expected = GuestSilent("x")
        nested = ExceptionGroup("inner", [OSError("y"), expected])
        with pytest.raises(GuestSilent) as raised, ungrouped():
            raise ExceptionGroup("outer", [KeyError("z"), nested, MachineExited("later")])
        assert raised.value is expected

    def test_otherwise_the_first_one(self) -> None:
        with pytest.raises(KeyError), ungrouped():
            raise ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("z")]), OSError("y")])

    @pytest.mark.parametrize("cause", [None, OSError("the cause")])
    def test_its_cause_stays(self, cause: OSError | None) -> None:
        error = GuestSilent("x")
        error.__cause__ = cause
        with pytest.raises(GuestSilent) as raised, ungrouped():
            raise ExceptionGroup("outer", [error])
        assert raised.value.__cause__ is cause
        assert raised.value.__suppress_context__


class TestBeside:
    async def test_guards_end_with_the_block(self) -> None:
        guards = [Guard(), Guard()]
        async with beside(*(guard.watch() for guard in guards)):
            await asyncio.sleep(0)
        assert all(guard.ended for guard in guards)

    async def test_a_guard_ends_the_block_with_its_error(self) -> None:
        other, block = Guard(), Guard()
        with pytest.raises(MachineExited):
            async with beside(fails(MachineExited("x")), other.watch()):
                await block.watch()
        assert other.ended
        assert block.ended

    async def test_a_guard_that_returns_ends_nothing(self) -> None:
        async with beside(asyncio.sleep(0)):
            await asyncio.sleep(0.01)

    async def test_an_error_of_the_block_comes_out_and_ends_the_guards(self) -> None:
        guard, error = Guard(), KeyError("x")
        with pytest.raises(KeyError) as raised:
            async with beside(guard.watch()):
                await fails(error)
        assert raised.value is error
        assert guard.ended

    async def test_a_timeout_around_the_block_stays_one(self) -> None:
        guard = Guard()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), beside(guard.watch()):
                await asyncio.Event().wait()
        assert guard.ended

    async def test_a_cancellation_stays_one(self) -> None:
        guard = Guard()

        async def story() -> None:
            async with beside(guard.watch()):
                await asyncio.Event().wait()

        task = asyncio.create_task(story())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert guard.ended

    async def test_the_expected_error_of_two_at_once(self) -> None:
        with pytest.raises(GuestSilent):
            async with beside(fails(KeyError("x")), fails(GuestSilent("y"))):
                await asyncio.Event().wait()


class TestToItsEnd:
    async def test_what_it_returns_and_raises(self) -> None:
        assert await to_its_end(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(GuestSilent):
            await to_its_end(fails(GuestSilent("x")))

    @pytest.mark.parametrize("times", [1, 2, 3])
    @pytest.mark.parametrize("does_fail", [False, True])
    async def test_any_number_of_cancellations_waits(self, times: int, *, does_fail: bool) -> None:
        ended = False

        async def work() -> None:
            nonlocal ended
            await asyncio.sleep(0.1)
            ended = True
            if does_fail:
                raise KeyError

        task = asyncio.create_task(to_its_end(work()))
        for _ in range(times):
            await asyncio.sleep(0.01)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended

    async def test_long_work_in_a_thread_is_told_of_a_cancellation(self) -> None:
        ends = []

        def work(word: str, enough: threading.Event) -> None:
            ends.append((word, enough.wait(10)))

        task = asyncio.create_task(to_thread_and_soon_back(work, "word"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends == [("word", True)]

    async def test_work_that_takes_too_long_is_cancelled_too(self) -> None:
        guard = Guard()
        task = asyncio.create_task(to_its_end(guard.watch(), limit_s=0.05))
        await asyncio.sleep(0.1)
        assert not guard.ended
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert guard.ended


class TestRepeated:
    async def test_it_goes_on_while_the_event_loop_is_busy_and_ends_with_the_block(self) -> None:
        threads = []

        def step() -> float:
            threads.append(threading.get_ident())
            return 0.01

        async with repeated(step):
            await asyncio.sleep(0.05)
            threads.clear()
            time.sleep(0.2)
        assert len(threads) > 5
        assert set(threads) & {threading.get_ident()} == set()
        count = len(threads)
        await asyncio.sleep(0.05)
        assert len(threads) == count

    async def test_its_error_ends_the_block(self) -> None:
        def fail() -> float:
            raise HostDiskFailed("full")

        with pytest.raises(HostDiskFailed, match="full"):
            async with repeated(fail):
                await asyncio.Event().wait()

    async def test_an_error_of_the_block_comes_out(self) -> None:
        with pytest.raises(KeyError):
            async with repeated(lambda: 0.01):
                raise KeyError
