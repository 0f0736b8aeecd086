"""Disk images as QEMU makes them: looked at, refused with a sentence, and asked about once."""

import asyncio
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError
from vmwrapper.hypervisor.qemu.base_image import BaseImage, open_base_image

from .test_job import job, task, vmwrapper, write_job
from .test_mishaps import ends_with

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

MIB = 1 << 20
DISK_BYTES = 64 * MIB
DATA_BYTES = 5 * MIB
KINDS = {
    "qcow2": ("qcow2",),
    "compressed.qcow2": ("qcow2", "-c"),
    "old.qcow2": ("qcow2", "-o", "compat=0.10"),
    "raw": ("raw",),
    "vdi": ("vdi",),
    "static.vdi": ("vdi", "-o", "static=on"),
    "vmdk": ("vmdk",),
    "stream.vmdk": ("vmdk", "-o", "subformat=streamOptimized"),
    "vhdx": ("vhdx",),
    "fixed.vhdx": ("vhdx", "-o", "subformat=fixed"),
    "vhd": ("vpc", "-o", "force_size"),
    "fixed.vhd": ("vpc", "-o", "force_size,subformat=fixed"),
}
"""How a file's name ends, and what `qemu-img convert -O` wants for it."""


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `disk.KIND` for each of KINDS: one partition, and data that can't be compressed."""
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img")
    folder = tmp_path_factory.mktemp("images")
    with (folder / "disk.raw").open("wb") as file:
        file.write(bytes(446) + struct.pack("<B3xB3xII48x", 0x80, 0x83, 2048, DISK_BYTES // 512 - 2048) + b"\x55\xaa")
        file.write(os.urandom(DATA_BYTES - 512))
        file.truncate(DISK_BYTES)
    for kind in KINDS.keys() - {"raw"}:
        qemu_img("convert", "-f", "raw", "-O", *KINDS[kind], folder / "disk.raw", folder / f"disk.{kind}")
    return folder


@pytest.fixture(params=KINDS)
def image(request: pytest.FixtureRequest, images: Path) -> Path:
    """Not to be changed."""
    return images / f"disk.{request.param}"


def opened(path: Path, cache: Path, *, program: str = "qemu-img") -> BaseImage:
    found = Path(shutil.which(program) or program)

    async def looked_at() -> BaseImage:
        return await open_base_image(path, RunningClock(), qemu_img=found, cache=cache)

    return asyncio.run(looked_at())


def copied(image: Path, folder: Path, change: Callable[[bytearray], object]) -> Path:
    content = bytearray(image.read_bytes())
    change(content)
    (folder / "own").write_bytes(content)
    return folder / "own"


def test_image_of_each_kind_is_known(image: Path, tmp_path: Path) -> None:
    found = opened(image, tmp_path)
    assert found.disk is not None
    format_ = KINDS[image.name.removeprefix("disk.")][0]
    assert (found.disk.format, found.disk.size, found.virtual_size) == (format_, image.stat().st_size, DISK_BYTES)


@pytest.mark.parametrize("kept", [0, 300, 70_000, DATA_BYTES // 2, DATA_BYTES - 64 * 1024])
def test_image_that_is_cut_short_is_refused(image: Path, tmp_path: Path, kept: int) -> None:
    own = copied(image, tmp_path, lambda content: content.__delitem__(slice(kept, None)))
    with pytest.raises(JobError, match=r"cut short|is empty|is neither"):
        opened(own, tmp_path)


def with_backing_file(folder: Path, disk: Path) -> str:
    qemu_img("create", "-f", "qcow2", "-b", disk, "-F", "raw", folder / "own.qcow2")
    return "it has a backing file"


def with_external_data(folder: Path, _disk: Path) -> str:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={folder / 'data'}", folder / "own.qcow2", "1M")
    return "it has its data in an external file"


def with_encryption(folder: Path, _disk: Path) -> str:
    # Not LUKS: qemu-img measures its own CPU time for the key and gives up, 1 time in 4, where that clock is coarse.
    options = "encrypt.format=aes,encrypt.key-secret=key"
    qemu_img("create", "-f", "qcow2", "--object", "secret,id=key,data=x", "-o", options, folder / "own.qcow2", "1M")
    return "is encrypted"


def with_vmdk_parent(folder: Path, disk: Path) -> str:
    qemu_img("create", "-f", "vmdk", "-b", disk.with_suffix(".vmdk"), "-F", "vmdk", folder / "own.vmdk")
    return "it has a parent"


def of_vmdk_extents(folder: Path, disk: Path) -> str:
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", "-f", "raw", disk, folder / "own.vmdk")
    return "it has its data in other files than this VMDK descriptor"


def of_vmdk_sparse_extents(folder: Path, disk: Path) -> str:
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "-f", "raw", disk, folder / "own.vmdk")
    return "it has its data in other files than this VMDK descriptor"


def vmdk_of_no_capacity(folder: Path, disk: Path) -> str:
    """Its description, where QEMU would look, has a file of the host as the disk's data."""
    description = f'# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 8 FLAT "{disk}" 0\n'.encode()
    content = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 20).ljust(512, b"\0") + description
    (folder / "own.vmdk").write_bytes(content.ljust(64 * 1024, b"\0"))
    return "it has its data in files that its descriptor names"


def vdi_of_differences(folder: Path, disk: Path) -> str:
    own = copied(disk.with_suffix(".vdi"), folder, lambda content: struct.pack_into("<I", content, 0x4C, 4))
    own.rename(folder / "own.vdi")
    return "it has a parent"


def vhd_of_differences(folder: Path, disk: Path) -> str:
    own = copied(disk.with_suffix(".vhd"), folder, lambda content: struct.pack_into(">I", content, 60, 4))
    own.rename(folder / "own.vhd")
    return "it has a parent"


def vhdx_of_differences(folder: Path, disk: Path) -> str:
    """The file parameters are the first item behind the metadata table. Source: [MS-VHDX], 2.6.2."""

    def change(content: bytearray) -> None:
        metadata_at = content.index(b"metadata")
        struct.pack_into("<I", content, metadata_at + 64 * 1024 + 4, 2)

    copied(disk.with_suffix(".vhdx"), folder, change).rename(folder / "own.vhdx")
    return "it has a parent"


def directory(folder: Path, _disk: Path) -> str:
    (folder / "own").mkdir()
    return "own is no regular file; name a disk image"


def pipe(folder: Path, _disk: Path) -> str:
    os.mkfifo(folder / "own")
    return "own is no regular file; name a disk image"


def empty(folder: Path, _disk: Path) -> str:
    (folder / "own.img").touch()
    return "own.img is empty: fetch it again"


def text(folder: Path, _disk: Path) -> str:
    (folder / "own.img").write_text("not an image\n")
    return "own.img is neither a guest bundle nor a bootable disk image"


def cut_qcow2(folder: Path, disk: Path) -> str:
    copied(disk.with_suffix(".qcow2"), folder, lambda content: content.__delitem__(slice(MIB, None)))
    return (
        "own is cut short, damaged or of an unknown kind (counting reference for region exceeding the end of the file"
    )


NEEDING_ANOTHER_FILE = (
    with_backing_file,
    with_external_data,
    with_vmdk_parent,
    of_vmdk_extents,
    of_vmdk_sparse_extents,
    vmdk_of_no_capacity,
    vdi_of_differences,
    vhd_of_differences,
    vhdx_of_differences,
)


@pytest.mark.parametrize("mishap", [*NEEDING_ANOTHER_FILE, with_encryption, directory, pipe, empty, text, cut_qcow2])
def test_job_with_an_unusable_image_has_its_sentence(
    images: Path, tmp_path: Path, mishap: Callable[[Path, Path], str]
) -> None:
    sentence = mishap(tmp_path, images / "disk.raw")
    done = vmwrapper("run", write_job(tmp_path, job(task("true.sh")).replace("default", "own"), true="true"))
    ends_with(done, 206, sentence, unsaid=["Machine created"])


@pytest.mark.parametrize("mishap", NEEDING_ANOTHER_FILE)
def test_image_that_needs_another_file_is_refused_before_qemu_sees_it(
    images: Path, tmp_path: Path, mishap: Callable[[Path, Path], str]
) -> None:
    sentence = mishap(tmp_path, images / "disk.raw")
    (image,) = tmp_path.glob("own.*")
    with pytest.raises(JobError, match=sentence):
        opened(image, tmp_path, program="there-is-no-such-program")


def test_image_is_asked_about_once(images: Path, tmp_path: Path) -> None:
    program, said, image = tmp_path / "qemu-img", tmp_path / "said", tmp_path / "own.qcow2"
    program.write_text(f'#!/bin/sh\necho "$1" >> "{said}"\nexec {shutil.which("qemu-img")} "$@"\n')
    program.chmod(0o755)
    shutil.copy(images / "disk.qcow2", image)
    first, second = (opened(image, tmp_path / "cache", program=str(program)) for _ in range(2))
    assert first == second
    assert said.read_text().split() == ["info", "check"]
    os.utime(image)
    os.truncate(image, MIB)
    with pytest.raises(JobError, match="is cut short"):
        opened(image, tmp_path / "cache", program=str(program))


places = st.one_of(st.integers(0, 1100), st.integers(64 * 1024, 65 * 1024), st.integers(0, DATA_BYTES))
changes = st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=changes)
def test_damaged_image_is_accepted_or_refused(image: Path, tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    def change(content: bytearray) -> None:
        for at, part in changes:
            content[at : at + len(part)] = part

    own = copied(image, tmp_path, change)
    with suppress(JobError):
        opened(own, tmp_path)
