"""Jobs run by the real BOINC client, from the slot to the project's server."""

import hashlib
import shlex
from pathlib import Path

import pytest

from .boinc_client import RESULT, BoincClient
from .client_files import SECRET
from .jobs import COPY, RIGHT, compute, start, wait_for_program, work
from .project_server import ProjectServer

pytestmark = [pytest.mark.boinc_client, pytest.mark.qemu]


def test_a_task_is_uploaded_and_reported(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, work(f"{compute(8)}\n{COPY}"))
    report = client.report()
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert "<exit_status>0</exit_status>" in report
    assert float(report.partition("<final_cpu_time>")[2].partition("<")[0]) > 4
    assert "Finish called" in report
    assert SECRET not in report
    assert client.left_behind() == []


@pytest.mark.parametrize("client", ['R&D <1> "Zoë", 100 %\''], indirect=True)
def test_names_and_paths_may_look_like_markup(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    """In init_data.xml the client escapes what its project has named, and leaves its paths as they are."""
    start(client, image, work(COPY))
    wait_for_program(client)
    told = (client.slot / "init_data.xml").read_text()
    assert '<user_name>R&amp;D &lt;1> "Zo&#195;&#171;"</user_name>' in told
    assert f"<project_dir>{client.project_dir}</project_dir>" in told
    assert all("<soft_link>" in (client.slot / name).read_text() for name in ("job.xml", "guest.vmguest", "in.dat"))
    client.report()
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert client.left_behind() == []


def test_two_tasks_at_once_share_an_image(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    before = hashlib.sha256(image).digest()
    start(client, image, *(work(f"{compute(8)}\n{COPY}", data=data) for data in (b"one", b"two")))
    client.wait_until(lambda: len(client.machines()) == 2)
    tasks = client.tasks()
    assert {task.slot for task in tasks.values()} == {0, 1}
    assert {task.activity for task in tasks.values()} == {"EXECUTING"}
    reports = [client.report(result) for result in ("wu1_0", "wu2_0")]
    assert server.uploads == {"wu1_0_0": b"ONE", "wu2_0_0": b"TWO"}
    assert all("<exit_status>0</exit_status>" in report for report in reports)
    assert hashlib.sha256((client.project_dir / "app_1_guest.vmguest").read_bytes()).digest() == before
    assert client.left_behind() == []


def test_a_program_that_fails_is_a_compute_error(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, work("echo the reason >&2; exit 3"))
    report = client.report()
    assert "<exit_status>195</exit_status>" in report
    assert "program.sh failed: exit status 3" in report
    assert "the reason" in report
    assert server.uploads == {}
    assert client.left_behind() == []


def test_without_a_hypervisor_the_task_is_postponed_with_a_notice(
    client: BoincClient, tmp_path: Path, image: bytes
) -> None:
    start(client, image, work(COPY), environment=f"PATH={shlex.quote(str(tmp_path))}")
    client.wait_until(lambda: f"Task {RESULT} postponed for 3600 seconds: QEMU" in client.log, limit_s=20)
    assert "apt-get install qemu-system-x86" in client.say("--get_notices")
    assert client.left_behind() == []


def test_after_a_temporary_exit_the_task_is_started_again(
    client: BoincClient, server: ProjectServer, image: bytes
) -> None:
    start(client, image, work(f"sleep 5; {COPY}"))
    wait_for_program(client)
    [machine] = client.machines()
    machine.kill()
    client.wait_until(lambda: f"Task {RESULT} postponed for " in client.log, limit_s=15)
    assert client.processes() == []
    assert client.left_behind() == []
    report = client.report()
    assert "killed by signal 9" in report
    assert report.count("Running the program") == 2
    assert "<exit_status>0</exit_status>" in report
    assert server.uploads == {f"{RESULT}_0": RIGHT}


def test_a_task_that_outgrows_its_workunit_is_told_so(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    script = "dd if=/dev/zero of=big bs=1M count=400 conv=fsync; sleep 600"
    start(client, image, work(script, disk_bound_bytes=200_000_000))
    report = client.report()
    assert "<exit_status>196</exit_status>" in report
    assert "rsc_disk_bound" in report
    assert server.uploads == {}
    assert client.left_behind() == []
