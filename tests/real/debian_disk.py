"""A disk with a small Debian that boots by itself, as a project may bring one: built once, and kept between runs.

It is made without mounting anything: the root file system by mke2fs from a directory, GRUB by writing its two parts
where it looks for them. Source: the GRUB manual, "BIOS installation".
"""

import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
from pathlib import Path

from tests.debian_mirror import apt_connection, mirror, run
from vmwrapper.folders import cache_folder

TOOLS = ("mmdebstrap", "grub-mkimage", "mke2fs", "qemu-img", "apt-get")
RELEASE = "bookworm"
PACKAGES = "linux-image-cloud-amd64,tiny-initramfs,kmod,systemd-sysv,udev,qemu-guest-agent,e2fsprogs,xxhash"
USER = "hubble"

_MIB = 1024 * 1024
_SECTOR = 512
_PARTITION_AT = _MIB
_PARTITION_BYTES = 400 * _MIB
_GRUB = Path("/usr/lib/grub/i386-pc")

_DPKG_OPTIONS = (
    "force-unsafe-io",
    *(f"path-exclude=/usr/share/{folder}/*" for folder in ("doc", "locale", "man")),
    "path-exclude=/lib/modules/*/kernel/*",
    *(f"path-include=/lib/modules/*/kernel/drivers/{files}" for files in ("*/*virtio*", "virtio/*", "misc/pvpanic/*")),
)
_INITRAMFS = "AUTO_MODULES=no INCLUDE_MODULES=virtio_pci,virtio_blk MICROCODE=no"
# Without hardware acceleration each unit costs a tenth of a second: udev, and the agent that it starts, are enough.
_PRUNE = f"""\
cd "$1" && echo '{USER}:*:1000:1000::/tmp:/bin/sh' >>etc/passwd && echo '{USER}:x:1000:' >>etc/group
rm usr/lib/systemd/system-generators/*
cd usr/lib/systemd/system
rm -r sysinit.target.wants/* local-fs.target.wants sockets.target.wants
for unit in udevd.service udevd-control.socket udevd-kernel.socket udev-trigger.service; do
    ln -s ../systemd-$unit sysinit.target.wants/
done
ln -sf sysinit.target default.target
"""
_GRUB_SCRIPT = """\
linux (hd0,msdos1)/vmlinuz root=/dev/vda1 rw console=ttyS0 quiet mitigations=off no_timer_check random.trust_cpu=on
initrd (hd0,msdos1)/initrd.img
boot
"""
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux")


def missing() -> str | None:
    """What keeps this machine from building the disk, or None."""
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"building a Debian disk needs {', '.join(absent)}: make test installs that for root"
    return None if os.geteuid() == 0 else "building a Debian disk needs root"


def debian_disk() -> Path:
    """The disk, in qcow2 format. It takes about 40 s and 80 MB from apt's mirror, where it isn't there yet."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    disk = cache_folder() / f"test/debian-{recipe}.qcow2"
    disk.parent.mkdir(parents=True, exist_ok=True)
    with disk.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other tests, run at the same time, want it too
        if not disk.exists():
            with tempfile.TemporaryDirectory(dir=disk.parent) as scratch:
                _build(Path(scratch)).replace(disk)
    return disk


def _build(scratch: Path) -> Path:
    source = mirror()
    assert source, "apt has no list of packages from a Debian mirror: apt-get update"
    (scratch / "tirfs.conf").write_text(_INITRAMFS)
    run(
        "mmdebstrap",
        *("--variant=essential", f"--include={PACKAGES}"),  # the essential ones, and these
        *(f"--aptopt={option}" for option in ('APT::Install-Recommends "false"', *apt_connection())),
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        '--essential-hook=mkdir "$1/etc/tiny-initramfs"',
        f"--essential-hook=upload {scratch / 'tirfs.conf'} /etc/tiny-initramfs/tiny-initramfs.conf",
        f"--customize-hook={_PRUNE}",
        *(RELEASE, scratch / "root", source),
    )
    return _disk(scratch)


def _disk(scratch: Path) -> Path:
    partition, raw, qcow2 = scratch / "partition", scratch / "disk.raw", scratch / "disk.qcow2"
    with partition.open("wb") as file:
        file.truncate(_PARTITION_BYTES)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", scratch / "root", partition)
    with raw.open("wb") as file:
        file.write(_boot_sectors(scratch))
        file.truncate(_PARTITION_AT + _PARTITION_BYTES)
    run("dd", f"if={partition}", f"of={raw}", "bs=1M", "seek=1", "conv=sparse,notrunc", "status=none")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    return qcow2


def _boot_sectors(scratch: Path) -> bytes:
    """The master boot record, and what it loads from the sectors behind it."""
    script, core = scratch / "grub.cfg", scratch / "core.img"
    script.write_text(_GRUB_SCRIPT)
    run("grub-mkimage", "-O", "i386-pc", "-p", "/boot", "-c", script, "-o", core, *_GRUB_MODULES)
    first_sector, sectors = _PARTITION_AT // _SECTOR, _PARTITION_BYTES // _SECTOR
    linux = struct.pack("<B3xB3xII", 0x80, 0x83, first_sector, sectors)
    return (_GRUB / "boot.img").read_bytes()[:446] + linux + bytes(48) + b"\x55\xaa" + core.read_bytes()
