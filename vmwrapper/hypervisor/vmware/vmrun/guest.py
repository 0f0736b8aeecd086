"""Calls into a guest of VMware's: a script goes in as a file, is run, and what it printed comes back as a file.

vmrun hands on neither input nor output, joins words without quoting, and its status is not to be trusted: so only
words without any odd letter are given to it, and the script writes down its own end, with a nonce. A call is repeated
until that came. Each is three runs of vmrun, and three logins, each with the password in its command line.

Source: VMware's "Using vmrun to Control Virtual Machines", "Guest Operating System Commands".
"""

import asyncio
import os
import secrets
import shlex
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside, to_thread_and_back
from vmwrapper.errors import GuestError, GuestSilent, HostDiskFailed, JobError, MachineExited, ProcessFailed
from vmwrapper.hypervisor.guest_script import Said
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.vmware.called_guest import MOST_BYTES, CutOff, answer, script
from vmwrapper.hypervisor.vmware.vmrun.faults import Fault
from vmwrapper.hypervisor.vmware.vmrun.vmrun import Vmrun, VmrunFailed

_MOST_AROUND_BYTES = 1 << 20
_GRACE_S = 30.0
_PAUSE_S = 0.5
_LOOK_S = 0.1
_LOGIN_LIMIT_S = 30.0
_COPY_LIMIT_S = 60.0
"""For what is not larger than a call's answer; then vmrun is stuck."""
_WATCH_S = 2.0
"""So long who watches the machine has to tell why it does not run."""
_THERE = "/tmp/.vmwrapper-call-"  # noqa: S108  (the guest's)
_HELLO = """\
umask 077
exec >"$0.new" 2>/dev/null
trap 'chown {user} "$0.new"; mv "$0.new" "$0.out"' EXIT
rm -rf {old}
blob=$0
"""
T = TypeVar("T")


class GuestCalls:
    """See `Calls`."""

    def __init__(self, vmrun: Vmrun, vmx: Path, login: Login, clock: RunningClock, *, folder: Path) -> None:
        """`folder` is for files that live as long as a call."""
        self._vmrun = vmrun
        self._vmx = vmx
        self._login = login
        self._clock = clock
        self._folder = folder
        self.quiet = asyncio.Lock()
        self._script = script()
        self._old: list[str] = []
        """Nonces of what was answered, and may be forgotten in the guest."""

    @property
    def user(self) -> str:
        return self._login.user

    def settle(self) -> None:
        """Each call is by itself: nothing is known of a guest that would have to be left in peace."""

    async def call(
        self,
        verb: str,
        *arguments: str,
        directory: str | None = None,
        stdin: bytes = b"",
        nonce: str | None = None,
        limit_s: float,
    ) -> Said:
        words = (nonce or secrets.token_hex(16), directory or ".", verb, *arguments)
        request = self._request(words, stdin)
        said = await self._repeated(lambda: self._once(words[0], request, limit_s), _what(verb, arguments), limit_s)
        if nonce is None:
            self._old.append(words[0])
        return said

    async def copy_to(self, file: Path, there: str, *, limit_s: float) -> None:
        async def once() -> None:
            try:
                await self._told("CopyFileFromHostToGuest", file, there, limit_s=limit_s + _GRACE_S)
            except VmrunFailed as failed:
                if failed.fault in (Fault.OTHER, Fault.NO_SPACE, Fault.FILE_MISSING, Fault.FORBIDDEN):
                    raise GuestError(f"the guest does not take {file.name}: {failed}") from failed
                raise

        await self._repeated(once, f"the guest did not take {file.name}", limit_s)

    def _request(self, words: Sequence[str], stdin: bytes) -> bytes:
        """The script that does it, with what it reads after its end."""
        old = [name for nonce in self._old for name in (f"{_THERE}{nonce}*", f"/run/.vmwrapper-{nonce}")]
        self._old = []
        hello = _HELLO.format(user=shlex.quote(self.user), old=" ".join(old) or "/nonexistent")
        text = f"{hello}set -- {shlex.join(words)}\n{self._script}\nexit\n"
        return text.encode("utf-8", "surrogateescape") + stdin

    async def _once(self, nonce: str, request: bytes, limit_s: float) -> Said:
        there = f"{_THERE}{nonce}"
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

    async def _repeated(self, once: Callable[[], Awaitable[T]], what: str, limit_s: float) -> T:
        complaint = "it was not asked"
        refused_since_s: float | None = None
        try:
            async with self._clock.timeout(limit_s):
                while True:
                    try:
                        return await once()
                    except CutOff as cut_off:
                        complaint = str(cut_off)
                    except VmrunFailed as failed:
                        complaint = str(failed)
                        refused_since_s = await self._judged(failed, refused_since_s)
                    except ProcessFailed as stuck:
                        complaint = str(stuck)
                    await self._clock.sleep(_PAUSE_S)
        except TimeoutError as error:
            raise GuestSilent(f"{what} within {limit_s:g} s; the last try: {complaint}") from error

    async def _judged(self, failed: VmrunFailed, refused_since_s: float | None) -> float | None:
        """Since when the guest lets us not log in, which a guest that boots may do. Raises where that is the end."""
        if failed.fault in (Fault.NOT_RUNNING, Fault.NO_MACHINE):
            await asyncio.sleep(_WATCH_S)
            raise MachineExited(f"the machine does not run: {failed}") from failed
        if failed.fault is Fault.GUEST_FAILED:
            raise GuestError(f"the guest can't run our script as root: {failed}") from failed
        if failed.fault is not Fault.LOGIN_REFUSED:
            return None
        now_s = self._clock.elapsed_s
        if refused_since_s is not None and now_s - refused_since_s > _LOGIN_LIMIT_S:
            raise JobError(
                f"the guest does not let {self.user} log in: name a user and its password that the image has"
            ) from failed
        return now_s if refused_since_s is None else refused_since_s

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


def _what(verb: str, arguments: Sequence[str]) -> str:
    if verb == "run":
        return f"the command {arguments[1]!r} in the guest did not end"
    return "the guest did not answer"
