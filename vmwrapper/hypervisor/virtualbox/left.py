"""What VirtualBox still has of machines of ours: those whose wrapper was killed, and whose slot nobody ran again.

All is told by `VBoxManage list`: unlike `showvminfo` it locks no machine, one of which might just be starting. What it
says may be hostile, as descriptions of machines are: but a machine's UUID tells whether a slot is really its own.
"""

import asyncio
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.interface import Leftover
from vmwrapper.hypervisor.virtualbox import registered, trial
from vmwrapper.hypervisor.virtualbox.place import Place, is_ours, slot_of
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage

_MACHINE = re.compile(r"^UUID: +([0-9a-f-]{36})\r?\nConfig file: +([^\r\n]+)", re.MULTILINE)
_DISK = re.compile(r"^UUID: +(\S+)\r?\nParent UUID: +(\S+)$(?:\r?\n.+)*?\r?\nLocation: +([^\r\n]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Disk:
    """One that VirtualBox knows; `parent` is the UUID of the disk that it is an overlay of."""

    uuid: str
    parent: str
    file: Path


async def found(manage: VBoxManage) -> Sequence[Leftover]:
    """See `Hypervisor.leftovers`."""
    said = await manage("list", "--long", "vms", despite_complaints=True)  # of each that is inaccessible
    machines = list(_machines(manage, said))
    disks = await _known_disks(manage)
    return [*machines, *_strays(manage, disks, {machine.files for machine in machines})]


def _machines(manage: VBoxManage, said: str) -> Iterator[Leftover]:
    for uuid, settings in dict.fromkeys(_MACHINE.findall(said)):
        file = Path(settings)
        slot = slot_of(uuid, file)
        if slot or (slot := trial.folder_of(file)):
            yield Leftover(
                what=f"VirtualBox's machine {one_line(file.parent.name)} of {one_line(str(slot))}{_state(uuid, file)}",
                slot=slot,
                files=file.parent.parent,
                remove=partial(_remove_machine, manage, Place(uuid, file.parent)),
            )


def _state(uuid: str, settings: Path) -> str:
    if any(_processes(Place(uuid, settings.parent))):
        return ", which runs"
    return "" if settings.exists() else ", whose files are gone"


def _processes(place: Place) -> Iterator[psutil.Process]:
    for name in (place.uuid, place.folder.name):  # a trial is started by its name
        yield from registered.processes(name)


async def _remove_machine(manage: VBoxManage, place: Place) -> None:
    disks = await _known_disks(manage)
    await asyncio.to_thread(registered.end_process, place.folder.name)
    await registered.remove(manage, place, _base(disks, place.folder))


def _strays(manage: VBoxManage, disks: Sequence[Disk], known: Collection[Path]) -> Iterator[Leftover]:
    """Disks in folders of ours none of which is a machine's."""
    folders = dict.fromkeys(folder for disk in disks if (folder := _folder_of(disk.file)))
    for folder in folders:
        if folder.parent not in known:
            slot = folder.parent.parent
            yield Leftover(
                what=f"VirtualBox's disks of machine {one_line(folder.name)} of {one_line(str(slot))}",
                slot=slot,
                files=folder.parent,
                remove=partial(_close, manage, folder),
            )


def _folder_of(file: Path) -> Path | None:
    """The machine's folder that a disk is in, where that is one of ours."""
    for folder in file.parents:
        if folder.parent.name == MACHINE_FOLDER and is_ours(folder.name):
            return folder
    return None


async def _close(manage: VBoxManage, folder: Path) -> None:
    await registered.close_disks(manage, folder, _base(await _known_disks(manage), folder))


def _base(disks: Sequence[Disk], folder: Path) -> Path | None:
    """What disks in a folder are overlays of, that is not there itself: it was registered for them."""
    parents = {disk.parent for disk in disks if disk.file.is_relative_to(folder)}
    bases = (disk.file for disk in disks if disk.uuid in parents and not disk.file.is_relative_to(folder))
    return next(bases, None)


async def _known_disks(manage: VBoxManage) -> list[Disk]:
    said = await manage("list", "hdds")
    return [Disk(uuid, parent, Path(file)) for uuid, parent, file in _DISK.findall(said)]
