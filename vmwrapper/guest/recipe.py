"""What the default guest is made of. Whatever changes here makes `make setup` build the guest anew."""

import hashlib
import importlib.resources

from vmwrapper.guest import initramfs
from vmwrapper.guest.initramfs import Node
from vmwrapper.guest.packages import Wanted

BUILDER_VERSION = 1
"""Raised when the same recipe comes out differently."""

COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"
    # Without hardware acceleration these spare 0.4 s of self-tests, and 0.15 s of patching LOCK prefixes out of the
    # kernel where it has one CPU. A dozen further parameters spared nothing beyond the noise.
    " cryptomgr.notests noreplace-smp"
    # On a busy host the timer's test fails now and then, and Linux goes on with a worse one. Under KVM it skips the
    # test by itself. Source: kvm_guest_init in Linux's arch/x86/kernel/kvm.c.
    " no_timer_check"
)

KERNEL = Wanted("linux-image-*-cloud-amd64", needed_by="linux-image-cloud-amd64")
BUSYBOX = Wanted("busybox-static")

MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/char/virtio_console",
    "drivers/block/virtio_blk",
    "drivers/char/hw_random/virtio-rng",
    "drivers/virtio/virtio_balloon",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-pci",
)
"""The kernel's modules, each after those that it needs."""

_LIBRARIES = "usr/lib/x86_64-linux-gnu"

FILES: dict[Wanted, tuple[str, ...]] = {
    BUSYBOX: ("usr/bin/busybox",),
    Wanted("qemu-guest-agent"): ("usr/sbin/qemu-ga",),
    Wanted("xxhash"): ("usr/bin/xxhsum",),
    Wanted("libc6"): (
        f"{_LIBRARIES}/ld-linux-x86-64.so.2",
        f"{_LIBRARIES}/libc.so.6",
        f"{_LIBRARIES}/libm.so.6",
        # Empty since glibc 2.34, but named by programs that were linked before.
        f"{_LIBRARIES}/libdl.so.2",
        f"{_LIBRARIES}/libpthread.so.0",
        f"{_LIBRARIES}/librt.so.1",
    ),
    Wanted("libglib2.0-0*", needed_by="qemu-guest-agent"): (
        f"{_LIBRARIES}/libglib-2.0.so.0",
        f"{_LIBRARIES}/libgmodule-2.0.so.0",
    ),
    # The libraries of glib and libudev since Debian 13; what libatomic's licence is says the second of the packages.
    Wanted("libatomic1"): (f"{_LIBRARIES}/libatomic.so.1",),
    Wanted("gcc-*-base", needed_by="libatomic1"): (),
    Wanted("libcap2"): (f"{_LIBRARIES}/libcap.so.2",),
    Wanted("libnuma1"): (f"{_LIBRARIES}/libnuma.so.1",),
    Wanted("libpcre2-8-0"): (f"{_LIBRARIES}/libpcre2-8.so.0",),
    Wanted("libudev1"): (f"{_LIBRARIES}/libudev.so.1",),
    Wanted("liburing2"): (f"{_LIBRARIES}/liburing.so.2",),
}
"""What is taken from each package, all of it executable."""

INIT = importlib.resources.files(__package__).joinpath("init.sh").read_bytes()

_MOUNTS = b"""\
proc /proc proc nosuid,nodev,noexec 0 0
sys /sys sysfs nosuid,nodev,noexec 0 0
cgroup /sys/fs/cgroup cgroup2 nosuid,nodev,noexec 0 0
pts /dev/pts devpts mode=620,ptmxmode=666 0 0
shm /dev/shm tmpfs nosuid,nodev,mode=1777 0 0
run /run tmpfs nosuid,nodev,mode=755 0 0
tmp /tmp tmpfs nosuid,nodev,mode=1777 0 0
"""

SKELETON: dict[str, Node] = {
    "init": initramfs.file(INIT, mode=0o755),
    "bin": initramfs.link("usr/bin"),
    "lib": initramfs.link("usr/lib"),
    "lib64": initramfs.link("usr/lib64"),
    "sbin": initramfs.link("usr/sbin"),
    "usr/lib64/ld-linux-x86-64.so.2": initramfs.link("../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    "var/run": initramfs.link("../run"),
    "dev/console": initramfs.character_device(5, 1),
    "usr/lib/vmwrapper/dev/fd": initramfs.link("/proc/self/fd"),
    **{
        f"usr/lib/vmwrapper/dev/{name}": initramfs.link(f"/proc/self/fd/{number}")
        for number, name in enumerate(("stdin", "stdout", "stderr"))
    },
    "home": initramfs.folder(),
    "proc": initramfs.folder(),
    "root": initramfs.folder(mode=0o700),
    "run": initramfs.folder(),
    "sys": initramfs.folder(),
    "tmp": initramfs.folder(mode=0o1777),
    "etc/fstab": initramfs.file(_MOUNTS),
    "etc/group": initramfs.file(b"root:x:0:\n"),
    "etc/hosts": initramfs.file(b"127.0.0.1 localhost guest\n"),
    "etc/passwd": initramfs.file(b"root:*:0:0:root:/root:/bin/sh\n"),
    # Tells the launcher that users may be created here.
    "etc/vmwrapper-guest": initramfs.file(b"default\n"),
}
"""What is there beside the packages' files."""


def digest() -> str:
    """A digest of all of the above."""
    everything = (BUILDER_VERSION, COMMAND_LINE, KERNEL, MODULES, FILES, SKELETON)
    return hashlib.sha256(repr(everything).encode()).hexdigest()
