"""A QEMU that somebody stops from outside."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import MachineExited
from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor

pytestmark = pytest.mark.qemu


async def test_it_is_told_from_a_silent_guest_and_ended(tmp_path: Path, default_image: Path) -> None:
    hypervisor = QemuHypervisor()
    await hypervisor.probe()
    spec = MachineSpec(
        identity=MachineIdentity("test", "stopped", str(tmp_path)),
        image=default_image,
        directory=tmp_path,
        memory_mib=128,
        cpus=1,
        scratch_mib=0,
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=60)
        [process] = psutil.Process().children()
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(MachineExited, match=r"stopped from outside, by a signal SIGSTOP.*within 0\.2 s"):
            await machine.guest.run(["true"], limit_s=0.2)
        with pytest.raises(MachineExited, match="killed by signal 9"):
            await machine.pause()
    assert not process.is_running()
