"""The disks of a machine that is not registered, brought in order before VirtualBox is asked to take it back.

VirtualBox keeps in a list which disk is built on which. Where a base image came to it by another machine than ours the
list is in that one's settings, or in VirtualBox's own, and is gone with them; and it is written a moment after the
disks were changed, a moment in which somebody may die. But each disk says in its header what it is built on. So the
list in the machine's settings is made anew from what is there.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from uuid import UUID

from lxml import etree
from lxml.etree import _Element as Element

from vmwrapper.durable import write_durably
from vmwrapper.errors import HostDiskFailed
from vmwrapper.hypervisor.virtualbox.place import Place

_XMLNS = {"v": "http://www.virtualbox.org/"}
_SIGNATURE_AT, _SIGNATURE = 0x40, b"\x7f\x10\xda\xbe"
_UUID_AT, _UUID_BYTES = 0x188, 16  # the disk's, one that changes with its content, and its parent's
_HEADER_BYTES = _UUID_AT + 3 * _UUID_BYTES
_NONE = UUID(int=0)  # the parent of a disk that is built on none


@dataclass(frozen=True, slots=True)
class _Disk:
    """One of the machine's own, all of which are VDI."""

    uuid: UUID
    parent: UUID
    """Of the disk that this one is built on."""
    file: Path


def files(folder: Path) -> list[Path]:
    """The machine's own disks, in a folder like the machine's."""
    return [*folder.glob("*.vdi"), *folder.glob("Snapshots/*.vdi")]


def put_in_order(place: Place, base: Path, disk_format: str | None) -> None:
    """Give disks their names back that the settings still ask for, and list in these which is built on which.

    `disk_format` is the base's, None for a CD. Settings that make no sense stay as they are: VirtualBox says what is
    wrong with them. Raises HostDiskFailed for what can't be read or written.
    """
    machine = _machine(place.settings)
    if machine is None:
        return
    here = _by_uuid(files(place.folder))
    _link_missing(place, here, _attached(machine, "HardDisk"))
    for old in machine.findall("v:MediaRegistry", _XMLNS):
        machine.remove(old)
    registry = _element(machine, "MediaRegistry")
    _list_disks(registry, machine, place, here, base={"location": str(base), "format": disk_format or ""})
    _list_cds(registry, machine, base)
    write_durably(place.settings, etree.tostring(machine.getroottree(), xml_declaration=True, encoding="UTF-8"))


def sweep(place: Place) -> None:
    """Remove disks and memory that neither the settings nor the last good ones need: VirtualBox has forgotten them."""
    if (machine := _machine(place.settings)) is None:
        return
    good = _machine(place.good_settings)
    machines = [machine] if good is None else [machine, good]
    here = _by_uuid(files(place.folder))
    needed = set(_with_ancestors(chain.from_iterable(_attached(machine, "HardDisk") for machine in machines), here))
    states = {element.get("stateFile", "").rsplit("/", 1)[-1] for machine in machines for element in machine.iter()}
    unneeded = [disk.file for uuid, disk in here.items() if uuid not in needed]
    unneeded += [state for state in place.folder.glob("Snapshots/*.sav") if state.name not in states]
    for file in unneeded:
        with suppress(OSError):
            file.unlink()


def _machine(settings: Path) -> Element | None:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    try:
        return etree.fromstring(settings.read_bytes(), parser).find("v:Machine", _XMLNS)
    except (FileNotFoundError, etree.XMLSyntaxError):
        return None
    except OSError as error:
        raise HostDiskFailed(f"can't read {settings}: {error.strerror}") from error


def _by_uuid(paths: Iterable[Path]) -> dict[UUID, _Disk]:
    return {disk.uuid: disk for disk in map(_read, paths) if disk}


def _read(file: Path) -> _Disk | None:
    """What a disk's header says. Source: VirtualBox's src/VBox/Storage/VDICore.h."""
    try:
        with file.open("rb") as opened:
            header = opened.read(_HEADER_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:  # it counts as one that is there
        raise HostDiskFailed(f"can't read {file}: {error.strerror}") from error
    if len(header) < _HEADER_BYTES or not header.startswith(_SIGNATURE, _SIGNATURE_AT):
        return None
    uuid, _, parent = (UUID(bytes_le=header[at : at + _UUID_BYTES]) for at in range(_UUID_AT, _HEADER_BYTES, 16))
    return _Disk(uuid, parent, file)


def _attached(machine: Element, kind: str) -> Iterator[UUID]:
    """What is attached to the machine, or was when a snapshot was taken."""
    for image in machine.iterfind(f".//v:AttachedDevice[@type='{kind}']/v:Image", _XMLNS):
        with suppress(ValueError):
            yield UUID(image.get("uuid", ""))


def _with_ancestors(uuids: Iterable[UUID], disks: Mapping[UUID, _Disk]) -> Iterator[UUID]:
    for uuid in uuids:
        seen: set[UUID] = set()
        while uuid in disks and uuid not in seen:
            yield uuid
            seen.add(uuid)
            uuid = disks[uuid].parent  # noqa: PLW2901


def _link_missing(place: Place, here: dict[UUID, _Disk], needed: Iterable[UUID]) -> None:
    spare = _by_uuid(files(place.second_names))
    for uuid in _with_ancestors(needed, {**spare, **here}):
        if uuid not in here:
            file = place.folder / spare[uuid].file.relative_to(place.second_names)
            try:
                os.link(spare[uuid].file, file)
            except OSError as error:
                raise HostDiskFailed(f"can't make {file}: {error.strerror}") from error
            here[uuid] = _Disk(uuid, spare[uuid].parent, file)


def _list_disks(
    registry: Element, machine: Element, place: Place, disks: Mapping[UUID, _Disk], *, base: Mapping[str, str]
) -> None:
    """As VirtualBox does: each disk within the one that it is built on."""
    listed = _element(registry, "HardDisks")
    elements = {_NONE: listed}
    for attached in _attached(machine, "HardDisk"):
        for uuid in reversed(list(_with_ancestors([attached], disks))):
            parent = disks[uuid].parent
            if parent not in elements:  # it is not one of ours
                elements[parent] = _element(listed, "HardDisk", uuid=f"{{{parent}}}", type="Normal", **base)
            if uuid not in elements:
                words = {"location": disks[uuid].file.relative_to(place.folder).as_posix(), "format": "VDI"}
                words |= {"type": "Normal"} if parent == _NONE else {}
                elements[uuid] = _element(elements[parent], "HardDisk", uuid=f"{{{uuid}}}", **words)


def _list_cds(registry: Element, machine: Element, base: Path) -> None:
    if cds := set(_attached(machine, "DVD")):
        images = _element(registry, "DVDImages")
        for uuid in cds:
            _element(images, "Image", uuid=f"{{{uuid}}}", location=str(base))


def _element(parent: Element, name: str, **attributes: str) -> Element:
    return etree.SubElement(parent, f"{{{_XMLNS['v']}}}{name}", attributes)
