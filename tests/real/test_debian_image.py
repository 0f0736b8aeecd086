"""The script that makes an image for VirtualBox of a stock Debian, and what its document says of it."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.debian_mirror import apt_connection, mirror
from tests.peers import virtualbox_linux

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/debian-image.sh"
DOCUMENT = ROOT / "docs/virtualbox-image.md"
TOOLS = ("mmdebstrap", "grub-mkimage", "mke2fs", "qemu-img")
LIMIT_S = 900


def test_the_document_has_the_script_s_own_files() -> None:
    script, document = SCRIPT.read_text(), DOCUMENT.read_text()
    files = re.findall(r"^cat >\"\$work/(?:agent|unit)\" <<'END'\n(.*?)^END\n", script, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    for file in files:
        assert f"\n{file}```\n" in document


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := virtualbox_linux.missing():
        pytest.skip(reason)  # it takes minutes, as much else where that is there
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"building a Debian image needs {', '.join(absent)}: make test installs that for root")
    source = mirror()
    if os.geteuid() != 0 or source is None:
        pytest.skip("building a Debian image needs root, and apt's list of packages")
    image = tmp_path_factory.mktemp("image") / "debian.vdi"
    options = [f"--aptopt={option}" for option in apt_connection()]
    subprocess.run(["sh", SCRIPT, image, *options, source], check=True, timeout=LIMIT_S)
    return image


@pytest.mark.virtualbox_linux
def test_it_boots(image: Path, tmp_path: Path) -> None:
    """In QEMU as far as the login: the agent is for VirtualBox only."""
    console = tmp_path / "console"
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "512", "-snapshot", "-no-reboot"]
    argv += ["-drive", f"file={image},format=vdi,if=ide", "-serial", f"file:{console}"]
    with subprocess.Popen(argv) as machine:
        try:
            ends_at_s = time.monotonic() + LIMIT_S
            while not console.exists() or "debian login:" not in console.read_text(errors="replace"):
                assert machine.poll() is None
                assert time.monotonic() < ends_at_s, console.read_text(errors="replace")
                time.sleep(1)
        finally:
            machine.kill()
