"""A base image with a disk: shared, and never written to."""

import asyncio
import hashlib
import re
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.peers import boot_sector
from vmwrapper.clock import RunningClock
from vmwrapper.guest.bundle import Contents, DiskFormat, extract, open_bundle, write_bundle
from vmwrapper.hypervisor.interface import Guest, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor

pytestmark = pytest.mark.qemu

DISK_BYTES = 8 * 1024 * 1024
FORMATS = {
    "raw": ("raw",),
    "vdi": ("vdi",),
    "vmdk": ("vmdk",),
    "stream.vmdk": ("vmdk", "-o", "subformat=streamOptimized"),
    "vhdx": ("vhdx",),
    "vhd": ("vpc", "-o", "force_size"),
}
"""How a file's name ends, and what `qemu-img convert -O` wants for it."""
FIRST_WORD = "dd if=/dev/vda bs=1 skip=4096 count=5 2>/dev/null"


def disk_content() -> bytes:
    return (bytes(4096) + b"first").ljust(DISK_BYTES, b"\0")


@pytest.fixture(params=list(DiskFormat))
def base(request: pytest.FixtureRequest, default_image: Path, tmp_path: Path) -> Path:
    """The default guest with a disk, in each format."""
    raw, disk = tmp_path / "disk.raw", tmp_path / "disk"
    raw.write_bytes(disk_content())
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", request.param, raw, disk], check=True)
    default = open_bundle(default_image)
    kernel, initramfs = tmp_path / "kernel", tmp_path / "initramfs"
    for path, section in ((kernel, default.kernel), (initramfs, default.initramfs)):
        with path.open("wb") as file:
            extract(default, section, file)
    with kernel.open("rb") as kernel_file, initramfs.open("rb") as initramfs_file, disk.open("rb") as disk_file:
        contents = Contents(
            kernel=kernel_file,
            initramfs=initramfs_file,
            command_line=default.command_line,
            built_from={},
            recipe="",
            disk=disk_file,
            disk_format=request.param,
        )
        write_bundle(tmp_path / "base.vmguest", contents)
    return tmp_path / "base.vmguest"


def spec_in(folder: Path, image: Path) -> MachineSpec:
    folder.mkdir()
    return MachineSpec(
        identity=MachineIdentity("test", folder.name, str(folder)),
        image=image,
        directory=folder,
        memory_mib=128,
        cpus=1,
        scratch_mib=0,
    )


async def booted(stack: AsyncExitStack, hypervisor: QemuHypervisor, image: Path, folder: Path) -> Guest:
    machine = await stack.enter_async_context(hypervisor.machine(spec_in(folder, image), RunningClock()))
    await machine.power_on()
    await machine.guest.ready(limit_s=60)
    return machine.guest


async def shell(guest: Guest, script: str) -> bytes:
    result = await guest.run(["sh", "-c", script], limit_s=30)
    assert result.status == 0, result.stderr
    return result.stdout


async def test_two_machines_share_a_base_that_stays_as_it_was(base: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    hypervisor = QemuHypervisor()
    await hypervisor.probe(RunningClock())
    async with AsyncExitStack() as stack:
        one, other = await asyncio.gather(
            booted(stack, hypervisor, base, tmp_path / "one"), booted(stack, hypervisor, base, tmp_path / "other")
        )
        assert await shell(one, FIRST_WORD) == b"first"
        await shell(one, "printf other | dd of=/dev/vda bs=1 seek=4096 conv=notrunc 2>/dev/null; sync")
        assert await shell(one, FIRST_WORD) == b"other"
        assert await shell(other, FIRST_WORD) == b"first"
        assert int(await shell(other, "cat /sys/block/vda/size")) * 512 == DISK_BYTES
    assert hashlib.sha256(base.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("suffix", FORMATS)
async def test_a_disk_of_each_format_boots_and_stays_as_it_was(suffix: str, tmp_path: Path) -> None:
    if reason := boot_sector.missing():
        pytest.skip(reason)
    image, raw = tmp_path / f"own.{suffix}", boot_sector.disk(boot_sector.boot_sector(timer_ticks=1), "raw")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", *FORMATS[suffix], raw, image], check=True)
    before = image.read_bytes(), image.stat().st_mtime_ns
    hypervisor = QemuHypervisor()
    await hypervisor.probe(RunningClock())
    async with hypervisor.machine(spec_in(tmp_path / "machine", image), RunningClock()) as machine:
        await machine.power_on()
        async with asyncio.timeout(60):
            while not re.search(r"^TICK 3\s+DISK 2\s", machine.console_tail, re.MULTILINE):
                await asyncio.sleep(0.05)
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
