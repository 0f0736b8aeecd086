"""A QEMU that somebody stops from outside."""

import os
import signal

import psutil
import pytest

from vmwrapper.errors import MachineExited
from vmwrapper.hypervisor.interface import Machine

pytestmark = pytest.mark.qemu


async def test_it_is_told_from_a_silent_guest_and_ended(machine: Machine) -> None:
    [process] = psutil.Process().children()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(MachineExited, match=r"stopped from outside, by a signal SIGSTOP.*within 0\.2 s"):
        await machine.guest.run(["true"], limit_s=0.2)
    with pytest.raises(MachineExited, match="killed by signal 9"):
        await machine.pause()
    assert not process.is_running()
