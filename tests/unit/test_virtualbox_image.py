"""Which base images VirtualBox is given, by their content."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.errors import JobError
from vmwrapper.hypervisor.virtualbox.image import check_image

from .fuzzing import fuzzed
from .test_image_format import MIB, filled, qcow2, raw, vdi, vhdx, vmdk, vpc

CD = filled(40960, {0x8000: b"\1CD001\1"})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (vdi(), "VDI"),
        (vdi(kind=2), "VDI"),
        (vmdk(), "VMDK"),
        (vpc(), "VHD"),
        (vpc(kind=2, footer_at=1536), "VHD"),
    ],
)
def test_disks(image: Path, content: bytes, name: str) -> None:
    image.write_bytes(content)
    assert check_image(image) == name


@pytest.mark.parametrize("content", [CD, filled(40960, {510: b"\x55\xaa", 0x8000: b"\1CD001\1"})])
def test_cds(image: Path, content: bytes) -> None:
    """Also one that boots from a USB stick, too."""
    image.write_bytes(content)
    assert check_image(image) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            qcow2(),
            "is in qcow2 format, which VirtualBox does not run: convert it with `qemu-img convert -O vdi {} NEW.vdi`",
        ),
        (raw(), "is in raw format, which VirtualBox does not run: convert it"),
        (vhdx(), "is in vhdx format, which VirtualBox does not run: convert it"),
        (vdi(parent=bytes(15) + b"\1"), "is not a whole disk: it has a parent"),
        (vdi(kind=4), "is not a whole disk: it has a parent"),
        (vpc(kind=4), "is not a whole disk: it has a parent"),
        (vmdk(description='RW 4 FLAT "/etc/shadow" 0\n'), "is not a whole disk: it has further extents"),
        (b'# Disk DescriptorFile\nRW 4 FLAT "/etc/shadow" 0\n', "is not a whole disk: it has its data in other files"),
        (vdi()[:0x200], "is cut short or damaged: it should have at least"),
        (b"", "is empty: fetch it again"),
        (b"#!/bin/sh\n", "is neither a guest bundle nor a bootable disk image"),
        (CD[:0x8003], "is neither a guest bundle nor a bootable disk image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(image: Path, content: bytes, sentence: str) -> None:
    image.write_bytes(content)
    with pytest.raises(JobError, match=re.escape(f"the image {image} {sentence.format(image)}")):
        check_image(image)


@pytest.mark.parametrize("content", [vdi(parent=bytes(15) + b"\1"), vmdk(description='RW 4 FLAT "/etc/shadow" 0\n')])
def test_a_disk_with_a_cds_sign_is_none(image: Path, content: bytes) -> None:
    """VirtualBox would be given it as a CD: as such it is read byte by byte, whatever it names."""
    image.write_bytes(filled(max(len(content), 40960), {0: content, 0x8000: b"\1CD001\1"}))
    assert check_image(image) is None


def test_missing(image: Path) -> None:
    with pytest.raises(JobError, match=f"can't read the image {image}: No such file"):
        check_image(image)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=f"can't read the image {tmp_path}: Is a directory"):
        check_image(tmp_path)


@fuzzed
@given(st.sampled_from([vdi()[: MIB // 2], vmdk(), vpc(), CD, b""]), st.binary(), st.integers(0, 41000))
def test_any_content(tmp_path: Path, content: bytes, noise: bytes, at: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(filled(max(len(content), at + len(noise)), {0: content, at: noise}))
    with suppress(JobError):
        check_image(image)
