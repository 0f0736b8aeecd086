"""What is accepted as a base image: it may be a stranger's."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmwrapper.errors import JobError
from vmwrapper.hypervisor.qemu.base_image import open_base_image


def qcow2(*, version: int = 3, backing_offset: int = 0, features: int = 0) -> bytes:
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", version, backing_offset, 0, 16, 64 << 20)
    return head.ljust(72, b"\0") + struct.pack(">Q", features) + bytes(432)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


def test_qcow2_has_its_virtual_size(image: Path) -> None:
    image.write_bytes(qcow2())
    disk = open_base_image(image).disk
    assert disk is not None
    assert (disk.format, disk.offset, disk.size, disk.virtual_size) == ("qcow2", 0, 512, 64 << 20)


def test_raw_disk_is_known_by_its_boot_signature(image: Path) -> None:
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes(512))
    disk = open_base_image(image).disk
    assert disk is not None
    assert (disk.format, disk.virtual_size) == ("raw", 1024)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (qcow2(backing_offset=512), "has a backing file"),
        (qcow2(features=1 << 2), "keeps its data in another file"),
        (qcow2()[:60], "is cut short"),
        (b"", "is neither a guest bundle nor a bootable disk image"),
        (bytes(512), "is neither a guest bundle nor a bootable disk image"),
        (b"#!/bin/sh\n", "is neither a guest bundle nor a bootable disk image"),
    ],
)
def test_unusable_image_has_its_sentence(image: Path, content: bytes, sentence: str) -> None:
    image.write_bytes(content)
    with pytest.raises(JobError, match=sentence):
        open_base_image(image)


def test_missing_image_has_its_sentence(image: Path) -> None:
    with pytest.raises(JobError, match="No such file"):
        open_base_image(image)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.one_of(st.just(b""), st.just(b"QFI\xfb")), rest=st.binary(max_size=600))
def test_any_bytes_are_opened_or_refused(image: Path, head: bytes, rest: bytes) -> None:
    image.write_bytes(head + rest)
    with suppress(JobError):
        open_base_image(image)
