"""VMware Workstation, Fusion and Player as a hypervisor, by vmrun."""

import asyncio
import logging
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import HostDiskFailed, NoUsableHypervisor, TemporaryFailure
from vmwrapper.hypervisor.host import check_free_memory, host_processor
from vmwrapper.hypervisor.interface import MIB, Abilities, Leftover, Machine, MachineSpec, ProbeResult
from vmwrapper.hypervisor.vmware.called_guest import CalledGuest
from vmwrapper.hypervisor.vmware.vmrun import left
from vmwrapper.hypervisor.vmware.vmrun.disks import Parent, make_disk, make_overlay
from vmwrapper.hypervisor.vmware.vmrun.faults import Fault
from vmwrapper.hypervisor.vmware.vmrun.find import find_vmrun, products
from vmwrapper.hypervisor.vmware.vmrun.guest import GuestCalls
from vmwrapper.hypervisor.vmware.vmrun.image import IMAGE_SUFFIXES, base_image
from vmwrapper.hypervisor.vmware.vmrun.machine import VmrunMachine
from vmwrapper.hypervisor.vmware.vmrun.place import Place, place_of
from vmwrapper.hypervisor.vmware.vmrun.running import running
from vmwrapper.hypervisor.vmware.vmrun.settings import ROOT_DISK, SCRATCH_DISK, SCRATCH_UUID, Hardware
from vmwrapper.hypervisor.vmware.vmrun.snapshots import Snapshots
from vmwrapper.hypervisor.vmware.vmrun.vmrun import Vmrun, VmrunFailed
from vmwrapper.hypervisor.vmware.vmrun.vmx import vmx_text

log = logging.getLogger(__name__)

_NAMES = {"ws": "VMware Workstation", "fusion": "VMware Fusion", "player": "VMware Player"}
_TRIAL_LIMIT_S = 8.0
_VERSION = re.compile(r"vmrun version ([0-9][0-9.]{0,20}(?: build-[0-9]{1,12})?)")
_INSTALL = "Workstation Pro and Fusion Pro are free, and to be had from their maker's site"
_MODULES = Path("/dev/vmmon")
_SECTORS_PER_MIB = MIB // 512


class VmrunHypervisor:
    """See `Hypervisor`. What it is able to do is known once it was probed: it depends on the product."""

    name = "vmware"
    image_suffixes = IMAGE_SUFFIXES

    def __init__(self, program: Path | None = None, *, modules: Path = _MODULES) -> None:
        """`program` is vmrun, where it is not to be looked for; `modules` is there on Linux when VMware can run."""
        self._given = program
        self._modules = modules
        self._vmrun: Vmrun | None = None
        self._product = ""
        self._version = ""

    @property
    def abilities(self) -> Abilities:
        return Abilities(
            guest_commands=True,
            needs_login=True,
            shows_password=True,
            memory_snapshots=self._product in ("ws", "fusion"),
        )

    async def probe(self, clock: RunningClock) -> ProbeResult:
        program = await self._program()
        if program is None:
            return self._result(None, f"vmrun of VMware's is not installed: {_INSTALL}")
        try:
            async with clock.timeout(_TRIAL_LIMIT_S):
                return await self._try_out(program)
        except TimeoutError:
            return self._result(None, f"vmrun gave no answer within {_TRIAL_LIMIT_S:g} s: restart this computer")
        except TemporaryFailure as error:
            return self._result(None, f"VMware can't be tried out: {error}")

    async def _program(self) -> Path | None:
        return self._given or await asyncio.to_thread(find_vmrun)

    async def _try_out(self, program: Path) -> ProbeResult:
        version = await _version(program)
        complaints = []
        for product in products(sys.platform):
            vmrun = Vmrun(program, product)
            try:
                said = await vmrun("list", limit_s=_TRIAL_LIMIT_S / 2)
            except VmrunFailed as failed:
                complaints.append(f"{_NAMES[product]}: {failed}")
                continue
            if not said.startswith("Total running VMs:"):
                complaints.append(f"{_NAMES[product]}: vmrun does not list its machines")
            elif sys.platform == "linux" and not self._modules.exists():
                complaints.append(f"{_NAMES[product]}: {Fault.NO_MODULES.value}")
            else:
                self._vmrun, self._product, self._version = vmrun, product, f"{product} {version}"
                return self._result(f"{_NAMES[product]}, vmrun {version}", *_limits(product))
        return self._result(version, *complaints)

    def _result(self, version: str | None, *reasons: str) -> ProbeResult:
        return ProbeResult(
            name=self.name,
            version=version,
            usable=self._vmrun is not None,
            accelerated=self._vmrun is not None,  # VMware runs on no processor without virtualization
            reasons=reasons,
            abilities=self.abilities,
        )

    @asynccontextmanager
    async def machine(self, spec: MachineSpec, clock: RunningClock) -> AsyncIterator[Machine]:
        if self._vmrun is None:
            raise NoUsableHypervisor("VMware was not probed, or was found unusable")
        vmrun = self._vmrun
        check_free_memory(spec.memory_mib)
        image = await asyncio.to_thread(base_image, spec.image)
        hardware = Hardware(spec=spec, image=image)
        place = place_of(spec.identity, spec.directory)
        made_by = {
            "VMware version": self._version,
            "processor": host_processor(),
            "virtual hardware": hardware.digest(),
            "base image": f"{image.disk} {image.content}",
        }
        earlier = spec.snapshots if self.abilities.memory_snapshots else ()
        snapshots = Snapshots(vmrun, place, made_by=made_by, earlier=earlier)

        async def renew() -> None:
            snapshots.forget()
            await to_thread_and_back(_create, hardware, place)

        machine: VmrunMachine | None = None
        try:
            await _end_earlier(vmrun, place)
            if snapshots.all() and place.vmx.is_file():
                await to_thread_and_back(_sweep, place, True)  # noqa: FBT003  (a thread's)
            else:
                await renew()
            machine = VmrunMachine(
                vmrun, spec, place=place, snapshots=snapshots, renew=renew, guest=_guest(vmrun, place, spec, clock)
            )
            yield machine
        finally:
            try:
                if machine:
                    await machine.power_off()
            finally:
                await to_thread_and_back(_sweep, place, bool(snapshots.all()))

    async def leftovers(self) -> Sequence[Leftover]:
        program = await self._program()
        return await left.found([Vmrun(program, product) for product in products(sys.platform)]) if program else ()


def _limits(product: str) -> Sequence[str]:
    return ("VMware Player takes no snapshots: jobs have no checkpoints",) if product == "player" else ()


async def _version(program: Path) -> str:
    """As its usage has it, which it prints where it is told nothing, with some exit status."""
    try:
        said = await Vmrun(program)(limit_s=_TRIAL_LIMIT_S / 2)
    except VmrunFailed as failed:
        said = str(failed)
    found = _VERSION.search(said)
    return found[1] if found else "unknown"


def _guest(vmrun: Vmrun, place: Place, spec: MachineSpec, clock: RunningClock) -> CalledGuest | None:
    if spec.login is None:
        return None
    return CalledGuest(GuestCalls(vmrun, place.vmx, spec.login, clock, folder=spec.directory))


async def _end_earlier(vmrun: Vmrun, place: Place) -> None:
    """End what an earlier episode has left running, whose wrapper was killed."""
    if await asyncio.to_thread(running, place.vmx):
        log.warning("ending VMware's machine that is left over from an earlier episode")
        await left.remove(vmrun, place.vmx)


def _create(hardware: Hardware, place: Place) -> None:
    """Have the machine new, with an overlay of its base image."""
    spec, image = hardware.spec, hardware.image
    try:
        _sweep(place, keeps=False)
        place.folder.mkdir(mode=0o700)
        make_overlay(place.folder / ROOT_DISK, image.sectors, Parent(image.disk, image.content))
        if spec.scratch_mib:
            make_disk(place.folder / SCRATCH_DISK, spec.scratch_mib * _SECTORS_PER_MIB, serial=SCRATCH_UUID)
        place.vmx.write_text(vmx_text(hardware.values(place)), encoding="utf-8")
    except OSError as error:
        raise HostDiskFailed(f"can't write the machine's files: {error.strerror}: {error.filename}") from error


def _sweep(place: Place, keeps: bool) -> None:  # noqa: FBT001  (a thread's)
    """Remove all from the machine's directory but, where there are snapshots, its folder; there, locks of the dead."""
    with suppress(OSError):  # somebody has deleted the slot, or it can't be changed: then VMware says so
        for path in place.folder.parent.iterdir():
            if path == place.folder and keeps:
                continue
            _remove(path)
        if keeps:
            for lock in place.folder.glob("*.lck"):
                _remove(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
