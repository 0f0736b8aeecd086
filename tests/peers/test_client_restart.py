"""The real BOINC client goes, in one way or another, and comes again."""

from collections.abc import Callable

import psutil
import pytest

from .boinc_client import RESULT, BoincClient
from .jobs import COPY, RIGHT, compute, start, wait_for_program, work
from .project_server import ProjectServer

pytestmark = [pytest.mark.boinc_client, pytest.mark.qemu]

LEAVES_WITHIN_S = 15
"""The app looks for its client every 10 s."""


@pytest.mark.parametrize("leave", [BoincClient.stop, BoincClient.quit])
def test_a_client_that_is_stopped_and_started_goes_on(
    client: BoincClient, server: ProjectServer, image: bytes, leave: Callable[[BoincClient], None]
) -> None:
    start(client, image, work(f"{compute(8)}\n{COPY}"))
    wait_for_program(client)
    leave(client)
    assert client.processes() == []
    assert client.left_behind() == []
    assert f"sent <quit/> to {RESULT}" in client.log
    client.start()
    report = client.report()
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert report.count("Running the program") == 1
    assert report.count("Going on with the program") == 1
    assert "stopped on request" in report
    assert client.left_behind() == []


def test_a_client_that_was_killed_is_missed(client: BoincClient, server: ProjectServer, image: bytes) -> None:
    start(client, image, work(f"sleep {LEAVES_WITHIN_S + 1}; {COPY}"))
    wait_for_program(client)
    client.kill()
    client.wait_until(lambda: client.processes() == [], limit_s=LEAVES_WITHIN_S)
    assert "The client is gone" in client.stderr
    assert client.left_behind() == []
    client.start()
    report = client.report()
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert report.count("Running the program") == 1
    assert report.count("Going on with the program") == 1


def test_a_client_that_comes_back_at_once_waits_for_the_app_of_the_last(
    client: BoincClient, server: ProjectServer, image: bytes
) -> None:
    start(client, image, work(f"sleep {LEAVES_WITHIN_S + 1}; {COPY}"))
    wait_for_program(client)
    last = psutil.Process(client.task().pid)
    last.suspend()  # so that it has not left already, however slow this machine is
    client.kill()
    client.start()
    client.wait_until(lambda: "waiting for 35 s" in client.stderr, limit_s=20)
    last.resume()

    def next_one_works() -> bool:
        assert len(client.machines()) <= 1
        return "Going on with the program" in client.stderr

    client.wait_until(next_one_works)
    client.report()
    assert server.uploads == {f"{RESULT}_0": RIGHT}
    assert "postponed" not in client.log
    assert client.left_behind() == []
