"""Sessions with a vSphere server: who is refused, what is over, and what is away."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask

from tests.peers import vcsim, vsphere
from tests.peers.cutting_proxy import CuttingProxy
from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError, NoUsableHypervisor
from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.vmware.vsphere import base as bases
from vmwrapper.hypervisor.vmware.vsphere import connection as sessions
from vmwrapper.hypervisor.vmware.vsphere.backend import VsphereHypervisor
from vmwrapper.hypervisor.vmware.vsphere.base import base_of
from vmwrapper.hypervisor.vmware.vsphere.connection import connected
from vmwrapper.hypervisor.vmware.vsphere.datastore_file import url_of
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.image import base_image
from vmwrapper.hypervisor.vmware.vsphere.inventory import target_of
from vmwrapper.hypervisor.vmware.vsphere.settings import Settings
from vmwrapper.hypervisor.vmware.vsphere.transfer import transfers
from vmwrapper.hypervisor.vmware.vsphere.vim_task import vim_task

pytestmark = pytest.mark.vcsim


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vsphere.Server]:
    """A vCenter whose machines have no guests, or what a parameter says."""
    if reason := vsphere.missing():
        pytest.skip(reason)
    kind: vcsim.Kind = getattr(request, "param", "vpx")
    with vsphere.server(tmp_path / "server", kind=kind, guests=False) as running:
        yield running


@pytest.fixture
def proxy(server: vsphere.Server) -> Iterator[CuttingProxy]:
    between = CuttingProxy(server.settings.host, server.settings.port)
    try:
        yield between
    finally:
        between.close()


def by(proxy: CuttingProxy, server: vsphere.Server) -> Settings:
    return replace(server.settings, host=proxy.host, port=proxy.port)


async def reasons(settings: Settings) -> str:
    result = await VsphereHypervisor(lambda: settings).probe(RunningClock())
    assert not result.usable
    return "; ".join(result.reasons)


@pytest.mark.parametrize("server", ["vpx", "esx"], indirect=True)
async def test_a_probe_and_the_inventory(server: vsphere.Server) -> None:
    hypervisor = VsphereHypervisor(lambda: server.settings)
    result = await hypervisor.probe(RunningClock())
    assert result.usable
    assert "6.5" in str(result.version)
    assert list(await hypervisor.leftovers()) == []
    with server.owner() as content:  # somebody's snapshot allows nothing
        theirs = content.searchIndex.FindByInventoryPath(server.simulator.machines[1])
        WaitForTask(theirs.CreateSnapshot(name="vmwrapper's", memory=False, quiesce=False))
    async with connected(server.settings) as connection, transfers(connection) as ways:
        image = base_image(server.image)
        async with base_of(connection, ways, image) as base:
            names = {"name": base.config.name, "file": base.config.files.vmPathName, "uuid": base.config.uuid}
            target = await target_of(connection, base.machine)
            assert (await connection.property(target.folder, "name"), target.datastore) == ("vm", None)
            assert await connection.property(target.pool, "name") == "Resources"
        for name in (names["file"], names["uuid"]):
            server.image.write_text(f"machine = {json.dumps(name)}\n")
            async with base_of(connection, ways, base_image(server.image)) as base:
                assert base.config.name == names["name"]
        for name in ("DC0/vm/nothing", "DC0/vm", "5d1c7f3e-8f0f-4c53-9d0b-6a2f0c4f7e11", server.simulator.machines[1]):
            server.image.write_text(f"machine = {json.dumps(name)}\n")
            with pytest.raises(JobError, match=str(server.image)):
                async with base_of(connection, ways, base_image(server.image)):
                    pass


async def test_a_base_machine_that_is_not_registered_is_so_meanwhile_if_its_owner_allows(
    server: vsphere.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = server.simulator.machines[1]
    with server.owner() as content:
        machine = content.searchIndex.FindByInventoryPath(path)
        file = machine.config.files.vmPathName
        machine.Unregister()
    before = server.machines()
    server.image.write_text(f"machine = {json.dumps(file)}\n")
    began = []

    async def noted(*words: Any, **limits: Any) -> Any:
        began.append(words[2])
        return await vim_task(*words, **limits)

    monkeypatch.setattr(bases, "vim_task", noted)
    async with connected(server.settings) as connection, transfers(connection) as ways:
        with pytest.raises(JobError, match="snapshot 'vmwrapper'"):
            async with base_of(connection, ways, base_image(server.image)):
                pass
        assert began == []
        listed = b'snapshot0.displayName = "one"\r\nsnapshot1.displayName = "vmwrapper"\r\n'
        url = url_of(file.replace(".vmx", ".vmsd"), "DC0")
        async with ways._asked("PUT", url, data=listed, headers={"Cookie": connection.cookie}):
            pass
        with pytest.raises(JobError, match="snapshot 'vmwrapper'"):  # a machine that is registered has none in vcsim
            async with base_of(connection, ways, base_image(server.image)):
                pass
        assert began == ["RegisterVm"]
        assert server.machines() == before
        server.image.write_text('machine = "[LocalDS_0] no/such.vmx"\n')
        with pytest.raises(JobError, match=r"no/such\.vmx"):
            async with base_of(connection, ways, base_image(server.image)):
                pass


async def test_places_that_the_settings_name(server: vsphere.Server) -> None:
    for name, value, complaint in (
        ("datacenter", "DC1", "no datacenter 'DC1'"),
        ("folder", "DC0/vm/none", "no Folder"),
        ("resource_pool", "DC0/vm", "no ResourcePool"),
        ("datastore", "none", "no datastore 'none'"),
    ):
        settings = replace(server.settings, **{name: value})
        async with connected(settings) as connection:
            with pytest.raises(NoUsableHypervisor, match=complaint):
                await target_of(connection, None)
    good = {
        "datacenter": "DC0",
        "datastore": "LocalDS_0",
        "folder": "DC0/vm",
        "resource_pool": "DC0/host/DC0_H0/Resources",
    }
    async with connected(replace(server.settings, **good)) as connection:
        assert (await target_of(connection, None)).datastore is not None


async def test_who_is_refused(server: vsphere.Server, tmp_path: Path) -> None:
    settings = server.settings
    said = await reasons(replace(settings, password="wrong's <secret>"))
    assert "does not let administrator@vsphere.local log in" in said
    assert "secret" not in said
    assert "certificate" in await reasons(replace(settings, ca_file=None))
    other = tmp_path / "other"
    other.mkdir()
    assert "certificate" in await reasons(replace(settings, ca_file=vcsim._certificate(other)[0]))
    assert "ca_file" in await reasons(replace(settings, ca_file=tmp_path / "nothing"))
    assert "does not answer" in await reasons(replace(settings, port=1))
    assert "does not answer" in await reasons(replace(settings, host="no-such-host.invalid"))


async def test_no_exception_is_made_for_this_computer(server: vsphere.Server) -> None:
    """As pyvmomi makes for these names, in some of its ways to connect."""
    near = CuttingProxy("127.0.0.1", 0)
    near._to = (server.settings.host, server.settings.port)
    try:
        for host in ("localhost", "127.0.0.1"):
            assert "certificate" in await reasons(replace(server.settings, host=host, port=near.port))
    finally:
        near.close()


async def test_a_session_that_is_over_is_begun_again_once(
    server: vsphere.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_READ_AGAIN_FOR_S", 0.2)
    async with connected(server.settings) as connection:
        root = connection.content.rootFolder
        with server.simulator.away():
            with pytest.raises(VsphereFailed) as failed:
                await connection.property(root, "name")
            assert failed.value.fault is Fault.UNREACHABLE
        names = await asyncio.gather(*(connection.property(root, "name") for _ in range(6)))
        assert set(names) == {"Datacenters"}
        assert connection._logins == 2
        connection.settings = replace(server.settings, password="changed")
        with server.simulator.away():
            pass
        with pytest.raises(NoUsableHypervisor, match="log in"):
            await connection.property(root, "name")


async def test_what_only_reads_is_asked_again(server: vsphere.Server, proxy: CuttingProxy) -> None:
    async with connected(by(proxy, server)) as connection:
        root = connection.content.rootFolder
        proxy.cut()
        assert await connection.property(root, "name") == "Datacenters"
        proxy.cut()
        with pytest.raises(VsphereFailed) as failed:  # it may have been done
            await connection.call(root, "CreateFolder", "folder")
        assert failed.value.fault is Fault.UNREACHABLE


async def test_a_session_that_is_just_being_begun_is_ended(server: vsphere.Server, proxy: CuttingProxy) -> None:
    def sessions_there() -> int:
        with server.owner() as content:
            return len(content.sessionManager.sessionList)

    async def stay() -> None:
        async with connected(by(proxy, server)):
            await asyncio.Event().wait()

    before = sessions_there()
    proxy.delay_s = 0.1
    for after_s in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0):
        opening = asyncio.create_task(stay())
        await asyncio.sleep(after_s)
        opening.cancel()
        await asyncio.wait([opening])
        assert sessions_there() == before


async def test_a_slow_server_keeps_nobody_waiting(server: vsphere.Server, proxy: CuttingProxy) -> None:
    async with connected(by(proxy, server)) as connection:
        root = connection.content.rootFolder
        proxy.delay_s = 0.2
        assert await connection.property(root, "name") == "Datacenters"
        proxy.is_stuck = True
        ticks = 0
        started = time.monotonic()
        asking = asyncio.create_task(connection.call(root, "CreateFolder", "folder", limit_s=0.5))
        while not asking.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 20
        with pytest.raises(VsphereFailed, match=r"within 0\.5 s"):
            await asking
        assert time.monotonic() - started < 1
        waiting = asyncio.create_task(connection.property(root, "name"))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=0.5)
        assert waiting.cancelled()
        started = time.monotonic()
    assert time.monotonic() - started < 4  # threads that wait for the server are ended with the connection


async def test_a_probe_of_a_server_that_hangs_has_its_limit(server: vsphere.Server, proxy: CuttingProxy) -> None:
    proxy.is_stuck = True
    started = time.monotonic()
    said = await reasons(by(proxy, server))
    assert "does not answer" in said
    assert time.monotonic() - started < 10


async def test_an_image_that_names_no_machine_makes_none(server: vsphere.Server, tmp_path: Path) -> None:
    hypervisor = VsphereHypervisor(lambda: server.settings)
    identity = MachineIdentity("p", "r", str(tmp_path))
    spec = MachineSpec(identity=identity, image=server.image, directory=tmp_path, memory_mib=64, cpus=1, scratch_mib=0)
    with pytest.raises(NoUsableHypervisor, match="not probed"):
        await hypervisor.machine(spec, RunningClock()).__aenter__()
    assert (await hypervisor.probe(RunningClock())).usable
    before = server.machines()
    server.image.write_text('machine = "DC0/vm/nothing"\n')
    with pytest.raises(JobError, match="DC0/vm/nothing"):
        await hypervisor.machine(spec, RunningClock()).__aenter__()
    assert server.machines() == before
