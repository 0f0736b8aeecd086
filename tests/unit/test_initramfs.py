import stat
import struct

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.errors import VmwrapperError
from vmwrapper.guest import initramfs, kernel, recipe

MIB = 1024 * 1024


def listed(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Path, mode and data of each record; asserts what the kernel relies on."""
    records = []
    position = 0
    while position < len(archive):
        header = archive[position : position + 110]
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[position + 110 : position + 110 + name_size]
        assert name.endswith(b"\0")
        start = position + 110 + name_size
        start += -start % 4
        records.append((name[:-1].decode(), mode, archive[start : start + size]))
        position = start + size
        position += -position % 4
    assert records.pop()[0] == "TRAILER!!!"
    return records


def test_nodes_are_packed_with_their_folders_before_them() -> None:
    packed = initramfs.archive({"usr/bin/tool": initramfs.file(b"12345", mode=0o755), "bin": initramfs.link("usr/bin")})
    assert listed(packed) == [
        (".", stat.S_IFDIR | 0o755, b""),
        ("bin", stat.S_IFLNK | 0o777, b"usr/bin"),
        ("usr", stat.S_IFDIR | 0o755, b""),
        ("usr/bin", stat.S_IFDIR | 0o755, b""),
        ("usr/bin/tool", stat.S_IFREG | 0o755, b"12345"),
    ]


def test_a_folder_that_is_given_keeps_its_mode() -> None:
    packed = initramfs.archive({"tmp": initramfs.folder(mode=0o1777), "tmp/x": initramfs.file(b"")})
    assert ("tmp", stat.S_IFDIR | 0o1777, b"") in listed(packed)


def test_the_order_in_which_nodes_are_given_does_not_matter() -> None:
    nodes = {"b": initramfs.file(b"1"), "a/c": initramfs.file(b"2"), "a": initramfs.folder()}
    assert initramfs.archive(nodes) == initramfs.archive(dict(reversed(nodes.items())))


def test_the_recipe_has_what_jobs_rely_on() -> None:
    modes = {path: node.mode for path, node in recipe.SKELETON.items()}
    assert stat.S_IMODE(modes["tmp"]) == 0o1777
    assert stat.S_ISDIR(modes["root"])
    assert stat.S_ISDIR(modes["home"])
    assert {"etc/passwd", "etc/group", "etc/vmwrapper-guest"} <= modes.keys()


def lz4_legacy(data: bytes) -> bytes:
    frame = bytearray(b"\x02\x21\x4c\x18")
    for start in range(0, len(data), 8 * MIB):
        block = lz4.block.compress(data[start : start + 8 * MIB], store_size=False)
        frame += struct.pack("<I", len(block)) + block
    return bytes(frame)


def bzimage(payload: bytes, *, mark: bytes = b"HdrS") -> bytes:
    image = bytearray(3 * 512)
    image[0x1F1] = 2
    image[0x202:0x206] = mark
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"code behind"


@given(st.binary(max_size=10_000))
def test_the_kernel_is_taken_out_of_its_bzimage(code: bytes) -> None:
    elf = b"\x7fELF" + code
    assert kernel.bootable(bzimage(lz4_legacy(elf))) == elf


def test_a_kernel_of_several_blocks_with_its_size_behind() -> None:
    elf = b"\x7fELF" + b"vmwrapper" * (2 * MIB)
    assert kernel.bootable(bzimage(lz4_legacy(elf) + struct.pack("<I", len(elf)))) == elf


def test_a_kernel_in_another_packing_stays_as_it_is() -> None:
    image = bzimage(b"\x28\xb5\x2f\xfd zstd")
    assert kernel.bootable(image) == image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "only 0 bytes"),
        (bytes(600), r"the mark b'\\x00"),
        (bzimage(b"", mark=b"HdrX"), "the mark b'HdrX'"),
        (bzimage(lz4_legacy(b"no ELF")), "is no ELF file"),
        (bzimage(lz4_legacy(b"")), "is no ELF file"),
        (bzimage(lz4_legacy(b"") + struct.pack("<I", 4) + b"\xff" * 4), "damaged"),
    ],
)
def test_what_is_no_kernel(image: bytes, said: str) -> None:
    with pytest.raises(VmwrapperError, match=said):
        kernel.bootable(image)


@given(st.binary(max_size=300))
def test_garbage_in_place_of_the_kernel_is_refused(data: bytes) -> None:
    with pytest.raises(VmwrapperError):
        kernel.bootable(bzimage(lz4_legacy(b"") + data))
