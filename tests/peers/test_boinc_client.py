"""Jobs run by the real BOINC client, from the slot to the project's server."""

import shlex
import sys
from pathlib import Path

import psutil
import pytest

from .boinc_client import MAIN, RESULT, BoincClient
from .project_server import ProjectServer

pytestmark = [pytest.mark.boinc_client, pytest.mark.qemu]

VMWRAPPER = Path(sys.executable).with_name("vmwrapper")
JOB = """\
<job_desc>
   <task>
       <vm>guest</vm>
       <innerjob>program.sh</innerjob>
       <data>in.dat</data>
       <output>out.dat</output>
   </task>
</job_desc>
"""
COPY = "tr a-z A-Z <in.dat >out.dat"
# A paused guest's uptime stands still.
COMPUTE = """\
now() { cut -d. -f1 /proc/uptime; }
end=$(($(now) + 8))
while [ $(now) -lt $end ]; do :; done
"""


@pytest.fixture(autouse=True)
def image(default_image: Path) -> bytes:
    return default_image.read_bytes()


def start(client: BoincClient, image: bytes, script: str, *, environment: str = "") -> None:
    """A task whose program is this script, and the client that runs it."""
    app = f'#!/bin/sh\nexec env {environment} {shlex.quote(str(VMWRAPPER))} "$@"\n'
    client.prepare(
        app_files={MAIN: app.encode(), "guest.vmguest": image},
        input_files={"job.xml": JOB.encode(), "program.sh": f"#!/bin/sh\n{script}\n".encode(), "in.dat": b"input"},
        outputs=["out.dat"],
    )
    client.start()


def wait_for_program(client: BoincClient) -> None:
    client.wait_until(lambda: "Running the program" in client.stderr)


def machine(client: BoincClient) -> psutil.Process:
    [found] = [process for process in client.processes() if process.name().startswith("qemu-system")]
    return found


def test_a_task_is_uploaded_and_reported(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, f"{COMPUTE}\n{COPY}")
    report = client.report()
    assert server.uploads == {f"{RESULT}_0": b"INPUT"}
    assert "<exit_status>0</exit_status>" in report
    assert float(report.partition("<final_cpu_time>")[2].partition("<")[0]) > 4
    assert "Finish called" in report
    assert "secret-of-the-volunteer" not in report
    left = {path.name for path in client.project_dir.iterdir() if not path.name.startswith(("app_1_", "wu1_"))}
    assert left == set()


def test_a_suspended_guest_stands_still(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, f"{COMPUTE}\n{COPY}")
    wait_for_program(client)
    guest = machine(client)
    client.ask("suspend")
    client.wait_until(lambda: guest.cpu_percent(interval=1) == 0, limit_s=10)
    before = guest.cpu_times()
    assert guest.cpu_percent(interval=3) < 1
    assert guest.cpu_times().user - before.user < 0.05
    client.ask("resume")
    client.wait_until(lambda: guest.cpu_percent(interval=1) > 5, limit_s=10)
    client.report()
    assert server.uploads == {f"{RESULT}_0": b"INPUT"}


def test_an_aborted_task_leaves_nothing(client: BoincClient, image: bytes) -> None:
    start(client, image, "sleep 600")
    wait_for_program(client)
    client.ask("abort")
    client.wait_until(lambda: client.processes() == [], limit_s=10)
    report = client.report()
    assert "<exit_status>203</exit_status>" in report  # aborted by its user, whatever the app returns
    assert "aborted on request" in report


def test_a_client_that_is_stopped_and_started_goes_on(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, f"{COMPUTE}\n{COPY}")
    wait_for_program(client)
    client.stop()
    assert client.processes() == []
    assert [path.name for path in client.slot.iterdir() if path.name.startswith((".vmwrapper", "boinc_lock"))] == []
    client.start()
    report = client.report()
    assert server.uploads == {f"{RESULT}_0": b"INPUT"}
    assert report.count("Running the program") == 2
    assert "stopped on request" in report


def test_a_client_that_was_killed_is_missed(client: BoincClient, image: bytes) -> None:
    start(client, image, "sleep 600")
    wait_for_program(client)
    client.kill()
    client.wait_until(lambda: client.processes() == [], limit_s=15)
    assert "The client is gone" in client.stderr


def test_a_program_that_fails_is_a_compute_error(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, "echo the reason >&2; exit 3")
    report = client.report()
    assert "<exit_status>195</exit_status>" in report
    assert "program.sh failed: exit status 3" in report
    assert "the reason" in report
    assert server.uploads == {}


def test_without_a_hypervisor_the_task_is_postponed_with_a_notice(
    client: BoincClient, tmp_path: Path, image: bytes
) -> None:
    start(client, image, COPY, environment=f"PATH={shlex.quote(str(tmp_path))}")
    client.wait_until(lambda: f"Task {RESULT} postponed for 3600 seconds: QEMU" in client.log, limit_s=20)
    assert "apt-get install qemu-system-x86" in client.said("--get_notices")
