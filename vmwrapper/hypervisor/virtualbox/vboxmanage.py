"""VBoxManage, VirtualBox's command line: each call a program, each answer its exit status and what it said."""

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path

from vmwrapper.concurrency import to_its_end, to_thread_and_back
from vmwrapper.errors import ProcessFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.virtualbox import service
from vmwrapper.hypervisor.virtualbox.faults import Fault, fault
from vmwrapper.process import Completed, command_line, complete

LIMIT_S = 60.0
"""Of a call and its retries: VBoxManage may have to start VirtualBox's service first, on a busy computer."""
_PAUSES_S = (0.05, 0.1, 0.2, 0.4)
_LONGEST_PAUSE_S = 0.8
_LEAST_TRY_S = 1.0
_CANCELLED_LIMIT_S = 1.0
_STUCK_S = 30.0
"""A service that has not answered for so long will not."""
STUCK = (
    "VirtualBox's service is stuck: if it goes on so, restart this computer, or end the process VBoxSVC while no other "
    "machine of VirtualBox's runs"
)
_COMPLAINT = re.compile("^(?:VBoxManage(?:[.]exe)?: )?error: ", re.MULTILINE)
_FACT = re.compile(r'^"?([^"=\n]+)"?=(?:"(.*)"|(.*))$', re.MULTILINE)
_OUTPUT_LIMIT_BYTES = 1 << 20
_WORDS_SHOWN = 4  # of what a guest is told
_THEIRS = ("VBOX_USER_HOME", "VBOX_IPC_SOCKETID", "VBOX_MSI_INSTALL_PATH", "USER", "LOGNAME", "APPDATA", "USERPROFILE")


class VirtualBoxFailed(ProcessFailed):
    """VirtualBox did not do what it was told; `fault` is why."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class _NoAnswer(ProcessFailed):
    """Its time limit is over."""


class VBoxManage:
    """Runs VBoxManage."""

    def __init__(self, *program: str | Path) -> None:
        """`program` is where it is, or the beginning of a command that ends with it."""
        self._program = [str(word) for word in program]

    async def __call__(
        self, *arguments: str | Path | int, limit_s: float = LIMIT_S, despite_complaints: bool = False
    ) -> str:
        """What it prints to its standard output, maybe with warnings in front. Raises VirtualBoxFailed.

        It is called again where the fault is one that passes, all within `limit_s`. When we are cancelled, what was
        told last is done all the same, or may be where that takes more than a second. Where the service is stuck,
        and no machine needs it, it is ended, and is given the same time once more. `despite_complaints` lets only its
        exit status tell: a list goes on after them.
        """
        argv = [*self._program, *map(str, arguments)]
        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + limit_s
        for pause_s in chain(_PAUSES_S, repeat(_LONGEST_PAUSE_S)):
            try:
                return await self._once(argv, limit_s=round(ends_at_s - loop.time(), 1), lenient=despite_complaints)
            except VirtualBoxFailed as failed:
                if not failed.fault.passes or loop.time() + pause_s + _LEAST_TRY_S > ends_at_s:
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError  # the pauses have no end

    async def output(self, *arguments: str, limit_s: float, most_bytes: int, pass_fds: Sequence[int] = ()) -> bytes:
        """What a program in a guest prints, once. Raises VirtualBoxFailed, with GUEST_FAILED where the guest's failed.

        What is more than `most_bytes` is a failure, too. `pass_fds` keep their numbers.
        """
        argv = [*self._program, *arguments]
        done = await self._completed(argv, limit_s=limit_s, most_bytes=most_bytes, pass_fds=pass_fds)
        complaint = _text(done.stderr)
        if done.status != 0:
            is_its = _COMPLAINT.search(complaint) or done.status < 0
            raise _failed(done, [*argv[:_WORDS_SHOWN], "..."], fault(complaint) if is_its else Fault.GUEST_FAILED)
        return done.stdout

    async def _once(self, argv: Sequence[str], *, limit_s: float, lenient: bool) -> str:
        try:
            done = await self._completed(argv, limit_s=limit_s, most_bytes=_OUTPUT_LIMIT_BYTES)
        except _NoAnswer:
            if limit_s < _STUCK_S or not await to_thread_and_back(service.end_if_unneeded):
                raise
            done = await self._completed(argv, limit_s=limit_s, most_bytes=_OUTPUT_LIMIT_BYTES)
        said, complaint = _text(done.stdout), _text(done.stderr)
        if done.status != 0 or (_COMPLAINT.search(complaint) and not lenient):
            raise _failed(done, argv, fault(complaint or said))
        return said

    async def _completed(
        self, argv: Sequence[str], *, limit_s: float, most_bytes: int, pass_fds: Sequence[int] = ()
    ) -> Completed:
        call = complete(
            argv,
            limit_s=limit_s,
            environment=environment(),
            starts_daemons=True,
            most_bytes=most_bytes,
            pass_fds=pass_fds,
        )
        try:
            # VirtualBox's service stalls for ten seconds when a call is killed.
            return await to_its_end(call, limit_s=_CANCELLED_LIMIT_S)
        except ProcessFailed as error:
            if isinstance(error.__cause__, TimeoutError):
                raise _NoAnswer(f"{error}\n{STUCK}") from error
            raise


def _failed(done: Completed, argv: Sequence[str], why: Fault) -> VirtualBoxFailed:
    words = printable(_text(done.stderr)) or printable(_text(done.stdout)) or "(nothing)"
    return VirtualBoxFailed(f"status {done.status} from: {command_line(argv)}\nit said: {words}", why)


def _text(said: bytes) -> str:
    return said.decode(errors="replace").replace("\r\n", "\n")


def environment() -> Mapping[str, str]:
    """What VirtualBox's programs need of ours: whose profile it is."""
    return {name: os.environ[name] for name in _THEIRS if name in os.environ}


def facts(said: str) -> Mapping[str, str]:
    """What `--machinereadable` answers say, by name."""
    return {found[1]: found[2] or found[3] or "" for found in _FACT.finditer(said)}
