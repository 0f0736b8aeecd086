"""A machine's place among the other programs of its host."""

import os
from pathlib import Path

import psutil
import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import HostMemoryShort
from vmwrapper.hypervisor.interface import MIB, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor

pytestmark = pytest.mark.qemu


def spec(image: Path, directory: Path, *, memory_mib: int = 256, niceness: int | None = None) -> MachineSpec:
    return MachineSpec(
        identity=MachineIdentity("test", "place", str(directory)),
        image=image,
        directory=directory,
        memory_mib=memory_mib,
        cpus=1,
        scratch_mib=0,
        niceness=niceness,
    )


@pytest.mark.parametrize(("wanted", "given"), [(None, os.nice(0)), (19, 19), (-20, os.nice(0))])
async def test_priority(default_image: Path, tmp_path: Path, wanted: int | None, given: int) -> None:
    """In our session, too: in another one, Linux would weigh it against all that is in ours as an equal."""
    hypervisor = QemuHypervisor()
    await hypervisor.probe(RunningClock())
    async with hypervisor.machine(spec(default_image, tmp_path, niceness=wanted), RunningClock()) as machine:
        await machine.power_on()
        assert machine.working_set_bytes() > 10 * MIB
        [qemu] = [child for child in psutil.Process().children() if child.name().startswith("qemu-system")]
        assert qemu.nice() == given
        assert os.getsid(qemu.pid) == os.getsid(0)
        assert os.getpgid(qemu.pid) == os.getpgid(0)
    assert machine.working_set_bytes() == 0


async def test_memory_that_others_have_just_now(default_image: Path, tmp_path: Path) -> None:
    hypervisor = QemuHypervisor()
    await hypervisor.probe(RunningClock())
    all_of_it_mib = psutil.virtual_memory().total // MIB
    with pytest.raises(HostMemoryShort, match=f"{all_of_it_mib} MiB of memory, and just now"):
        async with hypervisor.machine(spec(default_image, tmp_path, memory_mib=all_of_it_mib), RunningClock()):
            pass
