"""A small Linux kernel for guests of VirtualBox's, built from Debian's source.

Where VirtualBox executes guests by its interpreter, Debian's own has not said a word after 150 s; this one takes 15 s.

`make test` builds it, in about 4 minutes, and keeps it between runs. No test does that.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

from tests.debian_mirror import run
from vmwrapper.folders import cache_folder

TOOLS = ("apt-get", "dpkg", "gcc", "make", "flex", "bison", "bc", "xz", "lz4")
_SOURCE = "linux-source-6.1"
_ON = """\
64BIT EXPERT KERNEL_LZ4 CC_OPTIMIZE_FOR_SIZE BLK_DEV_INITRD PRINTK BUG UNWINDER_GUESS
MULTIUSER FUTEX EPOLL EVENTFD SIGNALFD TIMERFD POSIX_TIMERS HIGH_RES_TIMERS NO_HZ_IDLE AIO SYSVIPC SHMEM MEMBARRIER
ADVISE_SYSCALLS FILE_LOCKING BINFMT_ELF BINFMT_SCRIPT
TTY UNIX98_PTYS SERIAL_8250 SERIAL_8250_CONSOLE MAGIC_SYSRQ INPUT RTC_CLASS
DEVTMPFS PROC_FS PROC_SYSCTL SYSFS TMPFS NET UNIX
PCI ACPI HYPERVISOR_GUEST PARAVIRT KVM_GUEST VIRT_DRIVERS VBOXGUEST MISC_FILESYSTEMS NETWORK_FILESYSTEMS VBOXSF_FS
BLOCK SCSI BLK_DEV_SD ATA ATA_SFF ATA_BMDMA ATA_PIIX EXT4_FS
"""
_OFF = "UNWINDER_ORC RETPOLINE SPECULATION_MITIGATIONS"


def missing() -> str | None:
    """What keeps tests from having it, or None."""
    if (reason := cant_be_built()) is None and not _home().exists():
        return f"there is no {_home()}: `make test` builds it in about 4 minutes"
    return reason


def cant_be_built() -> str | None:
    """What keeps this machine from building it, or None, also where it was built before."""
    if platform.machine() != "x86_64":
        return "the guest's kernel is for x86-64"
    if not _home().exists() and (absent := [tool for tool in TOOLS if shutil.which(tool) is None]):
        return f"building a kernel needs {', '.join(absent)}: make test installs that for root"
    return None


def kernel() -> Path:
    """A bzImage, which must not be changed. Raises AssertionError where it was not built."""
    reason = missing()
    assert reason is None, reason
    return _home()


def _options() -> str:
    on, off = (f"CONFIG_{name}=y\n" for name in _ON.split()), (f"# CONFIG_{name} is not set\n" for name in _OFF.split())
    return "".join((*on, *off))


def _home() -> Path:
    recipe = hashlib.sha256(f"{_SOURCE}\n{_options()}".encode()).hexdigest()[:16]
    return cache_folder() / f"test/virtualbox-kernel-{recipe}"


def build() -> None:
    """Build it where it isn't there yet. Raises AssertionError where that fails."""
    home = _home()
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
                _build(Path(scratch)).replace(home)


def _build(scratch: Path) -> Path:
    run("env", "-C", scratch, "apt-get", "download", _SOURCE)
    [package] = scratch.glob("*.deb")
    run("dpkg", "-x", package, scratch / "package")
    source = scratch / "source"
    source.mkdir()
    archive = scratch / f"package/usr/src/{_SOURCE}.tar.xz"
    run("tar", "-C", source, "--strip-components=1", "-xf", archive)
    options = scratch / "options"
    options.write_text(_options())
    run("make", "-s", "-C", source, "allnoconfig", f"KCONFIG_ALLCONFIG={options}")
    run("make", "-s", "-C", source, f"-j{os.cpu_count()}", "bzImage")
    return source / "arch/x86/boot/bzImage"
