"""Requests to the agent in a guest of VirtualBox's, by files in two folders that both see: see agent.sh.

The guest reads one of them, and writes the other. It is there that a hostile guest can write on the host's disk:
VirtualBox lets it make no links, and `check` bounds the rest.

Files need no session: a request is answered however often the guest was reverted, which `guestcontrol` is not.
"""

import asyncio
import os
import secrets
import shlex
import stat
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import BinaryIO

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_thread_and_back, to_thread_and_soon_back
from vmwrapper.errors import GuestError, GuestSilent, MachineExited, SnapshotFailed
from vmwrapper.folders import remove_tree
from vmwrapper.hypervisor.guest_script import end_of, guest_script, script
from vmwrapper.hypervisor.outputs import writing
from vmwrapper.hypervisor.virtualbox.place import Place

_FIRST_LOOK_S = 0.02
_LOOKS_GROW_BY = 1.3
_LONGEST_LOOK_S = 0.05
_MOST_FILES = 64
AGENT = "agent.sh"
_SHORT_VERBS = ("hello", "run")
SLOWEST_BYTES_PER_S = 50_000
"""Busybox's SHA-256, where there is no hardware virtualization."""


class Requests:
    """Those to one machine's guest."""

    def __init__(self, place: Place, clock: RunningClock, *, most_bytes: int) -> None:
        """`most_bytes` is what a guest may write at once."""
        self._in, self._out = place.requests, place.answers
        self._clock = clock
        self._most_bytes = most_bytes
        self._short_script = guest_script(__package__, "guest.sh", has_files=False)
        self._script = guest_script(__package__, "guest.sh")
        self._open: set[str] = set()
        self._begins = asyncio.Lock()
        self.machine_runs = False

    def begin(self) -> None:
        """Have the folders, with nothing in them. Blocks."""
        for folder in (self._in, self._out):
            with writing(folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)  # of which a guest may have thought otherwise
                for path in folder.iterdir():
                    _remove(path)
        with writing(self._in):
            (self._in / AGENT).write_text(script(__package__, AGENT))

    @asynccontextmanager
    async def answered(
        self, words: Sequence[str], what: str, *, body: Iterable[bytes] = (), limit_s: float
    ) -> AsyncIterator[tuple[str, BinaryIO]]:
        """Have guest.sh do what its arguments say, behind the nonce, which is the first; and the answer, to be read.

        Raises GuestSilent, beginning with `what`, after `limit_s` and the time that it takes to read and send what has
        come; MachineExited.
        """
        nonce = secrets.token_hex(16)
        async with self._begins:
            self._open.add(nonce)
        try:
            await to_thread_and_back(self._sweep)
            await to_thread_and_soon_back(self._ask, nonce, words, body)
            with await self._answer(nonce, what, limit_s) as file:
                yield nonce, file
        finally:
            self._open.remove(nonce)
            await to_thread_and_back(self._sweep)

    @asynccontextmanager
    async def nothing_asked(self, *, limit_s: float) -> AsyncIterator[None]:
        """Have no request under way, so that the guest writes no answer in a snapshot.

        Raises SnapshotFailed where it is busy with one for longer than `limit_s`.
        """
        async with self._begins:
            try:
                async with asyncio.timeout(limit_s):
                    while self._open:  # noqa: ASYNC110  (many things change it)
                        await asyncio.sleep(_FIRST_LOOK_S)
            except TimeoutError as error:
                raise SnapshotFailed("the guest is busy with a command") from error
            yield

    def _ask(self, nonce: str, words: Sequence[str], body: Iterable[bytes], enough: Event) -> None:
        request = self._in / f"{nonce}.request"
        answers = self._short_script if words[1] in _SHORT_VERBS else self._script
        lines = f"set -- {shlex.join([nonce, *words])}\n{answers}\n"
        with writing(request):
            with (self._in / f"{nonce}.body").open("xb") as file:
                file.writelines(takewhile(lambda _: not enough.is_set(), body))
            if enough.is_set():
                return
            scratch = request.with_suffix(".scratch")
            scratch.write_bytes(lines.encode("utf-8", "surrogateescape"))
            scratch.rename(request)

    async def _answer(self, nonce: str, what: str, limit_s: float) -> BinaryIO:
        answer = self._out / f"{nonce}.answer"
        look_s, began_s, size = _FIRST_LOOK_S, self._clock.elapsed_s, 0
        while (file := _whole(answer, end_of(nonce))) is None:
            if not self.machine_runs:
                raise MachineExited("the machine does not run")
            size = min(max(size, _size(answer)), self._most_bytes)
            left_s = began_s + limit_s + 2 * size / SLOWEST_BYTES_PER_S - self._clock.elapsed_s
            if left_s <= 0:
                raise GuestSilent(f"{what} within {limit_s:g} s")
            await asyncio.sleep(min(look_s, left_s))  # also while the clock stands, for what has just come
            look_s = min(look_s * _LOOKS_GROW_BY, _LONGEST_LOOK_S)
        return file

    def _sweep(self) -> None:
        """Remove what nobody waits for any more."""
        for folder in (self._in, self._out):
            with suppress(OSError):  # somebody has deleted the slot, which others say
                for path in folder.iterdir():
                    if path.name != AGENT and path.name.partition(".")[0] not in self._open:
                        _remove(path)

    def check(self) -> None:
        """Raise GuestError where a guest has written what it never has to. To be called now and then."""
        with suppress(FileNotFoundError), os.scandir(self._out) as found:
            total = 0
            for number, entry in enumerate(found, 1):
                mode, size = _mode_and_size(entry)
                total += size
                if number > _MOST_FILES or total > self._most_bytes or not stat.S_ISREG(mode):
                    raise GuestError("the guest fills the host's disk instead of answering")


def _remove(path: Path) -> None:
    """What a hostile guest may have made, or is still writing to. What can't be removed `check` finds."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        with suppress(OSError):
            path.unlink()


def _mode_and_size(entry: "os.DirEntry[str]") -> tuple[int, int]:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # it has another name by now
        return stat.S_IFREG, 0
    return found.st_mode, found.st_size


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _whole(answer: Path, end: bytes) -> BinaryIO | None:
    """The answer, to be read, or None while its end has not come."""
    if (file := _opened(answer)) is None:
        return None
    if file.seek(0, os.SEEK_END) >= len(end):
        file.seek(-len(end), os.SEEK_END)
        if file.read(len(end)) == end:
            file.seek(0)
            return file
    file.close()
    return None


def _opened(path: Path) -> BinaryIO | None:
    """A file that a hostile guest has made, or None."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)), "rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GuestError(f"the guest's answer can't be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise GuestError("the guest's answer is no file")
    return file
