"""What QEMU is told of the processors."""

from pathlib import Path

import pytest

from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.accelerator import Accelerator
from vmwrapper.hypervisor.qemu.command import Qemu, _accel


@pytest.mark.parametrize(
    ("accelerator", "version", "cpus", "expected"),
    [
        (Accelerator.TCG, (7, 2), 2, "tcg,thread=single"),
        (Accelerator.TCG, (8, 0), 255, "tcg,thread=single"),
        (Accelerator.TCG, (8, 1), 2, "tcg"),
        (Accelerator.TCG, (10, 0), 2, "tcg"),
        (Accelerator.TCG, (7, 2), 1, "tcg"),
        (Accelerator.KVM, (7, 2), 2, "kvm"),
    ],
)
def test_processors_take_turns_where_else_their_guest_may_hang(
    accelerator: Accelerator, version: tuple[int, int], cpus: int, expected: str
) -> None:
    qemu = Qemu(system=Path("/q"), version=version, img=Path("/i"), accelerator=accelerator, sandbox=True)
    identity = MachineIdentity("p", "r", "/s")
    spec = MachineSpec(
        identity=identity, image=Path("/i"), directory=Path("/s"), memory_mib=64, cpus=cpus, scratch_mib=0
    )
    assert _accel(qemu, spec) == expected
