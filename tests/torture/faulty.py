"""vmwrapper with a fault: `python -m tests.torture.faulty POINT KIND NTH MARK run job.xml`.

At the NTH call that concerns the POINT of points.py the KIND of harm is done, unless the file MARK is there, which is
made then: so it is done once, whoever starts us again. POINT may be `none`. Beside that it takes checkpoints as often
as the job file says, whatever they cost, and tells on lines with `torture:` what only an insider sees.
"""

import asyncio
import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from vmwrapper import cli
from vmwrapper.checkpointer import Checkpointer
from vmwrapper.task_run import TaskRun

from .points import FULL_STATE, POINTS, Kind, Point, When

Call = Callable[..., Any]


def say(text: str) -> None:
    """In one write, so that lines of two processes don't mix."""
    os.write(2, f"torture: {text}\n".encode())


class Fault:
    """Harm that is waiting for its call."""

    def __init__(self, point: Point, kind: Kind, nth: int, mark: Path) -> None:
        self._point = point
        self._kind = kind
        self._nth = nth
        self._mark = mark
        self._calls = 0
        self._lock = threading.Lock()  # some calls come from threads

    def arm(self) -> None:
        """Put ourselves around the function."""
        owner, name = self._point.owner_and_name()
        original = self._point.function()
        if self._point.name == FULL_STATE:
            wrapped = self._around_save(original)
        elif inspect.iscoroutinefunction(original):
            wrapped = self._around_coroutine(original)
        else:
            wrapped = self._around(original)
        setattr(owner, name, wrapped)

    def _around(self, original: Call) -> Call:
        @functools.wraps(original)
        def call(*arguments: Any, **named: Any) -> Any:
            is_now = self._is_now(arguments)
            if is_now and self._point.when is When.BEFORE:
                self._harm()
            result = original(*arguments, **named)
            if is_now and self._point.when is When.AFTER:
                self._harm()
            return result

        return call

    def _around_coroutine(self, original: Call) -> Call:
        @functools.wraps(original)
        async def call(*arguments: Any, **named: Any) -> Any:
            is_now = self._is_now(arguments)
            if is_now and self._point.when is When.BEFORE:
                self._harm()
            result = await original(*arguments, **named)
            if is_now and self._point.when is When.AFTER:
                self._harm()
            return result

        return call

    def _around_save(self, original: Call) -> Call:
        @functools.wraps(original)
        async def save(monitor: Any, file: Any, moments: Any) -> Any:
            if not self._is_now((monitor, file)):
                return await original(monitor, file, moments)
            self._told()
            with Path("/dev/full").open("wb") as full:
                return await original(monitor, full, moments)

        return save

    def _is_now(self, arguments: tuple[Any, ...]) -> bool:
        if not self._point.concerns(arguments):
            return False
        with self._lock:
            self._calls += 1
            return self._calls == self._nth and not self._mark.exists()

    def _harm(self) -> None:
        machines = _machines()
        if self._kind in (Kind.QEMU, Kind.BOTH) and not machines:
            say(f"no QEMU to kill at {self._point.name}")
            return
        self._told()
        if self._kind.errno is not None:
            raise OSError(self._kind.errno, f"{os.strerror(self._kind.errno)} (torture)")
        if self._kind is not Kind.WRAPPER:
            for machine in machines:
                machine.kill()
        if self._kind is not Kind.QEMU:
            os.kill(os.getpid(), signal.SIGKILL)

    def _told(self) -> None:
        self._mark.write_text(f"{self._point.name}\n")
        say(f"{self._kind.value} at {self._point.name}, call {self._calls}")


def _machines() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(word.startswith("guest=vmwrapper ") for word in process.cmdline()):
                found.append(process)
    return found


def observe() -> None:
    """Have the tortured program's steps told at checkpoints, and take these as often as the job wants."""
    take, reattach = Checkpointer._take, TaskRun._reattach

    async def observed_take(self: Checkpointer, **named: Any) -> None:
        if not self._run_state.reasons and (step := await _step_of(self._machine)):
            say(f"step {step} before checkpoint {self._machine._snapshots.next_number}")  # type: ignore[attr-defined]
        await take(self, **named)

    async def observed_reattach(self: TaskRun, *arguments: Any) -> None:
        await reattach(self, *arguments)
        if not self._run_state.reasons and (step := await _step_of(self._machine)):
            say(f"goes on at step {step}")

    def interval_s(self: Checkpointer) -> float:
        return self._task.checkpoint_interval_s

    Checkpointer._take = observed_take  # type: ignore[method-assign]
    TaskRun._reattach = observed_reattach  # type: ignore[method-assign]
    Checkpointer._interval_s = interval_s  # type: ignore[method-assign]


async def _step_of(machine: Any) -> str:
    """Of the tortured program; nothing where it is not that one that runs, or the guest was just stopped."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            said: bytes | None = await machine.guest.read("/run/torture/state", limit_bytes=64)
            words = (said or b"").decode().split()
            return words[0] if len(words) == 2 else ""
    return ""


def main() -> int:
    """Be vmwrapper."""
    point, kind, nth, mark, *arguments = sys.argv[1:]
    observe()
    if point != "none":
        Fault(POINTS[point], Kind[kind], int(nth), Path(mark)).arm()
    before = set(Path("/proc/self/fd").iterdir())
    try:
        return cli.main(arguments)
    finally:
        left = set(Path("/proc/self/fd").iterdir()) - before
        say(f"{len(left)} descriptors and {len(psutil.Process().children())} processes left at the end")


if __name__ == "__main__":
    sys.exit(main())
