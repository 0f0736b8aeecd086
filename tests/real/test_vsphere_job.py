"""A whole job, run by the program `vmwrapper` in a guest of a vSphere server's: here a container behind a simulator."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import psutil
import pytest

from tests.peers import vcsim, vsphere

from .test_job import DAVID_WEIRS_CHAPTERS, EXAMPLES, VMWRAPPER

pytestmark = pytest.mark.vcsim

LIMIT_S = 150
CHAPTERS = tuple(
    chapter.replace(r"cernvm-1\.01-x86/cernvm-1\.01-x86", "default")
    .replace(r"foo\.dat", r"nebulae\.dat")
    .replace(r"bar\.dat", r"hubble\.out")
    .replace(r"inner\.sh", r"hubble\.sh")
    .replace("qemu", "vmware")
    for chapter in DAVID_WEIRS_CHAPTERS
    if chapter != "Finish called"  # which is for the client
)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vsphere.Server]:
    """A vCenter, or what a parameter says."""
    if reason := vsphere.missing():
        pytest.skip(reason)
    with vsphere.server(tmp_path / "server", kind=getattr(request, "param", "vpx")) as running:
        yield running


def environment(server: vsphere.Server, cache: Path) -> dict[str, str]:
    """With the base machine as the default guest."""
    (cache / "images").mkdir(parents=True)
    server.image.rename(cache / "images" / "default.vsphere")
    return os.environ | server.environment | {"VMWRAPPER_CACHE": str(cache)}


@pytest.mark.parametrize("server", ["vpx", "esx"], indirect=True)
def test_the_example_as_on_qemu(server: vsphere.Server, tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    slot.mkdir()
    for name in ("hubble.sh", "nebulae.dat"):
        (slot / name).write_bytes((EXAMPLES / name).read_bytes())
        (slot / name).chmod(0o755)
    job = (EXAMPLES / "job.xml").read_text()
    job = re.sub("<user>.*</user>", "<user>root</user> <disk_mb>0</disk_mb>", job)
    job = re.sub("<password>.*</password>", f"<password>{escape(vsphere.ROOT.password)}</password>", job)
    (slot / "job.xml").write_text(job)
    before, files = server.machines(), server.simulator.files()

    argv = [VMWRAPPER, "run", "--debug", "--backend", "vmware", slot / "job.xml"]
    told = environment(server, tmp_path / "cache")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        wrapper = subprocess.Popen(argv, env=told, stderr=stderr, stdin=subprocess.DEVNULL)
        seen = " ".join(psutil.Process(wrapper.pid).cmdline())
        assert wrapper.wait(LIMIT_S) == 0, log.read_text()

    said = log.read_text()
    at = 0
    for chapter in CHAPTERS:
        found = re.compile(chapter).search(said, at)
        assert found, f"{chapter}\n{said}"
        at = found.end()
    assert "H0 = " in (slot / "hubble.out").read_text()
    assert server.machines() == before
    assert server.simulator.files() == files
    for secret in (vsphere.ROOT.password, vcsim.PASSWORD):
        assert secret not in said
        assert secret not in seen


def test_a_probe_and_a_sweep_by_hand(server: vsphere.Server, tmp_path: Path) -> None:
    told = environment(server, tmp_path / "cache")
    words = {"env": told, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    probed = subprocess.run([VMWRAPPER, "probe"], check=False, **words)
    assert "vCenter" in probed.stdout, probed
    assert vcsim.PASSWORD not in probed.stdout + probed.stderr
    server.settings_file.chmod(0o644)
    probed = subprocess.run([VMWRAPPER, "probe"], check=False, **words)
    assert "chmod 600" in probed.stdout, probed
