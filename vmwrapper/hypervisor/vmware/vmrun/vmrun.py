"""vmrun, the command of VMware's VIX: each call a program, each answer what it printed.

Source: VMware's "Using vmrun to Control Virtual Machines", and vmrun's own usage. Its exit status is 0 or 255, and has
been reported to be 0 for failures: so a line that begins with "Error:" is one, whatever the status says.
"""

import asyncio
import os
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path

from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import JobError, ProcessFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.vmware.vmrun.faults import Fault, complaint, fault
from vmwrapper.process import complete

LIMIT_S = 60.0
"""Of a call and its retries."""
_PAUSES_S = (0.1, 0.2, 0.4, 0.8)
_LONGEST_PAUSE_S = 1.0
_LEAST_TRY_S = 1.0
_CANCELLED_LIMIT_S = 1.0
_OUTPUT_LIMIT_BYTES = 1 << 20
_SECRET = "(password)"  # noqa: S105  (what is shown instead)
STUCK = "vmrun is stuck: a window of VMware's may wait for an answer; if it goes on so, restart this computer"
_THEIRS = ("USER", "LOGNAME", "DISPLAY", "XAUTHORITY", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "USERPROFILE")


class VmrunFailed(ProcessFailed):
    """vmrun did not do what it was told; `fault` is why."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class Vmrun:
    """Runs vmrun for one product."""

    def __init__(self, program: str | Path, product: str | None = None) -> None:
        """`product` is as its option -T has it."""
        self._program = str(program)
        self._flags = ("-T", product) if product else ()

    async def __call__(self, *words: str | Path, login: Login | None = None, limit_s: float = LIMIT_S) -> str:
        """What it prints, told a verb and its words. Raises VmrunFailed; ProcessFailed where it does not end.

        It is called again where the fault is one that passes, all within `limit_s`. When we are cancelled, what was
        told last is done all the same, or may be where that takes more than a second. With `login` it acts in the
        guest, whose password is then in the list of the host's processes: vmrun reads it nowhere else.
        """
        rest = [str(word) for word in words]
        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + limit_s
        for pause_s in chain(_PAUSES_S, repeat(_LONGEST_PAUSE_S)):
            try:
                return await self._once(rest, login, limit_s=round(ends_at_s - loop.time(), 1))
            except VmrunFailed as failed:
                if not failed.fault.passes or loop.time() + pause_s + _LEAST_TRY_S > ends_at_s:
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError  # the pauses have no end

    async def _once(self, rest: Sequence[str], login: Login | None, *, limit_s: float) -> str:
        argv = [self._program, *self._flags, *_guest_flags(login, secret=False), *rest]
        shown = shlex.join([self._program, *self._flags, *_guest_flags(login, secret=True), *rest])
        if any("\0" in word for word in argv):
            raise JobError("a name, user or password of the job has a zero byte")
        call = complete(
            argv,
            limit_s=limit_s,
            environment=environment(),
            starts_daemons=True,
            most_bytes=_OUTPUT_LIMIT_BYTES,
        )
        try:
            done = await to_its_end(call, limit_s=_CANCELLED_LIMIT_S)
        except ProcessFailed as error:
            if isinstance(error.__cause__, TimeoutError):
                raise ProcessFailed(f"no end after {limit_s:g} s: {shown}\n{STUCK}") from None  # it has the password
            raise
        said = _text(done.stdout) + _text(done.stderr)
        wrong = complaint(said)
        if done.status == 0 and wrong is None:
            return said
        meant = fault(wrong or said)
        words = printable(said) or "(nothing)"
        raise VmrunFailed(f"status {done.status} from: {shown}\nit said: {words}\n{meant.value}", meant)


def _guest_flags(login: Login | None, *, secret: bool) -> Sequence[str]:
    return ("-gu", login.user, "-gp", _SECRET if secret else login.password) if login else ()


def _text(said: bytes) -> str:
    return said.decode(errors="replace").replace("\r\n", "\n")


def environment() -> Mapping[str, str]:
    """What VMware's programs need of ours: whose profile and screen it is."""
    return {name: os.environ[name] for name in _THEIRS if name in os.environ}
