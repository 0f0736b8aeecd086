"""Debian sid's VirtualBox, beside the programs of this machine: set up once, and kept between runs.

It executes guests without a kernel module: in its driverless mode, by its interpreter, for machines with
`modifyvm --vm-execution-engine=interpreter`. Its packages are unpacked, not installed, in a folder. There `/usr` is all
that its programs need: they run where that is mounted over this machine's `/usr`, which only they see, so every other
path is what it is outside.

`python -m tests.peers.virtualbox_chroot` sets it up, and prints `virtualbox` where that could be done.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from tests.debian_mirror import apt_connection, mirror, run
from vmwrapper.folders import cache_folder

TOOLS = ("mmdebstrap", "apt-get", "unshare", "mount")
RELEASE = "sid"
PACKAGES = "virtualbox,dash"
NAMES = ("VBoxManage", "VBoxHeadless")

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APT_HELPER = Path("/usr/lib/apt/apt-helper")
_FAILURE_COUNTS_FOR_S = 3600
_APT_OPTIONS = (
    'APT::Install-Recommends "false"',
    'Acquire::Check-Valid-Until "false"',  # a mirror may stand still, and sid be older than it says that it gets
)
_DPKG_OPTIONS = tuple(f"path-exclude=/usr/share/{folder}/*" for folder in ("doc", "locale", "man", "info"))

# Of the graphical programs only the small one is wanted that loads what does the work: the two options in its command
# line make it do without a driver, and VBoxHeadless takes both for values of an option that it ignores.
_HEADLESS_WITHOUT_DRIVER = """\
set -e
cd "$1"
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get download virtualbox-qt
dpkg-deb --fsys-tarfile virtualbox-qt_*.deb | tar --extract ./usr/lib/virtualbox/VirtualBoxVM
cd usr/lib/virtualbox
cp VBoxHeadless.so VirtualBoxVM.so
rm VBoxHeadless
cat >VBoxHeadless <<'END'
#!/bin/sh
exec /usr/lib/virtualbox/VirtualBoxVM --comment --driverless --comment --execute-all-in-iem "$@"
END
chmod +x VBoxHeadless
"""
# The one in /usr/bin says on stdout that there is no kernel module.
_PROGRAM = """\
#!/bin/sh
exec unshare --mount --propagation slave /bin/sh -c \\
'mount --no-mtab --bind "$0" /usr && exec /usr/lib/virtualbox/{name} "$@"' {usr} "$@"
"""


class CouldNotBeBuilt(Exception):
    """With what was said."""


def missing() -> str | None:
    """What keeps this machine from having VirtualBox, or None."""
    if (reason := _missing_here()) is not None or _home().exists():
        return reason
    return _recent_failure() or _missing_elsewhere()


def chroot() -> Path:
    """The folder with its `usr`. It takes about a minute, where it isn't there yet."""
    home = _home()
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other tests, run at the same time, want it too
        if not home.exists():
            if reason := _recent_failure():
                raise CouldNotBeBuilt(reason)
            with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
                _build(Path(scratch)).replace(home)
    return home


def programs() -> Path:
    """A folder with programs that stand for the installed ones.

    Each becomes the installed one by exec, so it is the process that was started, with all that it was given.
    """
    return chroot() / "programs"


def _missing_here() -> str | None:
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"setting VirtualBox up needs {', '.join(absent)}: make test installs that for root"
    checks = {
        "setting VirtualBox up needs root": os.geteuid() == 0,
        "Debian's VirtualBox needs x86-64": platform.machine() == "x86_64",
        "setting VirtualBox up needs a machine whose programs and libraries are all in /usr": _is_all_in_usr(),
    }
    return next((reason for reason, holds in checks.items() if not holds), None)


def _is_all_in_usr() -> bool:
    return all(Path(f"/{name}").resolve() == Path(f"/usr/{name}") for name in ("bin", "lib", "lib64"))


@cache
def _missing_elsewhere() -> str | None:
    if not (source := mirror()) or not _KEYRING.exists():
        return "setting VirtualBox up needs a Debian mirror in the configuration of apt: apt-get update"
    with tempfile.TemporaryDirectory() as scratch:
        argv = [_APT_HELPER, "download-file", f"{source}dists/{RELEASE}/InRelease", Path(scratch) / "InRelease"]
        asked = subprocess.run(argv, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        return f"the Debian mirror of this machine's apt does not give {RELEASE}: {asked.stderr.strip()}"
    return None


def _recent_failure() -> str | None:
    """How setting it up failed, so that not every test tries again."""
    try:
        age_s = time.time() - _failure().stat().st_mtime
        return _failure().read_text() if age_s < _FAILURE_COUNTS_FOR_S else None
    except FileNotFoundError:
        return None


def _failure() -> Path:
    return _home().with_suffix(".failed")


def _home() -> Path:
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    return cache_folder() / f"test/virtualbox-{recipe}"


def _build(scratch: Path) -> Path:
    try:
        return _built(scratch)
    except AssertionError as failed:
        _failure().write_text(f"VirtualBox could not be set up: {failed}")
        raise CouldNotBeBuilt(_failure().read_text()) from failed


def _built(scratch: Path) -> Path:
    source = mirror()
    assert source is not None, missing()
    root, home = scratch / "root", scratch / "home"
    run(
        "mmdebstrap",
        *("--variant=extract", "--components=main,contrib", f"--keyring={_KEYRING}", f"--include={PACKAGES}"),
        *(f"--aptopt={option}" for option in (*_APT_OPTIONS, *apt_connection())),
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        f"--extract-hook={_HEADLESS_WITHOUT_DRIVER}",
        *(RELEASE, root, source),
    )
    (home / "programs").mkdir(parents=True)
    (root / "usr").rename(home / "usr")
    for name in NAMES:
        program = home / "programs" / name
        program.write_text(_PROGRAM.format(name=name, usr=shlex.quote(str(_home().resolve() / "usr"))))
        program.chmod(0o755)
    return home


def main() -> None:
    _failure().unlink(missing_ok=True)
    if reason := missing():
        print(reason, file=sys.stderr)
        return
    try:
        version = run(programs() / "VBoxManage", "--version")
    except (CouldNotBeBuilt, AssertionError) as failed:
        print(failed, file=sys.stderr)
        return
    print(f"VirtualBox {version.strip()}, in {chroot()}", file=sys.stderr)
    print("virtualbox")


if __name__ == "__main__":
    main()
