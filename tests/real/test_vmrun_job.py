"""Whole jobs, run by the program `vmwrapper` on vmrun's stand-in: never on real VMware."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import psutil
import pytest

from tests.peers import vmrun_stand_in as stand_in
from vmwrapper.hypervisor.vmware.vmrun.disks import make_disk
from vmwrapper.hypervisor.vmware.vmrun.running import running
from vmwrapper.hypervisor.vmware.vmrun.settings import SCRATCH_UUID

pytestmark = pytest.mark.skipif(bool(stand_in.missing()), reason=str(stand_in.missing()))

LIMIT_S = 60
COUNTS = 12
ROOT = Path(__file__).parents[2]
PROGRAM = f"""\
#!/bin/sh
echo begun >>begun
n=$(wc -l <counted 2>/dev/null || echo 0)
while [ $n -lt {COUNTS} ]; do
    n=$((n + 1))
    echo "$n $1" >>counted
    sleep ${{PACE_S}}
done
cat input counted >output
"""
JOB = """\
<job_desc>
   <task>
      <backend>vmware</backend> <vm>base.vmx</vm> <memory_mb>64</memory_mb> <disk_mb>0</disk_mb>
      <user>root</user> <password>{password}</password> <datadir>/tmp/data</datadir>
      <innerjob>program.sh</innerjob> <command_line>'a "b" $c'</command_line> <setenv>PACE_S={pace_s}</setenv>
      <data>input</data> <output>output</output> <output>begun</output>
      <checkpoint_interval>1</checkpoint_interval>
   </task>
</job_desc>
"""
OUTPUT = b"in\0put" + "".join(f'{number} a "b" $c\n' for number in range(1, COUNTS + 1)).encode()


@pytest.fixture(params=["ws"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Of the stand-in."""
    stand_in.install(tmp_path / "vmware", request.param)
    yield tmp_path / "vmware"
    stand_in.end_all(tmp_path / "vmware")


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    slot = tmp_path / "slot"
    slot.mkdir()
    make_disk(slot / "base.vmdk", 4096, serial=SCRATCH_UUID)
    hostile = 'sharedFolder0.hostPath = "/etc"\nserial0.fileName = "/etc/passwd"\n'
    (slot / "base.vmx").write_text(f'scsi0:0.fileName = "base.vmdk"\nguestOS = "debian12-64"\n{hostile}')
    (slot / "program.sh").write_text(PROGRAM)
    (slot / "input").write_bytes(b"in\0put")
    return slot


def started(home: Path, slot: Path, log: Path, *, pace_s: float) -> subprocess.Popen[bytes]:
    job = slot / "job.xml"
    job.write_text(JOB.format(password=escape(stand_in.PASSWORD), pace_s=pace_s))
    argv = [sys.executable, "-m", "tests.real.vmrun_job", home, "run", "--debug", job]
    with log.open("wb") as stderr:
        return subprocess.Popen(argv, stderr=stderr, cwd=ROOT)


def until_said(wrapper: subprocess.Popen[bytes], log: Path, words: str) -> None:
    ends_at_s = time.monotonic() + LIMIT_S
    while words not in log.read_text():
        assert wrapper.poll() is None, log.read_text()
        assert time.monotonic() < ends_at_s, log.read_text()
        time.sleep(0.05)


def ended(wrapper: subprocess.Popen[bytes], log: Path, slot: Path) -> str:
    """What it said, having ended well and left nothing."""
    assert wrapper.wait(LIMIT_S) == 0, log.read_text()
    said = log.read_text()
    assert (slot / "output").read_bytes() == OUTPUT
    assert not [path for path in slot.iterdir() if path.name.startswith(".vmwrapper")]
    assert stand_in.PASSWORD not in said
    return said


def test_from_beginning_to_end(home: Path, slot: Path, tmp_path: Path) -> None:
    before = (slot / "base.vmdk").read_bytes(), (slot / "base.vmx").read_bytes()
    wrapper = started(home, slot, tmp_path / "log", pace_s=0.02)
    until_said(wrapper, tmp_path / "log", "Machine is on")
    [vmx] = slot.glob(".vmwrapper/*/machine.vmx")
    written = vmx.read_text()
    said = ended(wrapper, tmp_path / "log", slot)
    for chapter in ("Connected to vmware VMware Workstation", "Guest is ready", "Copying in input", "Program done",
                    "Copying out output", "Sanitizing"):  # fmt: skip
        assert chapter in said
    assert (slot / "begun").read_text() == "begun\n"
    assert "/etc" not in written
    assert 'guestOS = "debian12-64"' in written
    assert before == ((slot / "base.vmdk").read_bytes(), (slot / "base.vmx").read_bytes())
    assert running(vmx) == []


def test_goes_on_from_a_checkpoint_after_all_were_killed(home: Path, slot: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    wrapper = started(home, slot, first, pace_s=0.4)
    until_said(wrapper, first, "Checkpoint taken")
    [vmx] = slot.glob(".vmwrapper/*/machine.vmx")
    wrapper.kill()
    wrapper.wait()
    [orphan] = running(vmx)  # which outlives it: nobody's child
    said = ended(started(home, slot, second, pace_s=0.4), second, slot)
    assert not psutil.pid_exists(orphan.pid) or not orphan.is_alive
    assert "left over from an earlier episode" in said
    assert "Going on with the program" in said
    # the stand-in's memory is the guest's files: the program was begun again on what it had, in no new guest
    assert (slot / "begun").read_text() == "begun\nbegun\n"


@pytest.mark.parametrize("home", ["player"], indirect=True)
def test_player_begins_anew(home: Path, slot: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    wrapper = started(home, slot, first, pace_s=0.5)
    until_said(wrapper, first, "Running the program")
    assert "saves no guest's memory" in first.read_text()
    os.kill(wrapper.pid, signal.SIGTERM)
    wrapper.wait(LIMIT_S)
    assert not list(slot.glob(".vmwrapper/*"))
    said = ended(started(home, slot, second, pace_s=0.02), second, slot)
    assert "Going on" not in said
    assert (slot / "begun").read_text() == "begun\n"
    assert not [words for words in stand_in.calls(home) if "snapshot" in words]


def test_the_machine_is_killed(home: Path, slot: Path, tmp_path: Path) -> None:
    wrapper = started(home, slot, tmp_path / "log", pace_s=60)
    until_said(wrapper, tmp_path / "log", "Running the program")
    [vmx] = slot.glob(".vmwrapper/*/machine.vmx")
    running(vmx)[0].kill()
    assert wrapper.wait(LIMIT_S) == 75, (tmp_path / "log").read_text()
    assert "VMware's process of the machine ended" in (tmp_path / "log").read_text()
    assert not list(slot.glob(".vmwrapper/*"))
