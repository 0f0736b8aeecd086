"""What the real BOINC client's user can ask for while a job runs."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from .boinc_client import RESULT, BoincClient
from .client_files import Preferences
from .jobs import COPY, RIGHT, compute, start, wait_for_program, work
from .project_server import ProjectServer

pytestmark = [pytest.mark.boinc_client, pytest.mark.qemu]

MIB = 1 << 20


@contextmanager
def standing_still(client: BoincClient, machine: psutil.Process) -> Iterator[None]:
    """Around what is said to let it go on again."""
    client.wait_until(lambda: machine.cpu_percent(interval=1) == 0, limit_s=10)
    before = machine.cpu_times()
    assert machine.cpu_percent(interval=3) < 1
    assert machine.cpu_times().user - before.user < 0.05
    yield
    client.wait_until(lambda: machine.cpu_percent(interval=1) > 5, limit_s=10)


@pytest.mark.parametrize("leave_apps_in_memory", [False, True])
def test_a_suspended_guest_stands_still(
    client: BoincClient, server: ProjectServer, image: bytes, *, leave_apps_in_memory: bool
) -> None:
    """Also where a task is not to stay in memory: one without a checkpoint does."""
    preferences = Preferences(leave_apps_in_memory=leave_apps_in_memory)
    start(client, image, work(f"{compute(8)}\n{COPY}"), preferences=preferences)
    wait_for_program(client)
    [machine] = client.machines()
    wrapper = client.task().pid
    client.ask("suspend")
    with standing_still(client, machine):
        task = client.task()
        assert (task.activity, task.suspended_by_user, task.pid) == ("SUSPENDED", True, wrapper)
        client.ask("resume")
    task = client.task()
    assert (task.activity, task.suspended_by_user, task.pid) == ("EXECUTING", False, wrapper)
    assert client.machines() == [machine]
    assert client.report().count("Running the program") == 1
    assert f"sent <suspend/> to {RESULT}" in client.log
    assert f"sent <resume/> to {RESULT}" in client.log
    assert "<quit/>" not in client.log
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert client.left_behind() == []


def test_the_run_mode_never_holds_a_guest_until_always(
    client: BoincClient, server: ProjectServer, image: bytes
) -> None:
    start(client, image, work(f"{compute(8)}\n{COPY}"))
    wait_for_program(client)
    [machine] = client.machines()
    client.say("--set_run_mode", "never")
    with standing_still(client, machine):
        assert client.task().activity == "SUSPENDED"
        assert "Suspending computation - user request" in client.log
        client.say("--set_run_mode", "always")
    assert "Resuming computation" in client.log
    assert client.task().activity == "EXECUTING"
    assert client.report().count("Running the program") == 1
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert client.left_behind() == []


@pytest.mark.alone
def test_a_limit_of_half_the_cpu_is_kept(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, work(f"{compute(18)}\n{COPY}"), preferences=Preferences(cpu_usage_limit=50))
    wait_for_program(client)
    [machine] = client.machines()
    before, began_at_s = machine.cpu_times(), time.monotonic()
    time.sleep(30)
    used = sum(machine.cpu_times()[:2]) - sum(before[:2])
    assert 0.40 <= used / (time.monotonic() - began_at_s) <= 0.55
    assert client.log.count(f"sent <suspend/> to {RESULT}") >= 10
    assert client.log.count(f"sent <resume/> to {RESULT}") >= 10
    client.report()
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert client.left_behind() == []


@pytest.mark.parametrize(
    ("moment", "next_moment", "input_mib"),
    [
        ("Machine is on", "Guest is ready", 1),
        ("Copying in input", "Running the program", 300),
        ("Running the program", "Program done", 1),
    ],
)
def test_an_aborted_task_leaves_nothing(
    client: BoincClient, image: bytes, moment: str, next_moment: str, input_mib: int
) -> None:
    start(client, image, work("sleep 600", data=os.urandom(MIB) * input_mib))
    client.wait_until(lambda: moment in client.stderr)
    client.ask("abort")
    client.wait_until(lambda: client.processes() == [], limit_s=10)
    assert client.left_behind() == []
    report = client.report()
    assert "<exit_status>203</exit_status>" in report  # aborted by its user, whatever the app returns
    assert "aborted on request" in report
    assert next_moment not in report
    assert f"task {RESULT} aborted by user" in client.log
