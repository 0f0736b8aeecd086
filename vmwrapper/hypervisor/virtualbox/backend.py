"""VirtualBox as a hypervisor: found, tried out, and asked for machines."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import HostDiskFailed, NoUsableHypervisor, ProcessFailed, TemporaryFailure
from vmwrapper.folders import cache_folder, remove_tree
from vmwrapper.hypervisor.host import check_free_memory, host_processor
from vmwrapper.hypervisor.interface import MIB, Abilities, Leftover, Machine, MachineSpec, ProbeResult
from vmwrapper.hypervisor.virtualbox import left, registered, spare, trial
from vmwrapper.hypervisor.virtualbox.faults import Fault
from vmwrapper.hypervisor.virtualbox.find import find_vboxmanage
from vmwrapper.hypervisor.virtualbox.guest import VirtualBoxGuest
from vmwrapper.hypervisor.virtualbox.guestcontrol import GuestControl
from vmwrapper.hypervisor.virtualbox.image import IMAGE_SUFFIXES, check_image
from vmwrapper.hypervisor.virtualbox.machine import VirtualBoxMachine
from vmwrapper.hypervisor.virtualbox.place import Place, place_of
from vmwrapper.hypervisor.virtualbox.requests import Requests
from vmwrapper.hypervisor.virtualbox.settings import Hardware
from vmwrapper.hypervisor.virtualbox.snapshots import Snapshots
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage, VirtualBoxFailed

log = logging.getLogger(__name__)

_OLDEST_VERSION = (7, 0)
_TRIAL_LIMIT_S = 7.5  # of a probe's 10; what was begun must be ended, too
_VERSION = re.compile(r"^(\d+\.\d+\.\d+)", re.MULTILINE)
_MOST_AROUND_BYTES = 64 * MIB
_INSTALL = "it is to be had from its maker's site, or as a package of this computer's system"


class VirtualBoxHypervisor:
    """See `Hypervisor`."""

    name = "virtualbox"
    image_suffixes = IMAGE_SUFFIXES
    abilities = Abilities(
        guest_commands=True,
        needs_login=True,
        memory_snapshots=True,
        live_snapshots=True,
        screen=True,
        cpu_cap=True,
        shared_folder=True,
    )

    def __init__(self, *, prefix: Sequence[str] = ()) -> None:
        """`prefix` is the beginning of a command that runs VirtualBox's programs elsewhere, as in a chroot."""
        self._prefix = prefix
        self._manage: VBoxManage | None = None
        self._headless: Sequence[str] = ()
        self._version = ""
        self._is_interpreted = False

    async def probe(self, clock: RunningClock) -> ProbeResult:
        program = await asyncio.to_thread(find_vboxmanage)
        if program is None:
            return self._result(None, f"VirtualBox is not installed; {_INSTALL}")
        try:
            async with clock.timeout(_TRIAL_LIMIT_S):
                return await self._try_out(program, clock)
        except TimeoutError:
            return self._result(None, f"VirtualBox gave no answer within {_TRIAL_LIMIT_S:g} s: restart this computer")
        except TemporaryFailure as error:
            return self._result(None, f"VirtualBox can't be tried out: {error}")

    async def _try_out(self, program: Path, clock: RunningClock) -> ProbeResult:
        manage = VBoxManage(*self._prefix, program)
        found = _VERSION.search(await manage("--version"))
        version = found[1] if found else "unknown"
        if found is None or tuple(map(int, version.split(".")[:2])) < _OLDEST_VERSION:
            return self._result(version, f"VirtualBox is too old: 7.0 or newer is needed; {_INSTALL}")
        headless = [*self._prefix, str(program.with_name(program.name.replace("VBoxManage", "VBoxHeadless")))]
        verdict = await trial.verdict(manage, headless, program, clock, cache=cache_folder())
        if verdict.works:
            self._manage, self._headless, self._version = manage, headless, version
            self._is_interpreted = verdict.is_interpreted
        pack = f"it has its extension pack {verdict.extension_pack}, which is not needed"
        return self._result(version, *verdict.reasons, *[pack] * bool(verdict.extension_pack))

    def _result(self, version: str | None, *reasons: str) -> ProbeResult:
        return ProbeResult(
            name=self.name,
            version=version,
            usable=self._manage is not None,
            accelerated=self._manage is not None and not self._is_interpreted,
            reasons=reasons,
            abilities=self.abilities,
        )

    @asynccontextmanager
    async def machine(self, spec: MachineSpec, clock: RunningClock) -> AsyncIterator[Machine]:
        if self._manage is None:
            raise NoUsableHypervisor("VirtualBox was not probed, or was found unusable")
        manage = self._manage
        check_free_memory(spec.memory_mib)
        disk_format = await asyncio.to_thread(check_image, spec.image)
        hardware = Hardware(spec=spec, disk_format=disk_format, is_interpreted=self._is_interpreted)
        place = place_of(spec.identity, spec.directory)
        made_by = {
            "VirtualBox version": ".".join(self._version.split(".")[:2]),
            "processor": host_processor(),
            "virtual hardware": hardware.digest(),
        }
        snapshots = Snapshots(manage, place, made_by=made_by, earlier=spec.snapshots)
        guest = _guest(manage, place, spec, clock)

        async def have() -> None:
            await _have(manage, hardware, place, snapshots)
            await to_thread_and_back(guest.begin)

        async def renew() -> None:
            snapshots.forget()
            await registered.remove(manage, place, spec.image)
            await have()

        try:
            await have()
            machine = VirtualBoxMachine(
                manage,
                self._headless,
                spec,
                place=place,
                snapshots=snapshots,
                renew=renew,
                guest=guest,
            )
            try:
                yield machine
            finally:
                await machine.power_off()
        finally:
            await registered.remove(manage, place, spec.image)
            await to_thread_and_back(_sweep, place, spec.shared, bool(snapshots.all()))

    async def leftovers(self) -> Sequence[Leftover]:
        program = await asyncio.to_thread(find_vboxmanage)
        return await left.found(VBoxManage(*self._prefix, program)) if program else ()


def _guest(manage: VBoxManage, place: Place, spec: MachineSpec, clock: RunningClock) -> VirtualBoxGuest:
    login = spec.login
    most_bytes = (spec.memory_mib + spec.scratch_mib) * MIB + _MOST_AROUND_BYTES
    return VirtualBoxGuest(
        GuestControl(manage, place, login, clock) if login else None,
        Requests(place, clock, most_bytes=most_bytes),
    )


async def _have(manage: VBoxManage, hardware: Hardware, place: Place, snapshots: Snapshots) -> None:
    """Have the machine registered: as an earlier episode has left it where that left snapshots, else anew.

    Snapshots are forgotten only where the machine can't be had without that, neither by its settings nor by the last
    good ones.
    """
    remedies: Iterator[Callable[[], None]] = iter([partial(spare.restore_settings, place), snapshots.forget])
    while snapshots.all():
        try:
            await _have_by(registered.find, manage, hardware, place, keeps=True)
        except VirtualBoxFailed as failed:
            if failed.fault is Fault.NO_SPACE:
                raise HostDiskFailed(str(failed)) from failed
            if failed.fault.passes:
                raise
            log.warning("VirtualBox does not give us the machine as an earlier episode left it: %s", failed)
            await to_thread_and_back(next(remedies))
        else:
            return
    await _have_by(registered.create, manage, hardware, place, keeps=False)


async def _have_by(
    way: Callable[[VBoxManage, Hardware, Place], Awaitable[None]],
    manage: VBoxManage,
    hardware: Hardware,
    place: Place,
    *,
    keeps: bool,
) -> None:
    """Have the machine registered. What an earlier episode left in VirtualBox is removed only if it is in the way.

    `keeps` has its files stay, which snapshots need.
    """
    await to_thread_and_back(_sweep, place, hardware.spec.shared, keeps)
    try:
        await way(manage, hardware, place)
    except VirtualBoxFailed as failed:
        log.debug("Something may be in the way: %s", failed)
        try:
            await registered.remove(manage, place, hardware.spec.image)
        except VirtualBoxFailed as error:  # it says nothing of the machine, which must not be forgotten for it
            raise ProcessFailed(str(error)) from failed
        if failed.fault is Fault.NO_SPACE:
            raise HostDiskFailed(str(failed)) from failed
        await to_thread_and_back(_sweep, place, hardware.spec.shared, keeps)
        await way(manage, hardware, place)


def _sweep(place: Place, shared: Path | None, keeps: bool) -> None:  # noqa: FBT001  (a thread's)
    """Remove all from the machine's directory but what the guest shares and, where there are snapshots, its folder."""
    with suppress(OSError):  # somebody has deleted the slot, or it can't be changed: then VirtualBox says so
        for path in place.folder.parent.iterdir():
            if path == shared or (path == place.folder and keeps):
                continue
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
