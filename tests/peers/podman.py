"""Podman with a store of its own, and a small Linux for its containers, which needs no network.

Its containers are what vcsim's machines run. They work where this machine's control groups are mixed, and need root.
"""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.debian_mirror import run

TOOLS = ("podman", "runc", "busybox")
USER = "ada"
IMAGE = "guest"

_CONTAINERS = """\
[containers]
cgroupns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
tmp_dir = "{folder}/run/libpod"
"""
"""crun refuses mixed control groups. Locks in shared memory would be shared with all other stores."""
_STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{folder}/store"
runroot = "{folder}/run/storage"
"""
_TEXTS = {
    "etc/passwd": f"root:x:0:0::/root:/bin/sh\n{USER}:x:1000:1000::/home/{USER}:/bin/sh\n",
    "etc/group": f"root:x:0:\n{USER}:x:1000:\n",
    "etc/inittab": "null::sysinit:/bin/true\n",  # busybox's init only reaps
}


class Podman:
    """`environment` makes any podman one with this store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, text in (("containers.conf", _CONTAINERS), ("storage.conf", _STORAGE)):
            (folder / name).write_text(text.format(folder=folder))
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
        }

    def __call__(self, *argv: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            ("podman", *argv), env=self.environment, input=stdin, capture_output=True, check=False, cwd=self._folder
        )
        assert done.returncode == 0, f"podman {argv}: {done.stderr.decode()}"
        return done.stdout.decode()

    def containers(self) -> list[str]:
        return self("ps", "--all", "--quiet").split()

    def images(self) -> list[str]:
        return self("images", "--all", "--quiet").split()


@contextmanager
def podman(folder: Path) -> Iterator[Podman]:
    """One whose store has IMAGE. At the end no container is left, nor the folder."""
    folder.mkdir()
    ours = Podman(folder)
    try:
        ours("import", "--quiet", "-", IMAGE, stdin=_root())
        yield ours
    finally:
        ours("rm", "--force", "--all", "--time", "0")
        shutil.rmtree(folder)


def _root() -> bytes:
    """A root file system of busybox, with the users root and USER."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var"):
            _add(tar, name, tarfile.DIRTYPE, mode=0o755)
        _add(tar, "tmp", tarfile.DIRTYPE, mode=0o1777)
        _add(tar, f"home/{USER}", tarfile.DIRTYPE, mode=0o755, owner=1000)
        busybox = Path(shutil.which("busybox") or "").read_bytes()
        _add(tar, "bin/busybox", tarfile.REGTYPE, mode=0o755, content=busybox)
        for name in run("busybox", "--list").split():
            if name != "busybox":
                _add(tar, f"bin/{name}", tarfile.SYMTYPE, target="busybox")
        for name in ("sbin", "usr/bin", "usr/sbin"):
            _add(tar, name, tarfile.SYMTYPE, target="/bin")
        for name, text in _TEXTS.items():
            _add(tar, name, tarfile.REGTYPE, content=text.encode())
    return packed.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    kind: bytes,
    *,
    mode: int = 0o644,
    owner: int = 0,
    target: str = "",
    content: bytes = b"",
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid, entry.linkname, entry.size = (
        kind,
        mode,
        owner,
        owner,
        target,
        len(content),
    )
    tar.addfile(entry, io.BytesIO(content))
