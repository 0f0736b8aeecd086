"""What a machine boots from: a direct-boot bundle, or a disk image whose guest has its own boot loader."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError
from vmwrapper.guest.bundle import Bundle, DiskFormat, DiskSection, is_bundle, open_bundle
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.image_format import DiskFile, ImageFormat, UnusableDisk, image_format
from vmwrapper.hypervisor.qemu.layers import file_node
from vmwrapper.hypervisor.remembered import identity, keep, recall
from vmwrapper.process import complete

IMAGE_SUFFIXES = (".vmguest", ".qcow2", ".raw", ".img", ".vdi", ".vmdk", ".vhdx", ".vhd")

_SECTOR = 512
_LARGEST_DISK_BYTES = 1 << 46  # as VHDX has it
_QEMU_IMG_LIMIT_S = 120.0  # it reads what a format keeps of each part of the disk, at worst from a slow one
_LONGEST_ANSWER_BYTES = 1 << 20  # a hostile image can have 65,536 snapshots with long names
_LEAKS_ONLY = 3  # space that nobody uses; source: QEMU's docs/tools/qemu-img.rst
_CANNOT_CHECK = 63
_COMPLAINT = re.compile("^(?:qemu-img: |ERROR:? )(?:Could not open '.*': )?(.+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseDisk:
    """A disk to boot from or to mount, inside a file: only ever read, through an overlay."""

    format: ImageFormat
    offset: int
    size: int
    """Bytes of the file that are the disk image, from `offset` on."""

    def node(self, filename: str) -> dict[str, Any]:
        """The disk in that file for QEMU's block layer: read-only all the way down, and no backing file looked for.

        Source: BlockdevOptions in QEMU's qapi/block-core.json.
        """
        read_only = {"read-only": True}
        node: dict[str, Any] = file_node(filename) | read_only
        if self.offset:
            size = self.size + -self.size % _SECTOR  # a bundle is padded
            node = {"driver": "raw", "offset": self.offset, "size": size, "file": node} | read_only
        node = {"driver": self.format, "file": node} | read_only
        return node | {"backing": None} if self.format in (ImageFormat.QCOW2, ImageFormat.VMDK) else node


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """A base image that was looked at and found usable. It has a bundle, or a disk, or both."""

    path: Path
    bundle: Bundle | None
    disk: BaseDisk | None
    virtual_size: int
    """Bytes that the guest sees of the disk."""


async def open_base_image(path: Path, clock: RunningClock, *, qemu_img: Path, cache: Path) -> BaseImage:
    """Look at a base image, which may be hostile. Raises JobError with what is wrong with it.

    What `qemu-img` says of it is kept in `cache`, and holds until the file changes.
    """
    try:
        bundle, disk = await asyncio.to_thread(_parts, path)
        virtual_size = await _virtual_size(path, disk, qemu_img, clock, cache) if disk else 0
    except UnusableDisk as unusable:
        raise JobError(f"the image {path} {unusable}") from unusable
    except OSError as error:
        raise JobError(f"can't read the image {path}: {error.strerror}") from error
    return BaseImage(path=path, bundle=bundle, disk=disk, virtual_size=virtual_size)


def _parts(path: Path) -> tuple[Bundle | None, BaseDisk | None]:
    if not is_bundle(path):
        return None, _disk(path, 0, path.stat().st_size)
    bundle = open_bundle(path)
    return bundle, _bundled_disk(path, bundle.disk) if bundle.disk else None


def _bundled_disk(path: Path, section: DiskSection) -> BaseDisk:
    """Of the format that the manifest gives. A raw one needs no boot loader: it may be a mere file system."""
    if section.format is DiskFormat.RAW:
        return BaseDisk(format=ImageFormat.RAW, offset=section.offset, size=section.size)
    disk = _disk(path, section.offset, section.size)
    if disk.format is not ImageFormat.QCOW2:
        raise UnusableDisk(f"has a disk in {disk.format} format, where its manifest says {section.format}")
    return disk


def _disk(path: Path, offset: int, size: int) -> BaseDisk:
    with path.open("rb") as file:
        return BaseDisk(format=image_format(DiskFile(file, offset, size)), offset=offset, size=size)


async def _virtual_size(path: Path, disk: BaseDisk, qemu_img: Path, clock: RunningClock, cache: Path) -> int:
    """Bytes of the disk inside the image, all of which are there."""
    if disk.format is ImageFormat.RAW:
        return disk.size
    image = identity(path)
    question: dict[str, object] = {"image": image, "qemu-img": identity(qemu_img)}
    file = cache / f"image-{hashlib.sha256(os.fsencode(str(image['file']))).hexdigest()[:16]}.json"
    match recall(file, question):
        case int(size) if 0 < size <= _LARGEST_DISK_BYTES:
            return size
    size = await _examined(path, disk, qemu_img, clock)
    keep(file, question, size)
    return size


async def _examined(path: Path, disk: BaseDisk, qemu_img: Path, clock: RunningClock) -> int:
    with path.open("rb") as file:
        image = f"json:{json.dumps(disk.node(f'/dev/fd/{file.fileno()}'))}"
        info = [str(qemu_img), "info", "--output=json", image]
        check = [str(qemu_img), "check", "-q", image]
        said = await _asked(info, file, clock, answers=(0,))
        await _asked(check, file, clock, answers=(0, _LEAKS_ONLY, _CANNOT_CHECK))
    size = int(json.loads(said)["virtual-size"])
    if not 0 < size <= _LARGEST_DISK_BYTES:
        raise UnusableDisk(f"is damaged: it claims to be a disk of {size} bytes; fetch it again")
    return size


async def _asked(argv: Sequence[str], file: BinaryIO, clock: RunningClock, *, answers: Collection[int]) -> bytes:
    done = await complete(
        argv,
        limit_s=_QEMU_IMG_LIMIT_S,
        clock=clock,
        pass_fds=[file.fileno()],
        most_bytes=_LONGEST_ANSWER_BYTES,
    )
    if done.status not in answers:
        found = _COMPLAINT.search(printable(done.stderr))
        complaint = found[1] if found else f"qemu-img ended with status {done.status}"
        raise UnusableDisk(
            f"is cut short, damaged or of an unknown kind ({complaint}): fetch it again, or convert it with `qemu-img`"
        )
    return done.stdout
