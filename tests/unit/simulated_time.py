"""An event loop whose time passes at once."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

END_OF_TIME_S = 1e6


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: lets the clock jump by as long as it should have waited."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits for something that will never come")
        self.now_s += timeout
        if self.now_s > END_OF_TIME_S:
            raise RuntimeError("something waits for ever")
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Without sockets or processes, which take real time; what is meant for a thread is done at once."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return round(self._clock.now_s, 6)  # or a second is never quite over

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  (it comes out where it is awaited)
            done.set_exception(error)
        return done


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end in no time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)
