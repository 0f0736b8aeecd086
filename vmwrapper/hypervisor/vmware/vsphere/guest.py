"""Calls into a guest of vSphere's: a script goes in as a file, is started, and what it printed comes back as a file.

Of programs in a guest the server knows how they ended for some minutes only, and nothing of what they printed. So the
script writes down its own end, with a nonce; whether it is there already is asked until it is. Each call is two
transfers and two or more questions; that a small file is not there is known by one question.

Source: the vSphere Web Services API reference, GuestFileManager and GuestProcessManager.
"""

import asyncio
import posixpath
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyVmomi import vim

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import GuestError, GuestSilent, MachineExited, OutputChanged
from vmwrapper.hypervisor.guest_script import Said
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.outputs import Output, Sink
from vmwrapper.hypervisor.refusals import Refusals
from vmwrapper.hypervisor.vmware.called_guest import MOST_BYTES, CalledGuest, CutOff, answer
from vmwrapper.hypervisor.vmware.script_calls import THERE, ScriptCalls
from vmwrapper.hypervisor.vmware.vsphere.connection import CALL_LIMIT_S, PATIENCE_S, Connection
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.transfer import Transfers

_MOST_AROUND_BYTES = 1 << 20
_LOOK_LIMIT_S = 60.0
_FETCH_LIMIT_S = 300.0
_SLOWEST_BYTES_PER_S = 50_000
_FIRST_LOOK_S = 0.03
_LOOKS_GROW_BY = 1.5
_LONGEST_LOOK_S = 2.0
_LOOKS_PER_SIGN_OF_LIFE = 4
_PAUSE_S = 0.3
_OVERWRITES = True
_WATCH_S = 4.0
"""So long who watches the machine has to tell why it does not run."""
_LONGEST_UNTOLD_S = 2 * CALL_LIMIT_S
"""So long at most a server is away before a call fails."""
_MOST_REFUSED_FILES = 3
_GUEST_IS_SILENT = (Fault.NOT_READY, Fault.GUEST_FAILED, Fault.GUEST_REFUSED, Fault.REFUSED_FILE)
_NO_FILE = (Fault.NO_FILE, Fault.UNUSABLE_FILE, Fault.GONE)
_CANT_READ = (*_NO_FILE, Fault.GUEST_FORBIDS)
_WONT_TAKE = (*_NO_FILE, Fault.GUEST_FORBIDS, Fault.GUEST_FAILED, Fault.NO_SPACE, Fault.EXISTS, Fault.OTHER)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Handle:
    """The machine as the server knows it: another one once it was made anew."""

    machine: Any


@dataclass(slots=True, eq=False)
class _Call:
    """How far one call has come: what was begun is not begun twice while it is still at it."""

    nonce: str
    request: bytes
    tries: int = 0
    process: int | None = None

    @property
    def there(self) -> str:
        return f"{THERE}{self.nonce}-{self.tries}"


class GuestOperations(ScriptCalls):
    """See `Calls`, and files that are read directly."""

    def __init__(
        self, connection: Connection, transfers: Transfers, handle: Handle, login: Login, clock: RunningClock
    ) -> None:
        super().__init__(login, clock)
        self._connection = connection
        self._transfers = transfers
        self._handle = handle
        self._managers: Any = None

    async def copy_to(self, file: Path, there: str, *, limit_s: float) -> None:
        async def once() -> None:
            size = (await asyncio.to_thread(file.stat)).st_size
            try:
                await self._transfers.put_file(await self._place_for(there, size), file)
            except VsphereFailed as failed:
                if failed.fault in _WONT_TAKE:
                    raise GuestError(f"the guest does not take {file.name}: {failed}") from failed
                raise

        await self.repeated(once, f"the guest did not take {file.name}", limit_s)

    async def small(self, path: str, *, limit_bytes: int) -> bytes | None:
        """A whole file, if it is not larger than that, and we may read it. Raises VsphereFailed, with GONE for none."""
        information = await self._from_guest(path)
        if information.size > limit_bytes:
            return None
        return await self._transfers.get_bytes(information.url, limit_bytes=limit_bytes)

    async def stream(self, path: str, take: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand a whole file to `take`. Raises VsphereFailed."""
        await self._transfers.get((await self._from_guest(path)).url, take)

    def _once(self, nonce: str, request: bytes, limit_s: float) -> Callable[[], Awaitable[Said]]:  # noqa: ARG002  (of all)
        return partial(self._said, _Call(nonce, request))

    async def _said(self, one: _Call) -> Said:
        if one.process is None:
            one.tries += 1
            await self._transfers.put_bytes(await self._place_for(one.there, len(one.request)), one.request)
            one.process = await self._start(one.there)
        said = await self._answer(one)
        return answer(said, one.nonce)

    async def _start(self, there: str) -> int:
        program, words = "/bin/sh", there
        if self.user != "root":
            program, words = "/usr/bin/sudo", f"-n /bin/sh {there}"
        spec = vim.vm.guest.ProcessManager.ProgramSpec(programPath=program, arguments=words)
        process: int = await self._told("processManager", "StartProgram", spec)
        return process

    async def _answer(self, one: _Call) -> bytes:
        """What the script printed, once it is there. Raises CutOff where it won't come."""
        look_s, looks, ended = _FIRST_LOOK_S, 0, ""
        while True:
            try:
                information = await self._from_guest(f"{one.there}.out")
            except VsphereFailed as failed:
                if failed.fault not in _NO_FILE:
                    raise
            else:
                most = MOST_BYTES + _MOST_AROUND_BYTES
                return await self._transfers.get_bytes(information.url, limit_bytes=most)
            if ended:
                one.process = None
                raise CutOff(f"the script in the guest {ended}")
            looks += 1
            if looks % _LOOKS_PER_SIGN_OF_LIFE == 0:
                ended = await self._end_of(one.process)
            await asyncio.sleep(look_s)
            look_s = min(look_s * _LOOKS_GROW_BY, _LONGEST_LOOK_S)

    async def _end_of(self, process: int | None) -> str:
        """How a process in the guest has ended, as a sentence's end, or nothing."""
        for found in await self._told("processManager", "ListProcesses", [process]) or ():
            if found.pid == process:
                return f"ended with exit status {found.exitCode}" if found.endTime else ""
        return "is not there any more"

    async def _from_guest(self, path: str) -> Any:
        return await self._told("fileManager", "InitiateFileTransferFromGuest", path)

    async def _place_for(self, path: str, size: int) -> str:
        attributes = vim.vm.guest.FileManager.PosixFileAttributes()
        words = (path, attributes, size, _OVERWRITES)
        url: str = await self._told("fileManager", "InitiateFileTransferToGuest", *words)
        return url

    async def _told(self, manager: str, method: str, *words: object) -> Any:
        if self._managers is None:
            operations = self._connection.content.guestOperationsManager
            found = await self._connection.properties({operations: ["fileManager", "processManager"]})
            self._managers = found[operations]
        login = vim.vm.guest.NamePasswordAuthentication(
            username=self._login.user, password=self._login.password, interactiveSession=False
        )
        return await self._connection.call(self._managers[manager], method, self._handle.machine, login, *words)

    async def repeated(self, once: Callable[[], Awaitable[T]], what: str, limit_s: float) -> T:
        """Have it done, however often that takes. Raises as `Calls.call`; VsphereFailed where it is the server's fault.

        While the server is away there is no limit for the guest, but one for that.
        """
        tries = _Tries(self.user, self._clock)
        while True:
            try:
                async with self._clock.timeout(limit_s):
                    while True:
                        try:
                            return await once()
                        except CutOff as cut_off:
                            tries.cut_off(cut_off)
                        except VsphereFailed as failed:
                            await tries.failed(failed)
                        await self._clock.sleep(_PAUSE_S)
            except TimeoutError as error:
                tries.end(f"{what} within {limit_s:g} s", error)


class _Tries:
    """Those of one thing, and whether there is any use in another."""

    def __init__(self, user: str, clock: RunningClock) -> None:
        self._clock = clock
        self._last: CutOff | VsphereFailed | None = None
        self._refusals = Refusals(user, clock)
        self._refused_files = 0
        self._failed_at_s = 0.0
        self._away_since_s: float | None = None

    def cut_off(self, error: CutOff) -> None:
        """To be told of an answer without its end."""
        self._last, self._away_since_s = error, None

    def end(self, what: str, error: TimeoutError) -> None:
        """Raise what it was that did not come about, unless the server is away, and that not for long."""
        if self._clock.elapsed_s - self._failed_at_s > _LONGEST_UNTOLD_S:
            self._last = None  # the server is there, and the last try still runs
        if not isinstance(self._last, VsphereFailed) or self._last.fault in _GUEST_IS_SILENT:
            raise GuestSilent(f"{what}; the last try: {self._last or 'it still runs'}") from error
        if self._away_since_s is None or self._clock.elapsed_s - self._away_since_s > PATIENCE_S:
            raise self._last from error

    async def failed(self, failed: VsphereFailed) -> None:
        """Raise where there is no use in trying again."""
        self._last, self._failed_at_s = failed, self._clock.elapsed_s
        if failed.fault is not Fault.UNREACHABLE:
            self._away_since_s = None
        elif self._away_since_s is None:
            self._away_since_s = self._clock.elapsed_s
        if failed.fault is Fault.GONE:
            await asyncio.sleep(_WATCH_S)
            raise MachineExited(f"the machine is not there any more: {failed}") from failed
        if failed.fault in (Fault.GUEST_FORBIDS, Fault.NO_FILE, Fault.UNUSABLE_FILE):
            raise GuestError(f"the guest can't run our script: {failed}") from failed
        if failed.fault in (Fault.NOT_TRUSTED, Fault.FORBIDDEN, Fault.UNSUPPORTED):
            raise failed
        self._refused_files += failed.fault is Fault.REFUSED_FILE
        if self._refused_files == _MOST_REFUSED_FILES:  # as by a guest whose disk is full
            raise GuestError(str(failed)) from failed
        if failed.fault is Fault.GUEST_REFUSED:
            self._refusals.one_more(failed)
        else:
            self._refusals.end()


class VsphereGuest(CalledGuest):
    """See `Guest`: small files are looked at, and large outputs fetched, without a call of the script."""

    look_s = 10.0

    def __init__(self, operations: GuestOperations) -> None:
        super().__init__(operations)
        self._operations = operations

    async def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        async def once() -> tuple[bytes | None, bool]:
            """What is there, and whether that is all that there is to know."""
            try:
                found = await self._operations.small(path, limit_bytes=limit_bytes)
            except VsphereFailed as failed:
                if failed.fault not in _CANT_READ:
                    raise
                return None, failed.fault is not Fault.GUEST_FORBIDS
            return found, found is not None

        if _is_plain(path):
            found, is_all = await self._operations.repeated(once, "the guest did not answer", _LOOK_LIMIT_S)
            if is_all:
                return found
        return await super().read(path, limit_bytes=limit_bytes)

    async def _fetch(self, wanted: Sequence[tuple[str, Output]], directory: str, sink: Sink) -> None:
        for name, file in wanted:
            path = posixpath.join(directory, name)
            if self._operations.user == "root" and _is_plain(path):
                await self._stream(path, file, sink)
            else:
                await super()._fetch([(name, file)], directory, sink)

    async def _stream(self, path: str, file: Output, sink: Sink) -> None:
        """One file; what was cut off is asked for again, and what came before that is left out."""
        written = 0

        async def once() -> None:
            nonlocal written
            at = 0

            async def take(chunk: bytes) -> None:
                nonlocal at, written
                start, at = at, at + len(chunk)
                if at > file.size:
                    raise OutputChanged("an output grew while it was copied: something in the guest still writes to it")
                if at > written:
                    fresh = chunk[max(0, written - start) :]
                    await to_thread_and_back(sink.write, fresh)
                    written = at

            await self._operations.stream(path, take)
            if at != file.size:
                raise OutputChanged("an output shrank while it was copied: something in the guest still writes to it")

        limit_s = _FETCH_LIMIT_S + file.size / _SLOWEST_BYTES_PER_S
        await self._operations.repeated(once, f"the guest did not send {path}", limit_s)


def _is_plain(path: str) -> bool:
    """Whether XML can have it as it is."""
    return path.isprintable() and path.startswith("/")
