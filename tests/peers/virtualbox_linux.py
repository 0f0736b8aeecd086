"""A small Linux with VirtualBox's Guest Additions, as a CD that boots: all of it is in memory.

It consists of a kernel of our own, and of busybox, VBoxService, sudo and xxhsum from Debian. It has two users, root and
ada, who may become root by sudo. The same password is good for both. Where its machine has the shared folder `shared`,
that is /shared, and its `start.sh` is run.
"""

import fcntl
import hashlib
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.debian_mirror import apt_connection, mirror, run
from vmwrapper.folders import cache_folder
from vmwrapper.guest.initramfs import Node, archive, character_device, file, folder, link

from . import virtualbox_chroot, virtualbox_kernel

TOOLS = ("mmdebstrap", "genisoimage", "objdump", "openssl")
USER = "ada"
PASSWORD = "countess' <secret>"

_PACKAGES = (
    "virtualbox-guest-utils,busybox-static,libpam-modules,libpam-modules-bin,sudo,xxhash,dash,isolinux,syslinux-common"
)
_EXAMPLES = Path(__file__).parents[2] / "examples"
_AGENT = re.compile(r"^cat >\"\$work/agent\" <<'END'\n(.*?)^END\n", re.MULTILINE | re.DOTALL)
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PROGRAMS = (
    "usr/bin/sudo",
    "usr/bin/xxhsum",
    "usr/libexec/sudo/sudoers.so",
    "usr/sbin/VBoxService",
    "usr/sbin/unix_chkpwd",
    f"{_LIBRARIES}/libgcc_s.so.1",  # which threads load at their end
    f"{_LIBRARIES}/libpam.so.0",  # which VBoxService loads
    f"{_LIBRARIES}/security/pam_permit.so",
    f"{_LIBRARIES}/security/pam_unix.so",
)
_SET_USER_ID = ("usr/bin/sudo", "usr/sbin/unix_chkpwd")
_PAM = "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_permit.so\n"
_INIT = """\
#!/usr/bin/busybox sh
export PATH=/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=90%,mode=1777 tmp /tmp
mount -t tmpfs run /run
chmod 666 /dev/vboxuser
[ ! -e /agent ] || sh /agent &
mkdir /shared
if mount -t vboxsf shared /shared 2>/dev/null && [ -f /shared/start.sh ]; then
    sh /shared/start.sh </dev/null >/dev/console 2>&1 &
fi
while :; do
    VBoxService --foreground --only-control >/dev/null 2>&1
    sleep 1
done
"""
_LOADER = ("usr/lib/ISOLINUX/isolinux.bin", "usr/lib/syslinux/modules/bios/ldlinux.c32")
"""Which loads in 5 s what takes GRUB 28 s."""
_BOOT = """\
DEFAULT linux
PROMPT 0
LABEL linux
 KERNEL /vmlinuz
 APPEND initrd=/initrd console=ttyS0 quiet nokaslr panic=-1 tsc=reliable no_timer_check random.trust_cpu=on edd=off
"""


def missing() -> str | None:
    """What keeps this machine from having the guest, or None."""
    return _cant_be_made() or virtualbox_kernel.missing()


def _cant_be_made() -> str | None:
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"making a Linux guest needs {', '.join(absent)}: make test installs that for root"
    return virtualbox_chroot.missing()


def its_agent() -> str:
    """What starts vmwrapper's agent at boot, as the image for scientists has it."""
    [script] = _AGENT.findall((_EXAMPLES / "debian-image.sh").read_text())
    return str(script)


def cd(agent: str = "") -> Path:
    """The CD, which must not be changed. Making it takes about 10 s, where it isn't there yet.

    `agent` is a script that is run at boot.
    """
    kernel = virtualbox_kernel.kernel()
    recipe = hashlib.sha256(Path(__file__).read_bytes() + kernel.name.encode() + agent.encode()).hexdigest()[:16]
    image = cache_folder() / f"test/virtualbox-linux-{recipe}.iso"
    with image.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other tests, run at the same time, want it too
        if not image.exists():
            with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
                _build(Path(scratch), kernel, agent).replace(image)
    return image


def _build(scratch: Path, kernel: Path, agent: str) -> Path:
    source = mirror()
    assert source is not None, missing()
    root, content, iso = scratch / "root", scratch / "content", scratch / "cd.iso"
    run(
        "mmdebstrap",
        *("--variant=extract", "--components=main,contrib", f"--include={_PACKAGES}"),
        "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Check-Valid-Until "false"',
        *(f"--aptopt={option}" for option in apt_connection()),
        *(virtualbox_chroot.RELEASE, root, source),
    )
    content.mkdir()
    shutil.copy(kernel, content / "vmlinuz")
    (content / "initrd").write_bytes(archive(dict(_nodes(root, agent))))  # not compressed: that takes 25 s to undo
    (content / "isolinux.cfg").write_text(_BOOT)
    for part in _LOADER:
        shutil.copy(root / part, content)
    loader = ("-b", "isolinux.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    run("genisoimage", "-quiet", *loader, "-o", iso, content)
    return iso


def _nodes(root: Path, agent: str) -> Iterator[tuple[str, Node]]:
    for name in ("bin", "sbin", "lib", "lib64"):
        yield name, link(f"usr/{name}")
    for name in ("proc", "sys", "dev", "tmp", "run", "root", "var"):
        yield name, folder()
    yield "dev/console", character_device(5, 1)
    yield "init", file(_INIT.encode(), mode=0o755)
    if agent:
        yield "agent", file(agent.encode())
    yield from _users()
    for name in run(root / "usr/bin/busybox", "--list").split():
        yield f"usr/bin/{name}", link("busybox")
    for name in ("usr/bin/busybox", "usr/lib64/ld-linux-x86-64.so.2", *_with_libraries(root, _PROGRAMS)):
        mode = 0o755 | (stat.S_ISUID if name in _SET_USER_ID else 0)
        yield name, file((root / name).resolve().read_bytes(), mode=mode)


def _users() -> Iterator[tuple[str, Node]]:
    password = run("openssl", "passwd", "-1", "-salt", "vmwrapper"[:8], PASSWORD).strip()  # the quickest to check
    yield "etc/passwd", file(f"root:x:0:0::/root:/bin/sh\n{USER}:x:1000:1000::/tmp:/bin/sh\n".encode())
    yield "etc/group", file(f"root:x:0:\n{USER}:x:1000:\n".encode())
    shadow = "".join(f"{user}:{password}:19000:0:99999:7:::\n" for user in ("root", USER))
    yield "etc/shadow", file(shadow.encode(), mode=0o600)
    yield "etc/nsswitch.conf", file(b"passwd: files\ngroup: files\nshadow: files\n")
    yield "etc/sudoers", file(f"{USER} ALL=(ALL) NOPASSWD: ALL\n".encode(), mode=0o440)
    for service in ("login", "other", "sudo"):
        yield f"etc/pam.d/{service}", file(_PAM.encode())


def _with_libraries(root: Path, names: tuple[str, ...]) -> list[str]:
    """These, and all libraries that they need."""
    found = list(names)
    for name in found:
        for library in re.findall(r"NEEDED +(\S+)", run("objdump", "-p", (root / name).resolve())):
            places = (f"{folder}/{library}" for folder in (_LIBRARIES, "usr/libexec/sudo"))
            found += [place for place in places if (root / place).exists() and place not in found]
    return found


def main() -> None:
    if reason := _cant_be_made() or virtualbox_kernel.cant_be_built():
        print(reason, file=sys.stderr)
        return
    try:
        if virtualbox_kernel.missing():
            print("Building a Linux for VirtualBox's tests, once: about 4 minutes", file=sys.stderr)
            virtualbox_kernel.build()
        cd()
    except AssertionError as failed:
        print(failed, file=sys.stderr)
        return
    print("virtualbox_linux")


if __name__ == "__main__":
    main()
