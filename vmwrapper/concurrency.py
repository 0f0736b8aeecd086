"""Structured concurrency, with errors that don't tell of it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from vmwrapper.errors import VmwrapperError

T = TypeVar("T")


@contextmanager
def ungrouped() -> Iterator[None]:
    """Let the first expected error of a task group out as itself, or else the first error."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group.subgroup(VmwrapperError) or group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


@asynccontextmanager
async def beside(*guards: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run these beside the block, and cancel them at its end. What one of them raises ends the block and comes out."""
    with ungrouped():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guard) for guard in guards]
            yield
            for task in tasks:
                task.cancel()


async def to_its_end(
    work: Coroutine[Any, Any, T], *, limit_s: float | None = None, hurry: Callable[[], object] = lambda: None
) -> T:
    """Like `await work`, but a cancellation, or several, waits for the work's end, which must be near.

    With a limit it waits for so long, and then cancels the work. `hurry` is called when it begins to wait.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            if not (await asyncio.wait([task], timeout=limit_s if cancelled else None))[0]:
                task.cancel()
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not log it
    raise cancelled


async def to_thread_and_back(work: Callable[..., T], *arguments: object) -> T:
    """Like asyncio.to_thread, but a cancellation waits for the work's end, which must be near: then nobody is at it."""
    return await to_its_end(asyncio.to_thread(work, *arguments))


async def to_thread_and_soon_back(work: Callable[..., T], *arguments: object) -> T:
    """The same for work of any length, which is given one more argument: an event, after which it ends soon."""
    enough = threading.Event()
    return await to_its_end(asyncio.to_thread(work, *arguments, enough), hurry=enough.set)


@asynccontextmanager
async def repeated(step: Callable[[], float]) -> AsyncIterator[None]:
    """Have `step` called in a thread for the length of the block; it returns after how many seconds it is called again.

    What it raises ends the block.
    That is so whatever the event loop is busy with, and takes less than half of the CPU time that it takes to wake that
    up. The end of the block waits for the next time.
    """
    enough = threading.Event()
    async with beside(to_thread_and_back(_repeat, step, enough)):
        try:
            yield
        finally:
            enough.set()


def _repeat(step: Callable[[], float], enough: threading.Event) -> None:
    while not enough.is_set():
        time.sleep(step())  # cheaper than any wait that can be cut short
