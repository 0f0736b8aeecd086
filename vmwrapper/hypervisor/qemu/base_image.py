"""What a machine boots from: a direct-boot bundle, or a disk image whose guest has its own boot loader."""

import struct
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.errors import JobError
from vmwrapper.guest.bundle import Bundle, is_bundle, open_bundle

IMAGE_SUFFIXES = (".vmguest", ".qcow2", ".raw", ".img")

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, backing offset and length, cluster bits, virtual size
_QCOW2_FEATURES_OFFSET = 72
_QCOW2_EXTERNAL_DATA = 1 << 2
_BOOT_SIGNATURE_OFFSET = 510
_BOOT_SIGNATURE = b"\x55\xaa"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseDisk:
    """A disk to boot from or to mount, inside a file: only ever read, through an overlay."""

    format: str
    """As QEMU calls it."""
    offset: int
    size: int
    """Bytes of the file that are the disk, from `offset` on."""
    virtual_size: int
    """Bytes that the guest sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """A base image that was looked at and found usable. At least one of its two parts is there."""

    path: Path
    bundle: Bundle | None = None
    disk: BaseDisk | None = None


def open_base_image(path: Path) -> BaseImage:
    """Look at a base image, which may be hostile. Raises JobError with what is wrong with it."""
    try:
        if not is_bundle(path):
            return BaseImage(path=path, disk=_disk(path, 0, path.stat().st_size))
        bundle = open_bundle(path)
        section = bundle.disk
        disk = _disk(path, section.offset, section.size) if section else None
        return BaseImage(path=path, bundle=bundle, disk=disk)
    except OSError as error:
        raise JobError(f"can't read the image {path}: {error.strerror}") from error


def _disk(path: Path, offset: int, size: int) -> BaseDisk:
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(min(size, 512))
    if head.startswith(_QCOW2_MAGIC):
        return BaseDisk(format="qcow2", offset=offset, size=size, virtual_size=_qcow2_size(path, head))
    if head[_BOOT_SIGNATURE_OFFSET:] == _BOOT_SIGNATURE:
        return BaseDisk(format="raw", offset=offset, size=size, virtual_size=size)
    raise JobError(f"{path} is neither a guest bundle nor a bootable disk image in qcow2 or raw format")


def _qcow2_size(path: Path, head: bytes) -> int:
    """Bytes of the virtual disk, after a look for anything that names a file of the host.

    Source: QEMU's docs/interop/qcow2.txt.
    """
    if len(head) < _QCOW2_FEATURES_OFFSET + 8:
        raise JobError(f"the qcow2 image {path} is cut short")
    _, version, backing_offset, _, _, virtual_size = _QCOW2_HEADER.unpack_from(head)
    if backing_offset:
        raise JobError(f"the qcow2 image {path} has a backing file, which could be any file of the host: flatten it")
    (features,) = struct.unpack_from(">Q", head, _QCOW2_FEATURES_OFFSET)
    if version >= 3 and features & _QCOW2_EXTERNAL_DATA:
        raise JobError(f"the qcow2 image {path} keeps its data in another file: convert it with qemu-img")
    return int(virtual_size)
