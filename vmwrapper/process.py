"""The one gateway through which programs are started on the host."""

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from vmwrapper.errors import ProcessFailed

STDERR_TAIL_BYTES = 4096
_KEPT_VARIABLES = ("HOME", "PATH", "TMPDIR", "SYSTEMROOT", "TEMP")


def clean_environment() -> dict[str, str]:
    """The environment of every child: little, and nothing of BOINC's.

    The client sets an LD_LIBRARY_PATH that contains the slot, where a guest's outputs lie.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", **kept}


def command_line(argv: Sequence[str]) -> str:
    """The command as a person would paste it into a shell."""
    return shlex.join(argv)


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended: its exit status, negative for a signal, and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


async def complete(argv: Sequence[str], *, limit_s: float, directory: Path | None = None) -> Completed:
    """Run a program to its end, whatever its status; killed and reaped when the limit or a cancellation comes first.

    Raises ProcessFailed where it can't be started or outlives `limit_s` (wall-clock seconds).
    """
    process = await _start(argv, directory=directory)
    try:
        async with asyncio.timeout(limit_s):
            stdout, stderr = await process.communicate()
    except TimeoutError as error:
        raise ProcessFailed(f"no end after {limit_s:g} s: {command_line(argv)}") from error
    finally:
        await _end(process)
    return Completed(process.returncode or 0, stdout, stderr)


async def run(argv: Sequence[str], *, limit_s: float, directory: Path | None = None) -> bytes:
    """Run a program that must succeed and return its standard output. Raises ProcessFailed otherwise."""
    done = await complete(argv, limit_s=limit_s, directory=directory)
    if done.status != 0:
        said = done.stderr[-STDERR_TAIL_BYTES:].decode(errors="replace").strip() or "(nothing)"
        raise ProcessFailed(f"status {done.status} from: {command_line(argv)}\nit said: {said}")
    return done.stdout


class Child:
    """A program that runs beside us, with the end of what it says on stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._usage = psutil.Process(process.pid)
        self._cpu_time_s = 0.0
        self._stderr = b""
        self._one_reader = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_time_s(self) -> float:
        """CPU time that it has used on the host. Never falls, also after its end."""
        with suppress(psutil.NoSuchProcess):
            times = self._usage.cpu_times()
            self._cpu_time_s = max(self._cpu_time_s, times.user + times.system)
        return self._cpu_time_s

    @property
    def last_words(self) -> str:
        """The last few KiB of its stderr."""
        return self._stderr.decode(errors="replace").strip()

    def kill(self) -> None:
        """End it at once; `ended` then tells that. Does nothing to one that ended before."""
        if self._process.returncode is None:
            self._process.kill()

    async def ended(self) -> int:
        """Wait for its end; the exit status, negative for a signal. Any number may wait."""
        async with self._one_reader:
            while self._process.stderr and (said := await self._process.stderr.read(STDERR_TAIL_BYTES)):
                self._stderr = (self._stderr + said)[-STDERR_TAIL_BYTES:]
        return await self._process.wait()


@asynccontextmanager
async def child(argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> AsyncIterator[Child]:
    """Start a program that lives at most as long as the block, and is killed and reaped when it ends.

    On Linux the kernel also kills it when we die; so call this from the main thread only. `pass_fds` keep their numbers
    and stay the caller's.
    """
    process = await _start(argv, stdout=asyncio.subprocess.DEVNULL, pass_fds=pass_fds)
    try:
        yield Child(process)
    finally:
        await _end(process)


def _bound_to_us(argv: Sequence[str]) -> list[str]:
    """The command, by way of a program that has the kernel kill it when our main thread ends, where there is one."""
    binder = ["setpriv", "--pdeathsig", "KILL", "--"] if sys.platform == "linux" and shutil.which("setpriv") else []
    return [*binder, *argv]


async def _start(
    argv: Sequence[str],
    *,
    directory: Path | None = None,
    stdout: int = asyncio.subprocess.PIPE,
    pass_fds: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    if shutil.which(argv[0]) is None:
        raise ProcessFailed(f"can't start {argv[0]}: there is no such program")
    try:
        return await asyncio.create_subprocess_exec(
            *_bound_to_us(argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            cwd=directory,
            env=clean_environment(),
            pass_fds=tuple(pass_fds),
        )
    except OSError as error:
        raise ProcessFailed(f"can't start {argv[0]}: {error.strerror}") from error


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
