"""The real BOINC client, with a whole job in a guest of the real VirtualBox's; and the same job on QEMU, by hand."""

import re
import shlex
import subprocess
from pathlib import Path
from xml.sax.saxutils import escape

import psutil
import pytest

from . import virtualbox_linux
from .boinc_client import RESULT, BoincClient
from .client_files import MAIN, Preferences, Workunit
from .jobs import VMWRAPPER
from .project_server import ProjectServer
from .virtualbox import Profile

pytestmark = pytest.mark.virtualbox_linux

LIMIT_S = 300
"""A boot takes half a minute, each look into the guest some seconds."""
EXAMPLES = Path(__file__).parents[2] / "examples"
JOB = """\
<job_desc>
   <task>
       <vm>{vm}</vm> {login}
       <innerjob>work.sh</innerjob>
       <data>hubble.sh</data>
       <data>nebulae.dat</data>
       <output>hubble.out</output>
       <setenv>RESAMPLES=20</setenv>
       <memory_mb>160</memory_mb> <disk_mb>0</disk_mb>
       <checkpoint_interval>5</checkpoint_interval>
   </task>
</job_desc>
"""
WORK = """\
#!/bin/sh
n=0
while [ $n -lt {seconds} ]; do
    sleep 1
    n=$((n + 1))
done
exec sh hubble.sh
"""
LOGIN = f"<user>root</user> <password>{escape(virtualbox_linux.PASSWORD)}</password>"
CHAPTERS = (
    "Connected to",
    "Using",
    "Processing task",
    "VM image",
    "Machine created",
    "Machine is on",
    "Guest is ready",
    "Copying in input",
    "Running the program",
    "Program done",
    "Copying out output",
    "Sanitizing the virtual machine",
)
SECONDS = 60


def start(client: BoincClient, virtualbox: Profile, *, seconds: int) -> None:
    """A client whose app finds this VirtualBox."""
    if reason := virtualbox_linux.missing():
        pytest.skip(reason)
    settings = [f"{name}={virtualbox.environment[name]}" for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID")]
    app = f'#!/bin/sh\nexec env {shlex.join(settings)} {shlex.quote(str(VMWRAPPER))} --debug "$@"\n'
    files = {name: (EXAMPLES / name).read_bytes() for name in ("hubble.sh", "nebulae.dat")}
    job = JOB.format(vm="guest", login=f"<backend>virtualbox</backend> {LOGIN}")
    work = WORK.format(seconds=seconds)
    client.prepare(
        Workunit(
            inputs={"job.xml": job.encode(), "work.sh": work.encode(), **files},
            outputs=["hubble.out"],
            disk_bound_bytes=4_000_000_000,
        ),
        app_files={MAIN: app.encode(), "guest.iso": virtualbox_linux.cd().read_bytes()},
        preferences=Preferences(leave_apps_in_memory=True),
    )
    client.start()


def by_hand_on_qemu(folder: Path) -> tuple[bytes, str]:
    """The output, and the log."""
    folder.mkdir()
    for name in ("hubble.sh", "nebulae.dat"):
        (folder / name).write_bytes((EXAMPLES / name).read_bytes())
    (folder / "work.sh").write_text(WORK.format(seconds=0))
    (folder / "job.xml").write_text(JOB.format(vm="default", login="<backend>qemu</backend>"))
    argv = [VMWRAPPER, "run", folder / "job.xml"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return (folder / "hubble.out").read_bytes(), done.stderr


def chapters(log: str) -> list[str]:
    """Which, in the order in which they began."""
    said = re.findall(rf"^\S+ \S+ \(\d+\): ({'|'.join(map(re.escape, CHAPTERS))})", log, re.MULTILINE)
    return list(dict.fromkeys(said))


def wait_for(client: BoincClient, words: str, *, times: int = 1) -> None:
    client.wait_until(lambda: client.stderr.count(words) >= times, limit_s=LIMIT_S)


def stands(machine: psutil.Process) -> bool:
    return machine.cpu_percent(interval=2) < 2


def test_a_whole_job_goes_on_whatever_happens_to_it(
    virtualbox: Profile, client: BoincClient, server: ProjectServer, tmp_path: Path, image: bytes
) -> None:
    assert image
    start(client, virtualbox, seconds=SECONDS)
    wait_for(client, "Checkpoint taken")
    [machine] = virtualbox.machines()

    client.ask("suspend")
    client.wait_until(lambda: stands(machine), limit_s=20)
    assert client.task().activity == "SUSPENDED"
    client.ask("resume")
    client.wait_until(lambda: not stands(machine), limit_s=20)

    client.quit()
    assert virtualbox.machines() == []
    assert virtualbox.vms() == []
    client.start()
    wait_for(client, "Going on with the program")

    [machine] = virtualbox.machines()
    machine.kill()
    wait_for(client, "Going on with the program", times=2)

    report = client.report()
    assert report.count("Running the program") == 1
    assert report.count("Going on with the program") == 2
    assert virtualbox_linux.PASSWORD not in report
    assert client.left_behind() == []
    output, log = by_hand_on_qemu(tmp_path / "qemu")
    assert server.uploads == {f"{RESULT}_0": output}
    assert chapters(report) == chapters(log) == list(CHAPTERS)


def test_an_aborted_one_leaves_nothing(virtualbox: Profile, client: BoincClient) -> None:
    start(client, virtualbox, seconds=600)
    wait_for(client, "Machine is on")
    client.ask("abort")
    client.wait_until(lambda: client.processes() == [] and virtualbox.machines() == [], limit_s=10)
    report = client.report()
    assert "aborted on request" in report
    assert client.left_behind() == []
    assert virtualbox.vms() == virtualbox.hdds() == virtualbox.dvds() == []
