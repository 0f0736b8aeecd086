"""Calls into a guest of VMware's: a script goes in as a file, is run, and what it printed comes back as a file.

vmrun hands on neither input nor output, joins words without quoting, and its status is not to be trusted: so only
words without any odd letter are given to it, and the script writes down its own end, with a nonce. A call is repeated
until that came. Each is three runs of vmrun, and three logins, each with the password in its command line.

Source: VMware's "Using vmrun to Control Virtual Machines", "Guest Operating System Commands".
"""

import asyncio
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside, to_thread_and_back
from vmwrapper.errors import GuestError, GuestSilent, HostDiskFailed, MachineExited, ProcessFailed
from vmwrapper.hypervisor.guest_script import Said
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.refusals import Refusals
from vmwrapper.hypervisor.vmware.called_guest import MOST_BYTES, CutOff, answer
from vmwrapper.hypervisor.vmware.script_calls import THERE, ScriptCalls
from vmwrapper.hypervisor.vmware.vmrun.faults import Fault
from vmwrapper.hypervisor.vmware.vmrun.vmrun import Vmrun, VmrunFailed

_MOST_AROUND_BYTES = 1 << 20
_GRACE_S = 30.0
_PAUSE_S = 0.5
_LOOK_S = 0.1
_COPY_LIMIT_S = 60.0
"""For what is not larger than a call's answer; then vmrun is stuck."""
_WATCH_S = 2.0
"""So long who watches the machine has to tell why it does not run."""
T = TypeVar("T")


class GuestCalls(ScriptCalls):
    """See `Calls`."""

    def __init__(self, vmrun: Vmrun, vmx: Path, login: Login, clock: RunningClock, *, folder: Path) -> None:
        """`folder` is for files that live as long as a call."""
        super().__init__(login, clock)
        self._vmrun = vmrun
        self._vmx = vmx
        self._folder = folder

    async def copy_to(self, file: Path, there: str, *, limit_s: float) -> None:
        async def once() -> None:
            try:
                await self._told("CopyFileFromHostToGuest", file, there, limit_s=limit_s + _GRACE_S)
            except VmrunFailed as failed:
                if failed.fault in (Fault.OTHER, Fault.NO_SPACE, Fault.FILE_MISSING, Fault.FORBIDDEN):
                    raise GuestError(f"the guest does not take {file.name}: {failed}") from failed
                raise

        await self.repeated(once, f"the guest did not take {file.name}", limit_s)

    def _once(self, nonce: str, request: bytes, limit_s: float) -> Callable[[], Awaitable[Said]]:
        return partial(self._answer, nonce, request, limit_s)

    async def _answer(self, nonce: str, request: bytes, limit_s: float) -> Said:
        there = f"{THERE}{nonce}"
        sudo = [] if self.user == "root" else ["/usr/bin/sudo", "-n"]
        with self._scratch(request) as scratch:
            await self._told("CopyFileFromHostToGuest", scratch / "request", there, limit_s=_COPY_LIMIT_S)
            failed_as = await self._ran(*sudo, "/bin/sh", there, limit_s=limit_s)
            try:
                said = await self._fetched(f"{there}.out", scratch)
            except VmrunFailed as failed:
                if failed.fault is Fault.FILE_MISSING and failed_as:
                    raise failed_as from failed
                raise
        return answer(said, nonce)

    async def _ran(self, *words: str, limit_s: float) -> VmrunFailed | None:
        """Run a program there to its end. How it failed is returned: whether it did is for its own answer to say."""
        try:
            await self._told("runProgramInGuest", *words, limit_s=limit_s + _GRACE_S)
        except VmrunFailed as failed:
            if failed.fault in (Fault.GUEST_FAILED, Fault.FILE_MISSING, Fault.OTHER):
                return failed
            raise
        return None

    async def _fetched(self, there: str, scratch: Path) -> bytes:
        """A file of the guest's, which may be anything: hostile, endless, a folder or a link."""
        most_bytes = MOST_BYTES + _MOST_AROUND_BYTES
        folder = scratch / "answer"
        async with beside(_bounded(folder, most_bytes)):
            await self._told("CopyFileFromGuestToHost", there, folder / "out", limit_s=_COPY_LIMIT_S)
        return await to_thread_and_back(_read, folder / "out", most_bytes)

    async def _told(self, verb: str, *words: str | Path, limit_s: float) -> None:
        async with self.quiet:
            await self._vmrun(verb, self._vmx, *words, login=self._login, limit_s=limit_s)

    async def repeated(self, once: Callable[[], Awaitable[T]], what: str, limit_s: float) -> T:
        complaint = "it was not asked"
        refusals = Refusals(self.user, self._clock)
        try:
            async with self._clock.timeout(limit_s):
                while True:
                    try:
                        return await once()
                    except CutOff as cut_off:
                        complaint = str(cut_off)
                    except VmrunFailed as failed:
                        complaint = str(failed)
                        await self._judge(failed, refusals)
                    except ProcessFailed as stuck:
                        complaint = str(stuck)
                    await self._clock.sleep(_PAUSE_S)
        except TimeoutError as error:
            raise GuestSilent(f"{what} within {limit_s:g} s; the last try: {complaint}") from error

    async def _judge(self, failed: VmrunFailed, refusals: Refusals) -> None:
        """Raise where there is no use in trying again."""
        if failed.fault in (Fault.NOT_RUNNING, Fault.NO_MACHINE):
            await asyncio.sleep(_WATCH_S)
            raise MachineExited(f"the machine does not run: {failed}") from failed
        if failed.fault is Fault.GUEST_FAILED:
            raise GuestError(f"the guest can't run our script as root: {failed}") from failed
        if failed.fault is Fault.LOGIN_REFUSED:
            refusals.one_more(failed)
        else:
            refusals.end()

    @contextmanager
    def _scratch(self, request: bytes) -> Iterator[Path]:
        """A folder with the request, and a folder for the answer."""
        with ExitStack() as made:
            try:
                folder = Path(made.enter_context(tempfile.TemporaryDirectory(dir=self._folder, prefix="call-")))
                (folder / "request").write_bytes(request)
                (folder / "answer").mkdir()
            except OSError as error:
                raise HostDiskFailed(f"can't write a file for the guest in {self._folder}: {error.strerror}") from error
            yield folder


async def _bounded(folder: Path, most_bytes: int) -> NoReturn:
    """Raises GuestError as soon as there is more in the folder than that."""
    while True:
        await asyncio.sleep(_LOOK_S)
        if _size(folder) > most_bytes:
            raise GuestError("the guest sends more than it was asked for")


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118  (of `walk`)
    return total


def _read(file: Path, most_bytes: int) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags)
    except OSError as error:
        raise CutOff(f"there is no answer: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise GuestError("the guest's answer is no file")
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            content = opened.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise GuestError("the guest sends more than it was asked for")
    return content
