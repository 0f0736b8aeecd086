"""Which disk images are accepted as whole disks, by their headers: they may be a stranger's."""

import struct
from contextlib import suppress
from io import BytesIO
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.image_format import DiskFile, ImageFormat, UnusableDisk, image_format

from .fuzzing import fuzzed

MIB = 1 << 20
DESCRIPTION = 'parentCID=ffffffff\ncreateType="monolithicSparse"\nRW 131072 SPARSE "disk.vmdk"\n'
METADATA_AT = 256 * 1024
PARAMETERS_AT = 64


def filled(size: int, parts: dict[int, bytes]) -> bytes:
    """So many bytes, with these among them."""
    content = bytearray(size)
    for at, part in parts.items():
        content[at : at + len(part)] = part
    return bytes(content)


def qcow2(*, version: int = 3, backing_at: int = 0, encryption: int = 0, features: int = 0) -> bytes:
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing_at, 0, 16, 64 * MIB, encryption)
    return filled(512, {0: head, 72: struct.pack(">Q", features)})


def raw(*partitions: tuple[int, int, int], status: int = 0x80, gpt: bytes = b"") -> bytes:
    """A disk of 1 MiB; of each partition kind, first sector and length."""
    entries = b"".join(struct.pack("<B3xB3xII", status, *partition) for partition in partitions)
    return filled(MIB, {446: entries, 510: b"\x55\xaa", 512: gpt})


def gpt(*, last_sector: int) -> bytes:
    return filled(512, {0: b"EFI PART", 32: struct.pack("<Q", last_sector)})


def vdi(*, kind: int = 1, parent: bytes = bytes(16), allocated: int = 1) -> bytes:
    layout = struct.pack("<IIII", MIB, 0, 64, allocated)
    parts = {0x40: b"\x7f\x10\xda\xbe", 0x4C: struct.pack("<I", kind), 0x154: struct.pack("<II", 512, 1024)}
    return filled(1024 + MIB, parts | {0x178: layout, 0x1B8: parent})


def vmdk(*, capacity: int = 131072, description_at: int = 1, description: str = DESCRIPTION) -> bytes:
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, description_at, 20)
    return filled(64 * 1024, {0: head, description_at * 512: description.encode()})


def vhdx(*, flags: int = 0) -> bytes:
    region = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le + struct.pack("<QII", METADATA_AT, MIB, 1)
    item = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le + struct.pack("<III", PARAMETERS_AT, 8, 4)
    parts = {
        0: b"vhdxfile",
        192 * 1024: b"regi" + struct.pack("<III", 0, 1, 0) + region,
        METADATA_AT: b"metadata" + struct.pack("<HH", 0, 1),
        METADATA_AT + 32: item,
        METADATA_AT + PARAMETERS_AT: struct.pack("<II", MIB, flags),
    }
    return filled(METADATA_AT + 512, parts)


def vpc(*, kind: int = 3, footer_at: int = 0) -> bytes:
    return filled(2048, {footer_at: b"conectix", footer_at + 60: struct.pack(">I", kind)})


GOOD = {
    qcow2(): ImageFormat.QCOW2,
    qcow2(version=2, features=1 << 2): ImageFormat.QCOW2,
    raw(): ImageFormat.RAW,
    raw((0x83, 1, 2047)): ImageFormat.RAW,
    raw((0xEE, 1, 0xFFFFFFFF), gpt=gpt(last_sector=2047)): ImageFormat.RAW,
    raw((0x83, 1, 0xFFFFFF), status=0xEB): ImageFormat.RAW,
    vdi(): ImageFormat.VDI,
    vdi(kind=2): ImageFormat.VDI,
    vmdk(): ImageFormat.VMDK,
    vmdk(description='parentCID = ffffffff\nRW 1 SPARSE "x"'): ImageFormat.VMDK,
    vhdx(): ImageFormat.VHDX,
    vpc(): ImageFormat.VPC,
    vpc(kind=2, footer_at=1536): ImageFormat.VPC,
}
PARENT = "it has a parent, which could be any file"
CUT = "is cut short or damaged: it should have at least "


def looked_at(content: bytes) -> ImageFormat:
    """Of an image somewhere in a file."""
    return image_format(DiskFile(BytesIO(b"before" + content + b"behind"), offset=6, size=len(content)))


def name(value: object) -> str:
    """Of a parameter: not all the bytes of an image."""
    return value if isinstance(value, str) else "image"


@pytest.mark.parametrize(("content", "expected"), GOOD.items(), ids=name)
def test_format_is_that_of_the_header(content: bytes, expected: ImageFormat) -> None:
    assert looked_at(content) is expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (bytes(512), "is neither a guest bundle nor a bootable disk image"),
        (b"#!/bin/sh\n", "is neither a guest bundle nor a bootable disk image"),
        (qcow2(backing_at=512), "it has a backing file, which could be any file"),
        (qcow2(features=1 << 2), "it has its data in an external file, which could be any file"),
        (qcow2(encryption=2), "is encrypted"),
        (qcow2()[:60], f"{CUT}80 bytes, and has 60"),
        (raw((0x83, 1, 2048)), f"{CUT}1049088 bytes, and has 1048576"),
        (raw((0, 0, 0), (0x83, 1, 2048), status=0), f"{CUT}1049088 bytes"),
        (raw((0xEE, 1, 0xFFFFFFFF), gpt=gpt(last_sector=2048)), f"{CUT}1049088 bytes"),
        (vdi(kind=4), PARENT),
        (vdi(parent=bytes(15) + b"\1"), PARENT),
        (vdi(allocated=2), f"{CUT}2098176 bytes, and has 1049600"),
        (vdi()[:0x100], CUT),
        (vmdk(capacity=0), "it has its data in files that its descriptor names"),
        (vmdk(description="parentCID=12345678\n"), PARENT),
        (vmdk(description='parentCID=ffffffff\nparentFileNameHint="/etc/shadow"\n'), PARENT),
        (vmdk(description_at=30, description="parentCID=12345678\n"), PARENT),
        (vmdk(description=DESCRIPTION + 'RW 4 FLAT "/etc/shadow" 0\n'), "it has further extents"),
        (vmdk(description='RW 4 FLAT "/etc/shadow" 0\n'), "it has further extents"),
        (vmdk()[:300], CUT),
        (b"# Disk DescriptorFile\n" + DESCRIPTION.encode(), "in other files than this VMDK descriptor"),
        (vhdx(flags=2), PARENT),
        (vhdx()[:1000], CUT),
        (vpc(kind=4), PARENT),
        (vpc(kind=4, footer_at=1536), PARENT),
    ],
    ids=name,
)
def test_unusable_image_has_its_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(UnusableDisk) as refusal:
        looked_at(content)
    assert sentence in str(refusal.value)


places = st.one_of(*(st.integers(at, at + 600) for at in (0, 192 * 1024, METADATA_AT)), st.integers(0, MIB))
changes = st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), max_size=8)


@fuzzed
@given(content=st.sampled_from(list(GOOD)), changes=changes, length=st.none() | st.integers(0, 600))
def test_any_header_is_accepted_or_refused(
    content: bytes, changes: list[tuple[int, bytes]], length: int | None
) -> None:
    with suppress(UnusableDisk):
        looked_at(filled(len(content), {0: content} | dict(changes))[:length])


@fuzzed
@given(head=st.sampled_from([b"", b"QFI\xfb", b"KDMV", b"vhdxfile", b"conectix"]), rest=st.binary(max_size=600))
def test_any_bytes_are_accepted_or_refused(head: bytes, rest: bytes) -> None:
    with suppress(UnusableDisk):
        looked_at(head + rest)
