"""The real BOINC client, with a whole job in a guest of the real VirtualBox's; and the same job on QEMU, by hand."""

from pathlib import Path
from xml.sax.saxutils import escape

import psutil
import pytest

from . import hubble_job, virtualbox_linux
from .boinc_client import RESULT, BoincClient
from .client_files import MAIN, Preferences, Workunit
from .hubble_job import wait_for
from .project_server import ProjectServer
from .virtualbox import Profile

pytestmark = pytest.mark.virtualbox_linux

WISHES = f"<backend>virtualbox</backend> <user>root</user> <password>{escape(virtualbox_linux.PASSWORD)}</password>"
SECONDS = 40
COUNTS = 60
BY_ITSELF = """\
<job_desc>
   <task>
       <vm>guest</vm> <memory_mb>128</memory_mb>
       <data>start.sh</data>
       <output>counted</output>
       <completion_trigger_file>done</completion_trigger_file>
       <fraction_done_filename>fraction</fraction_done_filename>
       <checkpoint_interval>4</checkpoint_interval>
   </task>
</job_desc>
"""
START = f"""\
cd /tmp
n=0
while [ $n -lt {COUNTS} ]; do
    n=$((n + 1))
    echo $n >>counted
    echo "0.$((n + 100))" >/shared/fraction
    sleep 1
done
cp counted /shared/counted
echo 0 >/shared/done
poweroff -f
"""
"""The guest's program, which it runs from the shared folder once it has booted."""


def settings_of(virtualbox: Profile) -> dict[str, str]:
    """What an app needs to find it."""
    if reason := virtualbox_linux.missing():
        pytest.skip(reason)
    return {name: virtualbox.environment[name] for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID")}


def start(client: BoincClient, virtualbox: Profile, *, seconds: int) -> None:
    """A client whose app finds this VirtualBox."""
    settings = settings_of(virtualbox)
    hubble_job.start(client, virtualbox_linux.cd(), wishes=WISHES, seconds=seconds, settings=settings)


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

    report = client.report(limit_s=hubble_job.LIMIT_S)
    assert report.count("Running the program") == 1
    assert report.count("Going on with the program") == 2
    assert virtualbox_linux.PASSWORD not in report
    assert client.left_behind() == []
    output, log = hubble_job.by_hand_on_qemu(tmp_path / "qemu")
    assert server.uploads == {f"{RESULT}_0": output}
    assert hubble_job.chapters(report) == hubble_job.chapters(log) == list(hubble_job.CHAPTERS)


def test_a_guest_that_works_by_itself(virtualbox: Profile, client: BoincClient, server: ProjectServer) -> None:
    client.prepare(
        Workunit(
            inputs={"job.xml": BY_ITSELF.encode(), "start.sh": START.encode()},
            outputs=["counted"],
            disk_bound_bytes=4_000_000_000,
        ),
        app_files={MAIN: hubble_job.app(settings_of(virtualbox)), "guest.iso": virtualbox_linux.cd().read_bytes()},
        preferences=Preferences(leave_apps_in_memory=True),
    )
    client.start()
    wait_for(client, "Checkpoint taken")
    [machine] = virtualbox.machines()
    client.ask("suspend")
    client.wait_until(lambda: stands(machine), limit_s=20)
    client.ask("resume")
    client.wait_until(lambda: not stands(machine), limit_s=20)

    client.quit()
    assert virtualbox.machines() == []
    client.start()
    wait_for(client, "The guest goes on by itself")
    report = client.report(limit_s=hubble_job.LIMIT_S)
    assert report.count("The guest goes on by itself") == 1
    assert server.uploads == {f"{RESULT}_0": "".join(f"{number}\n" for number in range(1, COUNTS + 1)).encode()}
    assert client.left_behind() == []
    assert virtualbox.vms() == virtualbox.hdds() == []


def test_an_aborted_one_leaves_nothing(virtualbox: Profile, client: BoincClient) -> None:
    start(client, virtualbox, seconds=600)
    wait_for(client, "Machine is on")
    client.ask("abort")
    client.wait_until(lambda: client.processes() == [] and virtualbox.machines() == [], limit_s=10)
    report = client.report()
    assert "aborted on request" in report
    assert client.left_behind() == []
    assert virtualbox.vms() == virtualbox.hdds() == virtualbox.dvds() == []
