"""The one gateway through which programs are started on the host."""

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import psutil

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import ProcessFailed

STDERR_TAIL_BYTES = 4096
_MOST_OUTPUT_BYTES = 1 << 30  # a package's files
_LAST_WORDS_S = 0.1
_REAPING_LIMIT_S = 5.0
"""Once it is killed and we are cancelled: it may be waiting for a disk that does not answer."""
_FOR_US = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
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
    """How a program ended: its exit status, negative for a signal; all that it printed, and the end of its stderr."""

    status: int
    stdout: bytes
    stderr: bytes


async def complete(  # noqa: PLR0913  (each of another kind)
    argv: Sequence[str],
    *,
    limit_s: float,
    clock: RunningClock | None = None,
    directory: Path | None = None,
    pass_fds: Sequence[int] = (),
    most_bytes: int = _MOST_OUTPUT_BYTES,
    environment: Mapping[str, str] | None = None,
    starts_daemons: bool = False,
) -> Completed:
    """Run a program to its end, whatever its status; killed and reaped when the limit or a cancellation comes first.

    It is also killed, and has that status, when it has printed more than `most_bytes`. Raises ProcessFailed where it
    can't be started or its output is not closed after `limit_s`: seconds of the clock, with which the program stops and
    goes, or of the wall's. `environment` is added to the clean one. One that starts daemons has a session of its own,
    and hears what others are deaf to, as its daemons would be; its end is enough where they keep its output open.
    """
    how = _Start(directory=directory, pass_fds=pass_fds, environment=environment or {}, is_apart=starts_daemons)
    async with _started(argv, how, most_bytes=most_bytes) as (transport, end):
        stop, go = partial(_signal, transport, end, signal.SIGSTOP), partial(_signal, transport, end, signal.SIGCONT)
        try:
            with clock.followed_by(stop=stop, go=go) if clock else nullcontext():
                async with clock.timeout(limit_s) if clock else asyncio.timeout(limit_s):
                    await (end.all_said() if starts_daemons else end.closed.wait())
        except TimeoutError as error:
            raise ProcessFailed(f"no end after {limit_s:g} s: {command_line(argv)}") from error
        return Completed(transport.get_returncode() or 0, bytes(end.stdout), bytes(end.stderr))


async def run(
    argv: Sequence[str], *, limit_s: float, clock: RunningClock | None = None, directory: Path | None = None
) -> bytes:
    """Run a program that must succeed and return its standard output. Raises ProcessFailed otherwise."""
    done = await complete(argv, limit_s=limit_s, clock=clock, directory=directory)
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip() or "(nothing)"
        raise ProcessFailed(f"status {done.status} from: {command_line(argv)}\nit said: {said}")
    return done.stdout


class Child:
    """A program that runs beside us."""

    def __init__(self, transport: asyncio.SubprocessTransport, end: "_End") -> None:
        self._transport = transport
        self._end = end
        self.pid = transport.get_pid()
        self._usage: psutil.Process | None = None
        self._cpu_time_s = 0.0

    def cpu_time_s(self) -> float:
        """CPU time that it has used on the host. Never falls, also after its end."""
        with suppress(psutil.NoSuchProcess):
            self._usage = self._usage or psutil.Process(self.pid)
            times = self._usage.cpu_times()
            self._cpu_time_s = max(self._cpu_time_s, times.user + times.system)
        return self._cpu_time_s

    def working_set_bytes(self) -> int:
        """Its memory in RAM; 0 after its end."""
        with suppress(psutil.NoSuchProcess):
            self._usage = self._usage or psutil.Process(self.pid)
            return int(self._usage.memory_info().rss)
        return 0

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has sent it SIGSTOP."""
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    @property
    def last_words(self) -> str:
        """The last few KiB of what it printed."""
        return self._end.stderr.decode(errors="replace").strip()

    def stop(self) -> None:
        """Have it stand still, until `go`."""
        _signal(self._transport, self._end, signal.SIGSTOP)

    def go(self) -> None:
        """Have it go on after `stop`."""
        _signal(self._transport, self._end, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; `ended` then tells that. Does nothing to one that ended before."""
        _signal(self._transport, self._end, signal.SIGKILL)

    async def ended(self) -> int:
        """Wait for its end; the exit status, negative for a signal. Any number may wait."""
        await self._end.closed.wait()
        return self._transport.get_returncode() or 0


@asynccontextmanager
async def child(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    niceness: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Child]:
    """Start a program that lives at most as long as the block, and is killed and reaped when it ends.

    On Linux the kernel also kills it when we die; so call this from the main thread only. `pass_fds` keep their numbers
    and stay the caller's. What it prints is part of its last words. It gets our niceness where `niceness` is less.
    `environment` is added to the clean one.
    """
    if niceness is not None and (more := niceness - os.nice(0)) > 0 and shutil.which("nice"):
        argv = ["nice", "-n", str(more), *argv]
    how = _Start(pass_fds=pass_fds, environment=environment or {})
    async with _started(argv, how, most_bytes=None) as (transport, end):
        yield Child(transport, end)


class _End(asyncio.SubprocessProtocol):
    """What a program says, and that it ends."""

    def __init__(self, *, most_bytes: int | None) -> None:
        """It is killed when it has printed more than that; None for one whose output is like its stderr."""
        self._most_bytes = most_bytes
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()
        """It has exited, and nobody can write to its output any more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1 and self._most_bytes is not None:
            self.stdout += data
            if len(self.stdout) > self._most_bytes:
                _signal(self._transport, self, signal.SIGKILL)
        else:
            self.stderr += data
            del self.stderr[:-STDERR_TAIL_BYTES]

    async def all_said(self) -> None:
        """Wait until it has exited and what it said has come, though others may keep its output open."""
        await self.exited.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self.closed.wait()

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the protocol's)
        self.closed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """How a program is started."""

    directory: Path | None = None
    pass_fds: Sequence[int] = ()
    environment: Mapping[str, str]
    is_apart: bool = False


@asynccontextmanager
async def _started(
    argv: Sequence[str], how: _Start, *, most_bytes: int | None
) -> AsyncIterator[tuple[asyncio.SubprocessTransport, _End]]:
    if shutil.which(argv[0]) is None:
        raise ProcessFailed(f"can't start {argv[0]}: there is no such program")
    # Ctrl-C, a closed terminal and a shutdown of the host are for us: our children hear of them from us. They stay in
    # our process group, whose priority BOINC sets. A child inherits the mask: asyncio starts it before it first lets
    # others run, who would find us deaf, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, () if how.is_apart else _FOR_US)
    try:
        transport, end = await asyncio.get_running_loop().subprocess_exec(
            partial(_End, most_bytes=most_bytes),
            *_bound_to_us(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=how.directory,
            env={**clean_environment(), **how.environment},
            pass_fds=tuple(how.pass_fds),
            start_new_session=how.is_apart,
        )
    except OSError as error:
        raise ProcessFailed(f"can't start {argv[0]}: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_US)  # not what it was: others may be starting, too
    try:
        yield transport, end
    finally:
        _signal(transport, end, signal.SIGKILL)
        try:
            await to_its_end(end.exited.wait(), limit_s=_REAPING_LIMIT_S)
        finally:
            transport.close()  # lets go of pipes that its children may hold


def _signal(transport: asyncio.SubprocessTransport, end: _End, number: signal.Signals) -> None:
    """Send it a signal unless it has exited. Popen's, also by `close`, looks for its end and takes it from asyncio."""
    if not end.exited.is_set():
        with suppress(ProcessLookupError):
            os.kill(transport.get_pid(), number)


def _bound_to_us(argv: Sequence[str]) -> list[str]:
    """The command, by way of a program that has the kernel kill it when our main thread ends, where there is one."""
    binder = ["setpriv", "--pdeathsig", "KILL", "--"] if sys.platform == "linux" and shutil.which("setpriv") else []
    return [*binder, *argv]
