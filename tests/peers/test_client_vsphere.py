"""The real BOINC client, with a whole job in a guest of a vSphere server's; and the same job on QEMU, by hand.

The server is a simulator, which keeps no memory in snapshots: so there are no checkpoints to go on from.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from . import hubble_job, vcsim, vsphere
from .boinc_client import RESULT, BoincClient
from .hubble_job import wait_for
from .project_server import ProjectServer

pytestmark = pytest.mark.vcsim

WISHES = f"<backend>vmware</backend> <user>root</user> <password>{escape(vsphere.ROOT.password)}</password>"
RUNNING = "Running the program"


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[vsphere.Server]:
    if reason := vsphere.missing():
        pytest.skip(reason)
    with vsphere.server(tmp_path / "vcenter") as running:
        yield running


def start(client: BoincClient, vcenter: vsphere.Server, *, seconds: int) -> None:
    """A client whose app knows this server."""
    settings = vcenter.environment
    hubble_job.start(client, vcenter.image, wishes=WISHES, seconds=seconds, settings=settings)


def ours(vcenter: vsphere.Server) -> list[str]:
    """States of the job's machines."""
    with vcenter.owner() as content:
        found = vsphere.machines_in(content)
        return [one.runtime.powerState for one in found if one.name.startswith("vmwrapper")]


def test_a_whole_job(
    vcenter: vsphere.Server, client: BoincClient, server: ProjectServer, tmp_path: Path, image: bytes
) -> None:
    assert image
    start(client, vcenter, seconds=20)
    wait_for(client, RUNNING)

    client.ask("suspend")
    client.wait_until(lambda: ours(vcenter) == ["suspended"])
    assert client.task().activity == "SUSPENDED"
    client.ask("resume")
    client.wait_until(lambda: ours(vcenter) == ["poweredOn"])

    client.quit()
    assert ours(vcenter) == []
    client.start()
    wait_for(client, RUNNING, times=2)
    with vcenter.simulator.away():
        pass  # all connections end, and everybody must log in again

    report = client.report()
    for secret in (vsphere.ROOT.password, vcsim.PASSWORD):
        assert secret not in report
    assert client.left_behind() == []
    assert ours(vcenter) == []
    output, log = hubble_job.by_hand_on_qemu(tmp_path / "qemu")
    assert server.uploads == {f"{RESULT}_0": output}
    assert hubble_job.chapters(report) == hubble_job.chapters(log) == list(hubble_job.CHAPTERS)


def test_an_aborted_one_leaves_nothing(vcenter: vsphere.Server, client: BoincClient) -> None:
    before = vcenter.machines()
    start(client, vcenter, seconds=600)
    wait_for(client, RUNNING)
    client.ask("abort")
    client.wait_until(lambda: client.processes() == [] and vcenter.machines() == before, limit_s=20)
    assert "aborted on request" in client.report()
    assert client.left_behind() == []
