"""QEMU as a hypervisor: found, tried out, and asked for machines."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from vmwrapper.clock import RunningClock
from vmwrapper.errors import NoUsableHypervisor, ProcessFailed, TemporaryFailure
from vmwrapper.folders import cache_folder
from vmwrapper.hypervisor.host import check_free_memory, host_processor
from vmwrapper.hypervisor.interface import MIB, Abilities, Leftover, Machine, MachineSpec, ProbeResult
from vmwrapper.hypervisor.qemu import accelerator, orphans
from vmwrapper.hypervisor.qemu.accelerator import Accelerator, Host
from vmwrapper.hypervisor.qemu.base_image import IMAGE_SUFFIXES, open_base_image
from vmwrapper.hypervisor.qemu.command import ROOT, SCRATCH, Qemu, hardware_digest
from vmwrapper.hypervisor.qemu.files import machine_files
from vmwrapper.hypervisor.qemu.layers import Disks
from vmwrapper.hypervisor.qemu.machine import QemuMachine
from vmwrapper.hypervisor.qemu.snapshots import Snapshots
from vmwrapper.hypervisor.remembered import identity, keep, recall
from vmwrapper.process import complete, run

_OLDEST_VERSION = (7, 0)
_VERSION = re.compile(r"\d+\.\d+(\.\d+)*")
_HELP_LIMIT_S = 5.0
_INSTALL = "on Debian or Ubuntu: apt-get install qemu-system-x86 qemu-utils"


class QemuHypervisor:
    """See `Hypervisor`."""

    name = "qemu"
    image_suffixes = IMAGE_SUFFIXES
    abilities = Abilities(guest_commands=True, memory_snapshots=True, live_snapshots=True)

    def __init__(self) -> None:
        self._qemu: Qemu | None = None

    async def probe(self, clock: RunningClock) -> ProbeResult:
        system, img = shutil.which("qemu-system-x86_64"), shutil.which("qemu-img")
        if system is None or img is None:
            return self._result(None, f"{'qemu-img' if system else 'QEMU'} is not installed; {_INSTALL}")
        try:
            version, sandbox = await _facts(Path(system), clock)
            major, minor = map(int, version.split(".")[:2])
            if (major, minor) < _OLDEST_VERSION:
                return self._result(version, f"QEMU is too old: 7.0 or newer is needed; {_INSTALL}")
            host = Host(run=partial(complete, clock=clock))
            chosen, verdicts = await accelerator.best(Path(system), cache=cache_folder(), host=host)
        except TemporaryFailure as error:
            return self._result(None, f"QEMU can't be tried out: {error}")
        self._qemu = Qemu(
            system=Path(system), version=(major, minor), img=Path(img), accelerator=chosen, sandbox=sandbox
        )
        return self._result(version, *(verdict.reason for verdict in verdicts))

    def _result(self, version: str | None, *reasons: str) -> ProbeResult:
        return ProbeResult(
            name=self.name,
            version=version,
            usable=self._qemu is not None,
            accelerated=self._qemu is not None and self._qemu.accelerator is not Accelerator.TCG,
            reasons=reasons,
            abilities=self.abilities,
        )

    @asynccontextmanager
    async def machine(self, spec: MachineSpec, clock: RunningClock) -> AsyncIterator[Machine]:
        if self._qemu is None:
            raise NoUsableHypervisor("QEMU was not probed, or was found unusable")
        check_free_memory(spec.memory_mib)
        image = await open_base_image(spec.image, clock, qemu_img=self._qemu.img, cache=cache_folder())
        await asyncio.to_thread(orphans.end, spec.identity)
        sizes = {ROOT: image.virtual_size, SCRATCH: spec.scratch_mib * MIB}
        bases = [ROOT] if image.disk else []
        disks = Disks(spec.directory, sizes, bases=bases, qemu_img=self._qemu.img)
        snapshots = Snapshots(spec.directory, disks, _made_by(self._qemu, spec, disks), spec.snapshots)
        snapshots.sweep()
        try:
            async with machine_files(image, spec) as files:
                machine = QemuMachine(
                    self._qemu, spec, image=image, files=files, disks=disks, snapshots=snapshots, clock=clock
                )
                try:
                    yield machine
                finally:
                    await machine.power_off()
        finally:
            disks.close()
            snapshots.sweep()

    async def leftovers(self) -> Sequence[Leftover]:
        return await asyncio.to_thread(orphans.found)


def _made_by(qemu: Qemu, spec: MachineSpec, disks: Disks) -> dict[str, str]:
    """What a machine must have in common with one whose memory it gets."""
    return {
        "QEMU version": "{}.{}".format(*qemu.version),
        "processor": qemu.accelerator.cpu_model if qemu.accelerator is Accelerator.TCG else host_processor(),
        "virtual hardware": hardware_digest(qemu, spec, disks),
    }


async def _facts(system: Path, clock: RunningClock) -> tuple[str, bool]:
    """QEMU's version, and whether it can be sandboxed. Raises ProcessFailed where it doesn't start."""
    file, question = cache_folder() / "qemu.json", identity(system)
    match recall(file, question):
        case [str(version), bool(sandbox)] if _VERSION.fullmatch(version):
            return version, sandbox
    said = (await run([str(system), "-help"], limit_s=_HELP_LIMIT_S, clock=clock)).decode(errors="replace")
    found = _VERSION.search(said)
    if found is None:
        raise ProcessFailed(f"{system} doesn't tell its version")
    facts = found[0], "\n-sandbox" in said
    keep(file, question, facts)
    return facts
