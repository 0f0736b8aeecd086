"""Time in which the job was allowed to run."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass


async def next_second() -> None:
    """Wait for the next whole second of the event loop's clock: all who do something each second wake up together."""
    await asyncio.sleep(1.0 - asyncio.get_running_loop().time() % 1.0)


@dataclass(slots=True, eq=False)
class _Limit:
    timeout: asyncio.Timeout
    ends_at_s: float  # on the running clock


@dataclass(frozen=True, slots=True, eq=False)
class _Follower:
    stop: Callable[[], None]
    go: Callable[[], None]


class RunningClock:
    """Counts seconds of the event loop's clock, but not those between `stop` and `go`.

    Time limits of everything that happens in a guest are counted on it: a job that its volunteer suspends over the
    weekend has not timed out on Monday. Starts going. Must be made inside a running event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._counted_s = 0.0
        self._since: float | None = self._loop.time()
        self._limits: set[_Limit] = set()
        self._followers: set[_Follower] = set()

    @property
    def elapsed_s(self) -> float:
        running = 0.0 if self._since is None else self._loop.time() - self._since
        return self._counted_s + running

    def stop(self) -> None:
        """Stand still. A second call does nothing."""
        if self._since is not None:
            self._counted_s = self.elapsed_s
            self._since = None
            self._reschedule()
            for follower in self._followers:
                follower.stop()

    def go(self) -> None:
        """Count on. A second call does nothing."""
        if self._since is None:
            self._since = self._loop.time()
            self._reschedule()
            for follower in self._followers:
                follower.go()

    @contextmanager
    def followed_by(self, *, stop: Callable[[], None], go: Callable[[], None]) -> Iterator[None]:
        """Have these called with `stop` and `go`, for the length of the block, which begins stopped on a stopped clock.

        A block that ends on a stopped clock ends without `go`.
        """
        follower = _Follower(stop, go)
        self._followers.add(follower)
        if self._since is None:
            stop()
        try:
            yield
        finally:
            self._followers.discard(follower)

    @asynccontextmanager
    async def timeout(self, limit_s: float) -> AsyncIterator[None]:
        """Like asyncio.timeout, on this clock: raises TimeoutError in the body after `limit_s` running seconds."""
        async with asyncio.timeout(None) as timeout:
            limit = _Limit(timeout, self.elapsed_s + limit_s)
            self._limits.add(limit)
            self._schedule(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def sleep(self, seconds: float) -> None:
        """Like asyncio.sleep, on this clock."""
        with suppress(TimeoutError):
            async with self.timeout(seconds):
                await asyncio.get_running_loop().create_future()

    def _reschedule(self) -> None:
        for limit in self._limits:
            if not limit.timeout.expired():
                self._schedule(limit)

    def _schedule(self, limit: _Limit) -> None:
        going = self._since is not None
        limit.timeout.reschedule(self._loop.time() + limit.ends_at_s - self.elapsed_s if going else None)
