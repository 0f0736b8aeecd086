"""One call into a guest of VirtualBox's: a shell script, by `VBoxManage guestcontrol run`, and what it printed.

Each call logs in anew, which takes seconds where the processor has no virtualization: so each does as much as it can.
VirtualBox changes exit statuses, loses calls into a guest that stands still, and forgets its sessions when a machine is
reverted. So the script prints its own end, with a nonce, and a call is repeated until that came.

Source: VirtualBox's manual, "VBoxManage guestcontrol"; its src/VBox/Frontends/VBoxManage/VBoxManageGuestCtrl.cpp.
"""

import asyncio
import base64
import gzip
import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import TypeVar

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError, GuestSilent, HostDiskFailed, JobError, MachineExited
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.virtualbox.faults import Fault
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage, VirtualBoxFailed

MOST_BYTES = 8 << 20
"""Of what one call prints to its standard output."""
_MOST_AROUND_BYTES = 1 << 20
_MOST_IN_WORDS = 32 * 1024  # more is faster by a file
_GRACE_S = 30.0
_PAUSE_S = 0.3
_SETTLES_S = 8.0
_LOGIN_LIMIT_S = 30.0
# VirtualBox 7.2 takes all words for arguments, older ones the first for argv[0]: `env env …` means the same as `env …`.
_PROGRAM = ("--exe", "/usr/bin/env", "--wait-stdout", "--wait-stderr")
_UNPACK = """\
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
d=/run/.vmwrapper-$1 blob=/run/.vmwrapper-$1/$$
shift
umask 077
mkdir -p "$d" && %s >"$blob" && . "$blob"
"""
_BY_WORDS = _UNPACK % 'printf %s "$@" | base64 -d | gzip -dc'
_BY_FILE = _UNPACK % '{ gzip -dc <"$1" && rm -f "$1"; }'
T = TypeVar("T")
_COMMENTS = re.compile(r"^ *#.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Said:
    """What a script found. All of it was said by the guest: hostile."""

    status: str
    """Digits, or a word of the script's."""
    found: bytes
    wrong: bytes
    """What went wrong, or a second answer."""


class _CutOff(Exception):
    """The answer has no end."""


class GuestControl:
    """Calls into the guest of one machine."""

    def __init__(self, manage: VBoxManage, uuid: str, login: Login, clock: RunningClock, *, folder: Path) -> None:
        """`folder` is for files that live as long as a call."""
        self._manage = manage
        self._uuid = uuid
        self._login = login
        self._clock = clock
        self._folder = folder
        self._silent_until_s = 0.0
        self.quiet = asyncio.Lock()
        """To be held while a snapshot is taken: a guest that was in a call then answers none after going back."""
        self._script = _COMMENTS.sub("", (package_files(__package__) / "guest.sh").read_text())

    def settle(self) -> None:
        """Leave a guest that was reverted, and runs on from now, in peace until its VBoxService has found back.

        One that is asked after 1 s never answers again; after 3 s it always did.
        """
        self._silent_until_s = self._clock.elapsed_s + _SETTLES_S

    @property
    def user(self) -> str:
        """Who logs in."""
        return self._login.user

    async def call(
        self,
        verb: str,
        *arguments: str,
        directory: str | None = None,
        stdin: bytes = b"",
        nonce: str | None = None,
        limit_s: float,
    ) -> Said:
        """Have guest.sh do this. Whatever a verb does, it does once, however often it has to be asked.

        Raises GuestSilent after `limit_s`, GuestError, MachineExited, JobError where the guest lets us not log in.
        """
        words = (nonce or secrets.token_hex(16), directory or ".", verb, *arguments)
        return await self._repeated(lambda: self._once(words, stdin, limit_s), _what(verb, arguments), limit_s)

    async def copy_to(self, file: Path, there: str, *, limit_s: float) -> None:
        """Copy a file of the host to a path of the guest's, of ASCII letters, that `user` may write to.

        Raises as `call`; GuestError where the guest can't take it, as when its disk is full.
        """

        async def once() -> None:
            try:
                await self._copy_to(file, there, limit_s)
            except VirtualBoxFailed as failed:
                if failed.fault in (Fault.OTHER, Fault.NO_SPACE):
                    raise GuestError(f"the guest does not take {file.name}: {failed}") from failed
                raise

        await self._repeated(once, f"the guest did not take {file.name}", limit_s)

    async def _repeated(self, once: Callable[[], Awaitable[T]], what: str, limit_s: float) -> T:
        complaint = "it was not asked"
        refused_since_s: float | None = None
        try:
            if (rest_s := self._silent_until_s - self._clock.elapsed_s) > 0:
                await self._clock.sleep(rest_s)
            async with self._clock.timeout(limit_s):
                while True:
                    try:
                        return await once()
                    except _CutOff as cut_off:
                        complaint = str(cut_off)
                    except VirtualBoxFailed as failed:
                        complaint = str(failed)
                        refused_since_s = self._judged(failed, refused_since_s)
                    await self._clock.sleep(_PAUSE_S)
        except TimeoutError as error:
            raise GuestSilent(f"{what} within {limit_s:g} s; the last try: {complaint}") from error

    def _judged(self, failed: VirtualBoxFailed, refused_since_s: float | None) -> float | None:
        """Since when the guest lets us not log in, which a guest that boots may do. Raises where that is the end."""
        if failed.fault is Fault.WRONG_STATE:
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

    async def _once(self, words: Sequence[str], stdin: bytes, limit_s: float) -> Said:
        nonce, text = words[0], "".join(words)
        # VirtualBox leaves out empty words, and a guest may not know what others are encoded in.
        if not stdin and text.isascii() and all(words) and len(text) <= _MOST_IN_WORDS:
            return _answer(await self._shell(self._script, *words, limit_s=limit_s), nonce)
        lines = f"set -- {shlex.join(words)}\n{self._script}\nexit\n".encode("utf-8", "surrogateescape")
        blob = gzip.compress(lines + stdin, mtime=0)
        text = base64.b64encode(blob).decode()
        if len(text) <= _MOST_IN_WORDS:
            said = await self._shell(_BY_WORDS, nonce, text, limit_s=limit_s)
        else:
            with self._file(blob) as file:
                there = f"/tmp/.vmwrapper-{nonce}"  # noqa: S108  (the guest's)
                await self._copy_to(file, there, limit_s)
            said = await self._shell(_BY_FILE, nonce, there, limit_s=limit_s)
        return _answer(said, nonce)

    async def _shell(self, script: str, *arguments: str, limit_s: float) -> bytes:
        sudo = () if self.user == "root" else ("sudo", "-n", "--")
        words = ("env", *sudo, "sh", "-c", script, "sh", *arguments)
        timeout_ms = max(1000, round(limit_s * 1000))
        return await self._told("run", *_PROGRAM, "--timeout", str(timeout_ms), "--", *words, limit_s=limit_s)

    async def _copy_to(self, file: Path, there: str, limit_s: float) -> None:
        await self._told("copyto", str(file), there, limit_s=limit_s)

    async def _told(self, verb: str, *words: str, limit_s: float) -> bytes:
        async with self.quiet:
            return await self._told_alone(verb, *words, limit_s=limit_s)

    async def _told_alone(self, verb: str, *words: str, limit_s: float) -> bytes:
        with self._password() as (file, descriptors):
            login = ("--username", self.user, "--passwordfile", file)
            return await self._manage.output(
                *("guestcontrol", self._uuid, verb, *login, *words),
                limit_s=limit_s + _GRACE_S,
                most_bytes=MOST_BYTES + _MOST_AROUND_BYTES,
                pass_fds=descriptors,
            )

    @contextmanager
    def _password(self) -> Iterator[tuple[str, Sequence[int]]]:
        """A file with the password, which others can't find; and the descriptors that it takes to be read."""
        if not hasattr(os, "memfd_create"):
            with self._file(self._login.password.encode()) as path:
                yield str(path), ()
            return
        descriptor = os.memfd_create("password")
        try:
            os.write(descriptor, self._login.password.encode())
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)

    @contextmanager
    def _file(self, content: bytes) -> Iterator[Path]:
        with ExitStack() as made:
            try:
                file = made.enter_context(tempfile.NamedTemporaryFile(dir=self._folder))
                file.write(content)
                file.flush()
            except OSError as error:
                raise HostDiskFailed(f"can't write a file for the guest in {self._folder}: {error.strerror}") from error
            yield Path(file.name)


def _answer(said: bytes, nonce: str) -> Said:
    """What is between the nonces. Raises _CutOff where the last one is not there."""
    mark = f"\n{nonce} ".encode()
    if not said.endswith(nonce.encode()) or mark not in said:
        words = printable(said[-400:]) or "(nothing)"
        raise _CutOff(f"the guest's answer was cut off: {words}")
    found, _, rest = said[: -len(nonce)].rpartition(mark)
    status, _, wrong = rest.partition(b"\n")
    return Said(printable(status, limit=20), found, wrong)


def _what(verb: str, arguments: Sequence[str]) -> str:
    if verb == "run":
        return f"the command {arguments[1]!r} in the guest did not end"
    return "the guest did not answer"
