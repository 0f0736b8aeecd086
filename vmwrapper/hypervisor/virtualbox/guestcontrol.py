"""Starts the agent in a guest of VirtualBox's, by `VBoxManage guestcontrol run`, once after each boot.

It is for nothing else: each call logs in anew, which takes seconds where the processor has no virtualization,
VirtualBox changes exit statuses, and a guest that was reverted may never answer again.

Source: VirtualBox's manual, "VBoxManage guestcontrol"; its src/VBox/Frontends/VBoxManage/VBoxManageGuestCtrl.cpp;
src/VBox/HostServices/GuestControl/VBoxGuestControlSvc.cpp, which logs that the guest's service has come.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import GuestError, GuestSilent, HostDiskFailed, MachineExited, ProcessFailed
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.refusals import Refusals
from vmwrapper.hypervisor.virtualbox.faults import Fault
from vmwrapper.hypervisor.virtualbox.place import Place
from vmwrapper.hypervisor.virtualbox.requests import AGENT
from vmwrapper.hypervisor.virtualbox.settings import ANSWERS, REQUESTS
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage, VirtualBoxFailed
from vmwrapper.hypervisor.virtualbox.vm_log import Sign, VmLog

_TRY_LIMIT_S = 60.0
_GRACE_S = 15.0
_ENDS_WITHIN_S = 3.0
_PAUSE_S = 0.3
_LOOK_S = 0.1
_UNTOLD_S = 60.0
_MOST_BYTES = 64 * 1024
# VirtualBox 7.2 takes all words for arguments, older ones the first for argv[0]: `env env …` means the same as `env …`.
_PROGRAM = ("--exe", "/usr/bin/env", "--wait-stdout", "--wait-stderr")
_START = f"""\
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
home=/run/.vmwrapper-agent
in=$home/in out=$home/out
[ ! -e $home/started ] || exit 0
mkdir -p $in $out
mount -t vboxsf -o ro {REQUESTS} $in && mount -t vboxsf {ANSWERS} $out || exit 1
export home in out
(exec </dev/null >/dev/null 2>&1; . $in/{AGENT}) &
true >$home/started
"""
"""Older Guest Additions take no more than 1 KiB."""
_IN_A_SESSION = 'setsid sh -c "$0" & wait $!'
"""A sudo that gives its programs a terminal takes that away at its end, which hangs up on all that still run in it."""
log = logging.getLogger(__name__)


class GuestControl:
    """Of the guest of one machine."""

    def __init__(self, manage: VBoxManage, place: Place, login: Login, clock: RunningClock) -> None:
        self._manage = manage
        self._place = place
        self._login = login
        self._clock = clock

    async def start_agent(self, *, limit_s: float) -> None:
        """Have it run; tried again and again, since a guest that boots refuses.

        Raises GuestSilent after `limit_s`, GuestError, MachineExited, JobError where the guest lets us not log in.
        """
        complaint = "it was not asked"
        refusals = Refusals(self._login.user, self._clock)
        try:
            async with self._clock.timeout(limit_s):
                await self._told_of_service()
                while True:
                    try:
                        return await self._start_agent()
                    except VirtualBoxFailed as failed:
                        complaint = str(failed)
                        _judge(failed, refusals)
                    except ProcessFailed as failed:  # it gave no answer
                        complaint = str(failed)
                    await self._clock.sleep(_PAUSE_S)
        except TimeoutError as error:
            raise GuestSilent(f"the guest took no command within {limit_s:g} s; the last try: {complaint}") from error

    async def _told_of_service(self) -> None:
        """Wait until the log tells of the guest's service, but not for ever: it may be too old for that.

        A call that comes just before it, VirtualBox gives up after 30 s only.
        """
        until_s = self._clock.elapsed_s + _UNTOLD_S
        vm_log = VmLog(self._place.log)
        while not any(entry.sign is Sign.SERVES for entry in vm_log.look()):
            if self._clock.elapsed_s > until_s:
                log.debug("VBox.log does not tell of the guest's service, which is asked now")
                return
            await self._clock.sleep(_LOOK_S)

    async def _start_agent(self) -> None:
        start = ["sh", "-c", _START]
        if self._login.user != "root":
            start = ["sudo", "-n", "--", "sh", "-c", _IN_A_SESSION, _START]
        words = ("--timeout", str(round(_TRY_LIMIT_S * 1000)), "--", "env", *start)
        with self._password() as (file, descriptors):
            login = ("--username", self._login.user, "--passwordfile", file)
            call = self._manage.output(
                *("guestcontrol", self._place.uuid, "run", *login, *_PROGRAM, *words),
                limit_s=_TRY_LIMIT_S + _GRACE_S,
                most_bytes=_MOST_BYTES,
                pass_fds=descriptors,
            )
            # The agent may answer, and so end our wait, before the call that has started it ends.
            await to_its_end(call, limit_s=_ENDS_WITHIN_S)

    @contextmanager
    def _password(self) -> Iterator[tuple[str, Sequence[int]]]:
        """A file with the password, which others can't find; and the descriptors that it takes to be read."""
        password = self._login.password.encode()
        if not hasattr(os, "memfd_create"):
            try:
                with tempfile.NamedTemporaryFile(dir=self._place.folder) as file:
                    file.write(password)
                    file.flush()
                    yield file.name, ()
            except OSError as error:
                raise HostDiskFailed(f"can't write a file in {self._place.folder}: {error.strerror}") from error
            return
        descriptor = os.memfd_create("password")
        try:
            os.write(descriptor, password)
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)


def _judge(failed: VirtualBoxFailed, refusals: Refusals) -> None:
    """Raise where there is no use in trying again."""
    if failed.fault is Fault.WRONG_STATE:
        raise MachineExited(f"the machine does not run: {failed}") from failed
    if failed.fault is Fault.GUEST_FAILED:
        raise GuestError(
            f"the guest can't start our agent, for which it needs to be root, and the module vboxsf: {failed}"
        ) from failed
    if failed.fault is Fault.LOGIN_REFUSED:
        refusals.one_more(failed)
    else:
        refusals.end()
