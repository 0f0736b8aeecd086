"""The disk that a machine boots from, and what is taken from the .vmx file beside it.

A .vmx file is a download, perhaps a hostile one: in it, shared folders, serial ports and disks may be any file of the
host's. So of its many settings only those few that a guest's operating system depends on are taken.

Source: VMware's Virtual Disk Format 5.0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.errors import JobError
from vmwrapper.hypervisor.image_format import DiskFile, ImageFormat, UnusableDisk, image_format
from vmwrapper.hypervisor.vmware.vmrun.vmx import vmx_values

IMAGE_SUFFIXES = (".vmx", ".vmdk")
_MOST_VMX_BYTES = 256 * 1024
_SECTOR = 512
_COMPRESSED = 1 << 16
_CONVERT = "convert it with `qemu-img convert -O vmdk -o subformat=monolithicSparse OLD NEW.vmdk`"
_CONTENT = re.compile(r'^[ \t]*CID[ \t]*=[ \t]*"?([0-9A-Fa-f]{1,8})"?[ \t]*$', re.MULTILINE)
_ADAPTER = re.compile(r'^[ \t]*ddb\.adapterType[ \t]*=[ \t]*"([A-Za-z]{1,20})"[ \t]*$', re.MULTILINE)
_FILE_NAME = re.compile(r"[^/\\:\0-\x1f\"]{1,200}\.vmdk", re.IGNORECASE)
_GUEST_OS = re.compile(r"[A-Za-z0-9-]{1,60}")
_DISK_PLACES = ("scsi0:0", "sata0:0", "nvme0:0", "ide0:0")
_CONTROLLERS = {"lsilogic", "lsisas1068", "pvscsi", "buslogic"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """A base image that VMware runs."""

    disk: Path
    content: str
    """The disk's content identity, eight hexadecimal digits, by which what is built on it knows it again."""
    sectors: int
    place: str
    """Where the disk is attached, as a .vmx file has it: `scsi0:0`."""
    controller: str | None
    """The kind of SCSI controller; None for others."""
    guest_os: str
    hardware_version: int
    efi: bool


def base_image(path: Path) -> BaseImage:
    """Look at a base image: a disk, or a machine's .vmx file beside its disk. Raises JobError with what is wrong."""
    try:
        given = _vmx(path) if path.suffix.lower() == ".vmx" else {}
        place = next((one for one in _DISK_PLACES if given.get(f"{one}.filename", "").lower().endswith(".vmdk")), None)
        if given and place is None:
            listed = ", ".join(_DISK_PLACES)
            raise JobError(f"the machine {path} has no disk as the first of a controller: {listed}")
        disk = _beside(path, given[f"{place}.filename"]) if place else path
        with disk.open("rb") as file:
            return _looked_at(disk, DiskFile(file, 0, disk.stat().st_size), given, place)
    except UnusableDisk as unusable:
        raise JobError(f"the image {path} {unusable}") from unusable
    except OSError as error:
        raise JobError(f"can't read the image {error.filename or path}: {error.strerror}") from error


def _vmx(path: Path) -> Mapping[str, str]:
    with path.open("rb") as file:
        content = file.read(_MOST_VMX_BYTES + 1)
    values = vmx_values(content.decode(errors="replace"))
    if len(content) > _MOST_VMX_BYTES or not values:
        raise JobError(f"the machine {path} is no .vmx file of VMware's")
    if "encryption.keysafe" in values or "encryption.data" in values:
        raise JobError(f"the machine {path} is encrypted: decrypt it in VMware first")
    return values


def _beside(path: Path, name: str) -> Path:
    """The disk that a .vmx file names, which must be in the same folder, and no link to elsewhere."""
    if not _FILE_NAME.fullmatch(name):
        raise JobError(f"the machine {path} has its disk elsewhere, where any file of this computer could be: {name!r}")
    disk = path.resolve().with_name(name)
    if disk.is_symlink():
        raise JobError(f"the disk {disk} of a machine is a link: put the disk itself there")
    return disk


def _looked_at(path: Path, disk: DiskFile, given: Mapping[str, str], place: str | None) -> BaseImage:
    found = image_format(disk)
    if found is not ImageFormat.VMDK:
        raise UnusableDisk(f"is in {found} format, which VMware does not run: {_CONVERT}")
    flags, capacity = disk.numbers("<IQ", 8)
    description_at, description_sectors = disk.numbers("<QQ", 28)
    if flags & _COMPRESSED:
        raise UnusableDisk(f"is a compressed VMDK, which VMware does not run: {_CONVERT}")
    description = disk.read_up_to(min(description_sectors, 20) * _SECTOR, at=description_at * _SECTOR)
    text = description.rstrip(b"\0").decode(errors="replace").replace("\r\n", "\n")
    content = _CONTENT.search(text)
    if content is None:
        raise UnusableDisk(f"is a VMDK without content identity: {_CONVERT}")
    real = str(path.resolve())
    if '"' in real or not real.isprintable():
        raise UnusableDisk("is in a folder whose name VMware can't be told: rename it")
    adapter = _ADAPTER.search(text)
    kind = (given.get("scsi0.virtualdev") or (adapter[1] if adapter else "lsilogic")).lower()
    place = place or ("ide0:0" if kind == "ide" else "scsi0:0")
    return BaseImage(
        disk=Path(real),
        content=content[1].lower().rjust(8, "0"),
        sectors=capacity,
        place=place,
        controller=(kind if kind in _CONTROLLERS else "lsilogic") if place.startswith("scsi") else None,
        guest_os=_guest_os(given),
        hardware_version=_hardware_version(given),
        efi=given.get("firmware", "").lower() == "efi",
    )


def _guest_os(given: Mapping[str, str]) -> str:
    name = given.get("guestos", "")
    return name if _GUEST_OS.fullmatch(name) else "otherlinux-64"


def _hardware_version(given: Mapping[str, str]) -> int:
    """What the guest was installed on, as far as products of today have it."""
    number = given.get("virtualhw.version", "")
    return min(max(int(number), 10), 99) if number.isdecimal() and len(number) <= 2 else 14
