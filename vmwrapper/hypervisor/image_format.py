"""The format of a disk image, by its own header, and whether the image is the whole disk.

An image is a download, perhaps a hostile one: if it names another file (a backing file, a parent, further extents), the
guest could read any file of the host. So it is refused here, before a program of QEMU's opens it.

Sources: QEMU's docs/interop/qcow2.txt; VMware's Virtual Disk Format 1.1; Microsoft's [MS-VHDX] and Virtual Hard Disk
Image Format Specification; and, for what QEMU makes of them, its block/vdi.c, vmdk.c, vhdx.c and vpc.c.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO
from uuid import UUID


class ImageFormat(StrEnum):
    """As QEMU calls it."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VDI = "vdi"
    VHDX = "vhdx"
    VMDK = "vmdk"
    VPC = "vpc"


_SECTOR = 512
_QCOW2_EXTERNAL_DATA = 1 << 2
_VDI_WHOLE = (1, 2)  # growing, and of fixed size
_VMDK_DESCRIPTION = 20 * _SECTOR  # as much as QEMU reads
_VMDK_EXTENT = re.compile(rb"^[ \t]*(?:rw|rdonly|noaccess)[ \t]+\d+[ \t]+(\w+)", re.MULTILINE)
_VMDK_PARENT = re.compile(rb"parentfilenamehint|parentcid[ \t]*=[ \t]*+(?!ffffffff)")
_VHDX_REGIONS_AT = 192 * 1024
_VHDX_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_VHDX_FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_VHDX_MOST_ENTRIES = 2047
_VHDX_HAS_PARENT = 1 << 1
_VPC_MAGIC = b"conectix"
_VPC_WHOLE = (2, 3)  # of fixed size, and growing
_BOOT_SIGNATURE = b"\x55\xaa"
_GPT_PROTECTIVE = 0xEE

_MAGICS = (
    (b"QFI\xfb", 0, ImageFormat.QCOW2),
    (b"KDMV", 0, ImageFormat.VMDK),
    (b"vhdxfile", 0, ImageFormat.VHDX),
    (_VPC_MAGIC, 0, ImageFormat.VPC),
    (b"\x7f\x10\xda\xbe", 0x40, ImageFormat.VDI),
)


class UnusableDisk(Exception):
    """What is wrong with a disk image, as the end of a sentence."""


class _NeedsAnotherFile(UnusableDisk):
    def __init__(self, what: str) -> None:
        super().__init__(
            f"is not a whole disk: it has {what}, which could be any file of this computer;"
            " flatten it where it was made, with `qemu-img convert -O qcow2 OLD NEW`"
        )


@dataclass(frozen=True, slots=True)
class DiskFile:
    """The bytes of an open file that are a disk image."""

    file: BinaryIO
    offset: int
    size: int

    def require(self, size: int) -> None:
        """Raise UnusableDisk for an image of fewer bytes."""
        if size > self.size:
            raise UnusableDisk(
                f"is cut short or damaged: it should have at least {size} bytes, and has {self.size}: fetch it again"
            )

    def read(self, at: int, size: int) -> bytes:
        """All of these bytes. Raises UnusableDisk where the image ends before."""
        self.require(at + size)
        self.file.seek(self.offset + at)
        return self.file.read(size).ljust(size, b"\0")  # should somebody cut the file just now

    def read_up_to(self, size: int, *, at: int) -> bytes:
        return self.read(at, max(0, min(size, self.size - at)))

    def numbers(self, layout: str, at: int) -> tuple[int, ...]:
        """Integers as `struct` unpacks them."""
        return struct.unpack(layout, self.read(at, struct.calcsize(layout)))


def image_format(disk: DiskFile) -> ImageFormat:
    """The format of an image that is a whole disk. Raises UnusableDisk for any other file."""
    found = _recognized(disk)
    _CHECKS[found](disk)
    return found


def _recognized(disk: DiskFile) -> ImageFormat:
    head = disk.read_up_to(_SECTOR, at=0)
    for magic, at, found in _MAGICS:
        if head[at:].startswith(magic):
            return found
    if disk.read_up_to(_SECTOR, at=max(0, disk.size - _SECTOR)).startswith(_VPC_MAGIC):  # of fixed size
        return ImageFormat.VPC
    if head[510:] == _BOOT_SIGNATURE:
        return ImageFormat.RAW
    if head.lstrip().lower().startswith(b"# disk descriptorfile"):
        raise _NeedsAnotherFile("its data in other files than this VMDK descriptor")
    what = "is neither a guest bundle nor a bootable disk image in qcow2, raw, vdi, vmdk, vhdx or vhd format"
    raise UnusableDisk(
        f"{what}; `qemu-img convert -O qcow2` makes one of many others" if head else "is empty: fetch it again"
    )


def _check_qcow2(disk: DiskFile) -> None:
    version, backing_at = disk.numbers(">IQ", 4)
    (encryption,) = disk.numbers(">I", 32)
    (features,) = disk.numbers(">Q", 72)
    if backing_at:
        raise _NeedsAnotherFile("a backing file")
    if version >= 3 and features & _QCOW2_EXTERNAL_DATA:
        raise _NeedsAnotherFile("its data in an external file")
    if encryption:
        raise UnusableDisk("is encrypted: decrypt it with `qemu-img convert`")


def _check_vdi(disk: DiskFile) -> None:
    (kind,) = disk.numbers("<I", 0x4C)
    if kind not in _VDI_WHOLE or any(disk.read(0x1A8, 32)):  # the identities of what it builds on
        raise _NeedsAnotherFile("a parent")
    map_at, data_at = disk.numbers("<II", 0x154)
    block_size, _, blocks, allocated = disk.numbers("<IIII", 0x178)
    disk.require(max(map_at + 4 * blocks, data_at + allocated * block_size))


def _check_vmdk(disk: DiskFile) -> None:
    """QEMU opens what the description names if the capacity is 0, and looks for a parent behind the first sector."""
    (capacity,) = disk.numbers("<Q", 12)
    (description_at,) = disk.numbers("<Q", 28)
    if not capacity:
        raise _NeedsAnotherFile("its data in files that its descriptor names")
    for sector in {1, description_at} - {0}:
        description = disk.read_up_to(_VMDK_DESCRIPTION, at=sector * _SECTOR).lower()
        if _VMDK_PARENT.search(description):
            raise _NeedsAnotherFile("a parent")
        if _VMDK_EXTENT.findall(description) not in ([], [b"sparse"]):
            raise _NeedsAnotherFile("further extents")


def _check_vhdx(disk: DiskFile) -> None:
    (regions,) = disk.numbers("<I", _VHDX_REGIONS_AT + 8)
    for metadata_at in _vhdx_places(disk, _VHDX_METADATA, "<Q", table_at=_VHDX_REGIONS_AT + 16, entries=regions):
        (items,) = disk.numbers("<H", metadata_at + 10)
        for item_at in _vhdx_places(disk, _VHDX_FILE_PARAMETERS, "<I", table_at=metadata_at + 32, entries=items):
            _, flags = disk.numbers("<II", metadata_at + item_at)
            if flags & _VHDX_HAS_PARENT:
                raise _NeedsAnotherFile("a parent")


def _vhdx_places(disk: DiskFile, wanted: UUID, layout: str, *, table_at: int, entries: int) -> Iterator[int]:
    """What the table says of where that thing lies; an honest one has it once."""
    for entry_at in range(table_at, table_at + 32 * min(entries, _VHDX_MOST_ENTRIES), 32):
        if UUID(bytes_le=disk.read(entry_at, 16)) == wanted:
            yield from disk.numbers(layout, entry_at + 16)


def _check_vpc(disk: DiskFile) -> None:
    """The footer of a growing image is also its head."""
    footer_at = 0 if disk.read(0, len(_VPC_MAGIC)) == _VPC_MAGIC else disk.size - _SECTOR
    (kind,) = disk.numbers(">I", footer_at + 60)
    if kind not in _VPC_WHOLE:
        raise _NeedsAnotherFile("a parent")


def _check_raw(disk: DiskFile) -> None:
    """Only by what its partitions need can it be told that some of it is missing.

    Source: the UEFI specification, 5.2 and 5.3.
    """
    entries = [disk.numbers("<B3xB3xII", at) for at in range(446, 510, 16)]
    if any(status & 0x7F for status, *_ in entries):  # a boot program, where there are no partitions
        return
    for _, kind, start, length in entries:
        if kind == _GPT_PROTECTIVE and disk.read_up_to(8, at=_SECTOR) == b"EFI PART":
            (last,) = disk.numbers("<Q", _SECTOR + 32)
            disk.require((last + 1) * _SECTOR)
        elif kind not in (0, _GPT_PROTECTIVE):
            disk.require((start + length) * _SECTOR)


_CHECKS = {
    ImageFormat.QCOW2: _check_qcow2,
    ImageFormat.RAW: _check_raw,
    ImageFormat.VDI: _check_vdi,
    ImageFormat.VHDX: _check_vhdx,
    ImageFormat.VMDK: _check_vmdk,
    ImageFormat.VPC: _check_vpc,
}
