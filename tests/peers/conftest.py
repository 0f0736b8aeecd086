"""For tests with real peers: what they need, and that nothing of theirs stays behind."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vmwrapper.folders import image_folder

from . import boot_sector, vcsim, virtualbox_chroot
from .boinc_client import BoincClient
from .project_server import ProjectServer, project_server
from .virtualbox import Profile, clean_profile


@pytest.fixture
def image() -> bytes:
    """The guest that `make setup` builds."""
    image = image_folder() / "default.vmguest"
    if shutil.which("qemu-system-x86_64") is None or not image.exists():
        pytest.skip("needs QEMU and the default guest: make setup")
    return image.read_bytes()


@pytest.fixture
def server() -> Iterator[ProjectServer]:
    with project_server() as running:
        yield running


@pytest.fixture
def client(request: pytest.FixtureRequest, tmp_path: Path, server: ProjectServer) -> Iterator[BoincClient]:
    """In a directory whose name may be given. Fails a test after which a process is left."""
    if shutil.which("boinc") is None or shutil.which("boinccmd") is None:
        pytest.skip("needs the BOINC client: apt-get install boinc-client")
    peer = BoincClient(tmp_path / getattr(request, "param", "client"), server)
    try:
        yield peer
    finally:
        peer.stop()
        left = peer.processes()
        for process in left:
            process.kill()  # so that only this test fails
        psutil.wait_procs(left, timeout=5)
    assert left == []


@pytest.fixture
def virtualbox(tmp_path: Path) -> Iterator[Profile]:
    """A profile of its own. Fails a test that leaves anything registered, or a machine running."""
    if reason := boot_sector.missing() or virtualbox_chroot.missing():
        pytest.skip(reason)
    with clean_profile(tmp_path / "virtualbox") as profile:
        yield profile


@pytest.fixture
def vsphere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vcsim.Simulator]:
    """A vCenter, or what a parameter says."""
    if reason := vcsim.missing():
        pytest.skip(reason)
    with vcsim.simulator(tmp_path / "vsphere", kind=getattr(request, "param", "vpx")) as running:
        yield running
