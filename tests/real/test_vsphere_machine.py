"""Machines of a vSphere server, with guests: containers behind a simulator, which keeps no memory in snapshots."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim

from tests.peers import vsphere
from tests.peers.cutting_proxy import CuttingProxy
from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside
from vmwrapper.errors import GuestError, GuestPoweredOff, JobError, MachineExited, SnapshotFailed, SnapshotUnusable
from vmwrapper.hypervisor import refusals
from vmwrapper.hypervisor.interface import Login, Machine, MachineIdentity, MachineSpec, Snapshot
from vmwrapper.hypervisor.vmware.vsphere import child, connection, datastore_file, made, snapshots
from vmwrapper.hypervisor.vmware.vsphere.backend import VsphereHypervisor
from vmwrapper.hypervisor.vmware.vsphere.base import base_of
from vmwrapper.hypervisor.vmware.vsphere.connection import connected
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.image import SNAPSHOT, base_image
from vmwrapper.hypervisor.vmware.vsphere.inventory import target_of, walk
from vmwrapper.hypervisor.vmware.vsphere.machine import VsphereMachine
from vmwrapper.hypervisor.vmware.vsphere.made import SCRATCH_UUID, create
from vmwrapper.hypervisor.vmware.vsphere.place import IDENTITY_KEY, PREFIX, mark_of, place_of
from vmwrapper.hypervisor.vmware.vsphere.transfer import transfers
from vmwrapper.hypervisor.vmware.vsphere.vim_task import vim_task

pytestmark = pytest.mark.vcsim

LIMIT_S = 60.0
MIB = 1 << 20


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vsphere.Server]:
    """A vCenter, or what a parameter says."""
    if reason := vsphere.missing():
        pytest.skip(reason)
    with vsphere.server(tmp_path / "server", kind=getattr(request, "param", "vpx")) as running:
        yield running


@pytest.fixture
def proxy(server: vsphere.Server) -> Iterator[CuttingProxy]:
    between = CuttingProxy(server.settings.host, server.settings.port)
    try:
        yield between
    finally:
        between.close()


@pytest.fixture
def spec(server: vsphere.Server, tmp_path: Path) -> MachineSpec:
    slot = tmp_path / "slot"
    slot.mkdir()
    identity = MachineIdentity("project", "result", str(slot))
    return MachineSpec(
        identity=identity, image=server.image, directory=slot, memory_mib=64, cpus=1, scratch_mib=0, login=vsphere.ROOT
    )


async def probed(server: vsphere.Server, **settings: object) -> VsphereHypervisor:
    told = lambda: replace(server.settings, **settings)  # type: ignore[arg-type]  # noqa: E731
    hypervisor = VsphereHypervisor(told)
    assert (await hypervisor.probe(RunningClock())).usable
    return hypervisor


@asynccontextmanager
async def up(hypervisor: VsphereHypervisor, spec: MachineSpec) -> AsyncIterator[Machine]:
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=LIMIT_S)
        yield machine


@contextmanager
def standing() -> Iterator[None]:
    yield


async def test_transfers_go_on_where_connections_are_cut(
    server: vsphere.Server, proxy: CuttingProxy, spec: MachineSpec, tmp_path: Path
) -> None:
    hypervisor = await probed(server, host=proxy.host, port=proxy.port)
    content = random.Random(1).randbytes(24 * MIB)
    large = tmp_path / "large"
    large.write_bytes(content)
    async with up(hypervisor, spec) as machine, beside(machine.watch()):
        proxy.cut_after(5 * MIB)
        await machine.guest.put({"large": large}, "/tmp")
        proxy.cut_after(5 * MIB)
        assert await machine.guest.get("/tmp", {"large": tmp_path / "back"}, limit_bytes=30 * MIB)
        assert (tmp_path / "back").read_bytes() == content
        proxy.cut()
        with server.simulator.away():
            asking = asyncio.create_task(machine.guest.run(["cat", "/etc/passwd"], limit_s=LIMIT_S))
            await asyncio.sleep(1)
            assert not asking.done()
        assert b"ada" in (await asking).stdout


async def test_power(server: vsphere.Server, spec: MachineSpec) -> None:
    hypervisor = await probed(server)
    before = server.machines()
    async with up(hypervisor, spec) as machine:
        assert len(server.machines()) == len(before) + 1
        count = "n=0; while :; do n=$((n + 1)); echo $n >/tmp/n; mv /tmp/n /tmp/count; done"
        await machine.guest.run(["sh", "-c", f"({count}) >/dev/null 2>&1 </dev/null &"], limit_s=LIMIT_S)
        await machine.pause()
        before_s = machine.cpu_time_s()
        await asyncio.sleep(1)  # the simulator's guests stand a moment later, where the machine is busy
        counted = _counted(server)
        await asyncio.sleep(1)
        assert _counted(server) == counted > 0
        assert machine.cpu_time_s() == before_s
        asking = asyncio.create_task(machine.guest.run(["cat", "/proc/uptime"], limit_s=LIMIT_S))
        await asyncio.sleep(0.5)
        assert not asking.done()
        assert machine.cpu_time_s() > 0
        await machine.resume()
        assert (await asking).status == 0
        watching = asyncio.create_task(machine.watch())
        with server.owner() as content:
            theirs = vsphere.machine_of(content, spec.identity)
            theirs.PowerOff()
        with pytest.raises(GuestPoweredOff):
            await asyncio.wait_for(watching, 10)
        with pytest.raises(GuestPoweredOff):
            await machine.resume()
        await machine.power_off()
        with pytest.raises(MachineExited):
            await machine.pause()
        await machine.power_on()
        await machine.guest.ready(limit_s=LIMIT_S)
    assert server.machines() == before


async def test_what_is_told_while_the_server_is_away(
    server: vsphere.Server, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hypervisor = await probed(server)
    before = server.machines()
    async with up(hypervisor, spec) as machine:
        await machine.guest.run(["touch", "/run/of-this-boot"], limit_s=LIMIT_S)
        with server.simulator.away():
            pausing = asyncio.create_task(machine.pause())
            await asyncio.sleep(1)
        await pausing
        await machine.resume()
        with server.simulator.away(), monkeypatch.context() as impatient:
            impatient.setattr(connection, "_READ_AGAIN_FOR_S", 0.1)
            await machine.power_off()
        assert "may still run" in caplog.text
        await machine.power_on()  # and not as it has run on
        await machine.guest.ready(limit_s=LIMIT_S)
        assert await machine.guest.read("/run/of-this-boot", limit_bytes=1) is None
    assert server.machines() == before


async def test_two_computers_of_one_name_share_a_server(server: vsphere.Server, spec: MachineSpec) -> None:
    before = server.machines()
    one, other = await probed(server), await probed(server, owner="f" * 32)
    async with one.machine(spec, RunningClock()), other.machine(spec, RunningClock()):
        assert len(server.machines()) == len(before) + 2
        for each in (one, other):
            assert len(await each.leftovers()) == 1
    assert server.machines() == before


@pytest.mark.parametrize("server", ["vpx", "esx"], indirect=True)
async def test_a_picture_of_the_screen(server: vsphere.Server, spec: MachineSpec, tmp_path: Path) -> None:
    hypervisor = await probed(server)
    assert hypervisor.abilities.screen
    async with up(hypervisor, spec) as machine:
        assert isinstance(machine, VsphereMachine)
        for name in ("first", "second"):  # which is possible since the server's file is gone
            await machine.screenshot(tmp_path / name)
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        await machine.power_off()
        with pytest.raises(MachineExited):
            await machine.screenshot(tmp_path / "third")


@pytest.mark.parametrize("server", ["esx"], indirect=True)
async def test_a_host_without_vcenter(server: vsphere.Server, spec: MachineSpec) -> None:
    hypervisor = await probed(server)
    before = server.machines()
    async with up(hypervisor, replace(spec, scratch_mib=32, memory_mib=96)) as machine:
        assert (await machine.guest.run(["true"], limit_s=LIMIT_S)).status == 0
        with server.owner() as content:
            ours = vsphere.machine_of(content, spec.identity)
            devices = ours.config.hardware.device
            disks = [one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)]
            base = content.searchIndex.FindByInventoryPath(server.simulator.base_machine).config.hardware.device
            [of_base] = [one for one in base if isinstance(one, vim.vm.device.VirtualDisk)]
            assert disks[0].backing.parent.fileName == of_base.backing.fileName
            assert disks[1].capacityInKB == 32 * 1024
            assert disks[1].backing.uuid == SCRATCH_UUID
            assert not [one for one in devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]
            assert ours.config.hardware.memoryMB == 96
    assert server.machines() == before


@pytest.mark.parametrize("server", ["esx"], indirect=True)
async def test_a_host_without_vcenter_is_never_told_to_destroy(
    server: vsphere.Server, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor = await probed(server)
    before, files = server.machines(), server.simulator.files()
    tasks = []

    async def noted(*words: Any, **limits: Any) -> Any:
        tasks.append(words[2])
        return await vim_task(*words, **limits)

    async def cut_off(*_: object) -> None:
        raise VsphereFailed("the wrapper was killed here", Fault.UNREACHABLE)

    for module in (made, child, datastore_file):
        monkeypatch.setattr(module, "vim_task", noted)
    async with up(hypervisor, spec):
        made_files = server.simulator.files() - files
        assert {path.parent.name[: len(PREFIX)] for path in made_files} == {PREFIX}
    assert (server.machines(), server.simulator.files()) == (before, files)
    with monkeypatch.context() as killed:
        async with up(hypervisor, spec):
            killed.setattr(child, "delete", cut_off)
            assert server.simulator.files() - files == made_files
    assert server.machines() == before
    assert server.simulator.files() == files | made_files
    next_job = replace(spec, identity=replace(spec.identity, result_name="another"))  # of the slot
    async with up(hypervisor, next_job):
        assert server.simulator.files() - files == made_files
    assert (server.machines(), server.simulator.files()) == (before, files)
    assert {"CreateVm", "DeleteFile"} < set(tasks)
    assert "Destroy" not in tasks


@pytest.mark.parametrize("server", ["esx"], indirect=True)
async def test_a_machine_without_a_folder_of_its_own_stays_with_all_its_files(
    server: vsphere.Server, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor = await probed(server)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(child, "_FOLDER", re.compile("another's"))
        async with up(hypervisor, spec):
            files = server.simulator.files()
        [left] = await hypervisor.leftovers()
        with pytest.raises(VsphereFailed, match=r"of \[.*\.vmx has no folder of its own: remove it by hand"):
            await left.remove()
        assert server.simulator.files() == files
    await left.remove()
    assert not await hypervisor.leftovers()


async def test_who_may_not_log_in(server: vsphere.Server, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_LIMIT_S", 0.5)
    hypervisor = await probed(server)
    wrong = replace(spec, login=Login("root", "wrong's <secret>"))
    async with hypervisor.machine(wrong, RunningClock()) as machine:
        await machine.power_on()
        with pytest.raises(JobError, match="does not let root log in") as refused:
            await machine.guest.ready(limit_s=LIMIT_S)
        assert "secret" not in str(refused.value)
    async with hypervisor.machine(replace(spec, login=vsphere.ADA), RunningClock()) as machine:
        await machine.power_on()
        with pytest.raises(GuestError):  # who has no sudo
            await machine.guest.ready(limit_s=LIMIT_S)
    async with hypervisor.machine(replace(spec, login=None), RunningClock()) as machine:
        with pytest.raises(JobError, match="<password>"):
            machine.guest.look_s  # noqa: B018


@pytest.mark.parametrize("server", ["vpx", "esx"], indirect=True)
async def test_what_a_dead_wrapper_left(server: vsphere.Server, spec: MachineSpec) -> None:
    hypervisor = await probed(server)
    before = server.machines()
    place = place_of(spec.identity, vsphere.OWNER)

    async def left_behind() -> None:
        async with (
            connected(server.settings) as session,
            transfers(session) as ways,
            base_of(session, ways, base_image(spec.image)) as base,
        ):
            await create(session, base, await target_of(session, base.machine), spec, place)

    await left_behind()
    [leftover] = await hypervisor.leftovers()
    assert str(leftover.slot) == spec.identity.slot
    name = "result " if server.simulator.kind == "vpx" else f"{place.uuid} "
    assert leftover.what.startswith(f"the vSphere server 127.0.0.2's machine vmwrapper {name}")
    await leftover.remove()
    assert server.machines() == before
    await left_behind()
    async with up(hypervisor, spec):
        assert len(server.machines()) == len(before) + 1
    assert server.machines() == before
    await left_behind()
    with server.owner() as content:
        theirs = vsphere.machine_of(content, spec.identity)
        stolen = vim.option.OptionValue(key=IDENTITY_KEY, value=mark_of(str(spec.identity), "f" * 32))
        WaitForTask(theirs.Reconfigure(vim.vm.ConfigSpec(extraConfig=[stolen])))
    assert list(await hypervisor.leftovers()) == []
    with pytest.raises(VsphereFailed, match="not ours"):
        await hypervisor.machine(spec, RunningClock()).__aenter__()
    assert len(server.machines()) == len(before) + 1


@pytest.mark.parametrize("server", ["vpx", "esx"], indirect=True)
async def test_two_generations_of_snapshots(
    server: vsphere.Server, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor = await probed(server)
    cant_be_told_from_a_real_one = server.simulator.kind == "esx"
    assert hypervisor.abilities.memory_snapshots is cant_be_told_from_a_real_one
    hypervisor._keeps_memory = True  # it keeps /run and /tmp, and the power
    async with up(hypervisor, spec) as machine:
        assert isinstance(machine, VsphereMachine)
        with monkeypatch.context() as as_off:  # as a server says of one without memory
            as_off.setattr(snapshots, "OFF", "poweredOn")
            with pytest.raises(SnapshotFailed, match="has kept no memory"):
                await machine.take_snapshot(standing, most_bytes=1)
        assert machine.snapshots == []
        assert await _names(machine) == []
        for word in ("one", "two", "three"):
            await machine.guest.run(["sh", "-c", f"echo {word} >/tmp/word"], limit_s=LIMIT_S)
            await machine.take_snapshot(standing, most_bytes=1)
        assert [one.number for one in machine.snapshots] == [3, 2, 1]
        await machine.keep_snapshots([3, 2])
        assert await _names(machine) == [name for one in reversed(machine.snapshots) for name in [_name(one)]]
        await machine.verify_snapshot(3)
        with server.simulator.away(), monkeypatch.context() as impatient:
            impatient.setattr(connection, "_READ_AGAIN_FOR_S", 0.1)
            await machine.verify_snapshot(3)  # which nobody can say just now
        second = machine.snapshots[1]
        await machine.revert(second)
        cpu_s = machine.cpu_time_s()
        await machine.resume()
        assert await machine.guest.read("/tmp/word", limit_bytes=10) == b"two\n"
        assert machine.cpu_time_s() >= cpu_s
        kept = list(machine.snapshots)
    assert await hypervisor.leftovers()
    async with hypervisor.machine(replace(spec, snapshots=kept), RunningClock()) as machine:
        await machine.revert(kept[0])
        await machine.resume()
        assert await machine.guest.read("/tmp/word", limit_bytes=10) == b"three\n"
        with pytest.raises(SnapshotUnusable):
            await machine.revert(Snapshot(9, kept[0].description))
        await machine.keep_snapshots([])
        assert await _names(machine) == []
        await machine.power_on()
    assert list(await hypervisor.leftovers()) == []
    other = replace(spec, memory_mib=80, snapshots=kept)
    async with hypervisor.machine(other, RunningClock()) as machine:
        with pytest.raises(SnapshotUnusable):
            await machine.revert(kept[0])
    with server.owner() as content:
        base = content.searchIndex.FindByInventoryPath(server.simulator.base_machine)
        assert SNAPSHOT in [one.name for one in walk(base.snapshot.rootSnapshotList)]  # the base is as it was


def _counted(server: vsphere.Server) -> int:
    """What the guest has counted, seen from outside: it may stand still."""
    containers = server.simulator.podman
    assert containers is not None
    [container] = containers.containers()
    folder = Path(containers("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", container).strip())
    if not folder.is_dir():
        folder = Path(containers("mount", container).strip())
    return int((folder / "tmp" / "count").read_text())


def _name(snapshot: Snapshot) -> str:
    return snapshots.saved(snapshot).name


async def _names(machine: Any) -> list[str]:
    return [node.name for node in await machine._snapshots._tree()]
