"""What an app and its project's server say to each other while the job runs, by way of the real BOINC client."""

import sys
from pathlib import Path

import pytest

from .boinc_client import RESULT, BoincClient
from .client_files import MAIN, Workunit
from .project_server import ProjectServer

pytestmark = pytest.mark.boinc_client

APP = f"#!{sys.executable}\n".encode() + Path(__file__).with_name("talking_app.py").read_bytes()


def test_trickles_and_early_uploads_arrive(client: BoincClient, server: ProjectServer) -> None:
    """The app ends only when it has heard the answer, so all of that was before its end."""
    server.trickle_down = "<answer>42</answer>"
    client.prepare(Workunit(inputs={}, outputs=["half.dat", "out.dat"]), app_files={MAIN: APP})
    client.start()
    report = client.report()
    assert "<exit_status>0</exit_status>" in report
    [trickle] = server.trickles_up
    assert f"<result_name>{RESULT}</result_name>" in trickle
    assert "<variety>progress</variety>" in trickle
    assert "<percent>50</percent>" in trickle
    assert server.uploads[f"{RESULT}_0"] == b"half"
    assert b"<answer>42</answer>" in server.uploads[f"{RESULT}_1"]
    assert client.log.index(f"Finished upload of {RESULT}_0") < client.log.index("Computation for task")
    assert [path.name for path in client.slot.iterdir() if path.name.startswith(("trickle_", "boinc_ufr"))] == []
