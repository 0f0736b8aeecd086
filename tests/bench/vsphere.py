"""What a guest of a vSphere server's costs, beside curl with the same URLs; the server is govmomi's simulator."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from tests.peers import vsphere
from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside
from vmwrapper.hypervisor.interface import MIB, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.vmware.vsphere import connection
from vmwrapper.hypervisor.vmware.vsphere.backend import VsphereHypervisor
from vmwrapper.hypervisor.vmware.vsphere.guest import GuestOperations, VsphereGuest
from vmwrapper.hypervisor.vmware.vsphere.machine import VsphereMachine
from vmwrapper.hypervisor.vmware.vsphere.transfer import meant

from .figure import Figure, ratios, rounds

ROUNDS = 5
SIZE_MIB = 64
POLLS = 50
LOOKS = 6
BEGINNING_S = 5
"""In which the server's counters are looked up, once."""
THERE = "/tmp/data"


def measure_vsphere(folder: Path) -> list[Figure]:
    if reason := vsphere.missing() or (None if shutil.which("curl") else "there is no curl to compare with"):
        print(f"vSphere is not measured: {reason}")
        return []
    with vsphere.server(folder / "server") as server:
        return asyncio.run(_figures(folder, server))


async def _figures(folder: Path, server: vsphere.Server) -> list[Figure]:
    async with _machine(folder, server) as machine:
        trips, poll_ms = await _polls(machine)
        return [
            Figure("vSphere: round trips of a poll", "", trips, aim=1),
            Figure("vSphere: a poll", "ms", poll_ms),
            Figure("vSphere: CPU of following a job, a minute", "s", [await _following_s(machine)], aim=0.1),
            *await _transfers(folder, server, machine),
        ]


@asynccontextmanager
async def _machine(folder: Path, server: vsphere.Server) -> AsyncIterator[VsphereMachine]:
    """One whose guest answers."""
    hypervisor = VsphereHypervisor(lambda: server.settings)
    clock = RunningClock()
    assert (await hypervisor.probe(clock)).usable
    directory = folder / "machine"
    directory.mkdir()
    spec = MachineSpec(
        identity=MachineIdentity("bench", "guest", str(directory)),
        image=server.image,
        directory=directory,
        memory_mib=64,
        cpus=1,
        scratch_mib=0,
        login=vsphere.ROOT,
    )
    async with hypervisor.machine(spec, clock) as machine:
        assert isinstance(machine, VsphereMachine)
        await machine.power_on()
        await machine.guest.ready(limit_s=90)
        yield machine


async def _polls(machine: VsphereMachine) -> tuple[list[float], list[float]]:
    """Round trips and milliseconds of each."""
    trips, took_ms = [], []
    with patch.object(connection, "_called", side_effect=connection._called) as called:
        for _ in range(POLLS):
            before, began_s = called.call_count, time.monotonic()
            await machine._look()
            took_ms.append(1000 * (time.monotonic() - began_s))
            trips.append(float(called.call_count - before))
    return trips, took_ms


async def _following_s(machine: VsphereMachine) -> float:
    async with beside(machine.watch()):
        await asyncio.sleep(BEGINNING_S)
        before_s = time.process_time()
        for _ in range(LOOKS):
            await asyncio.sleep(60 / LOOKS)
            assert await machine.guest.read("/run/vmwrapper/exit", limit_bytes=256) is None
        return time.process_time() - before_s


async def _transfers(folder: Path, server: vsphere.Server, machine: VsphereMachine) -> list[Figure]:
    data, back = folder / "data", folder / "back"
    with data.open("wb") as file:
        file.writelines(bytes([number]) * MIB for number in range(SIZE_MIB))
    assert isinstance(machine.guest, VsphereGuest)
    operations = machine.guest._operations
    curled_in, ours_in, curled_out, ours_out, put, get = [], [], [], [], [], []

    async def curled_s(*words: str | Path) -> float:
        argv = ("curl", "--silent", "--fail", "--cacert", server.settings.ca_file, *words)
        curl = await asyncio.create_subprocess_exec(*map(str, argv))
        return await _took_s(_success(curl))

    for _ in rounds(ROUNDS, "vSphere's guests"):
        curled_in.append(await curled_s("--upload-file", data, await _url_in(operations, server)))
        ours_in.append(await _took_s(operations._transfers.put_file(await _url_in(operations, server), data)))
        curled_out.append(await curled_s("--output", back, await _url_out(operations, server)))
        with back.open("wb") as file:

            async def take(chunk: bytes) -> None:
                file.write(chunk)

            ours_out.append(await _took_s(operations._transfers.get(await _url_out(operations, server), take)))
        assert back.read_bytes() == data.read_bytes()
        back.unlink()
        put.append(SIZE_MIB / await _took_s(machine.guest.put({"data": data}, "/tmp")))
        get.append(SIZE_MIB / await _took_s(machine.guest.get("/tmp", {"data": back}, limit_bytes=1 << 40)))
        back.unlink()
    beside_curl = partial(Figure, unit="x", aim=0.9, more_is_better=True)
    return [
        beside_curl(f"vSphere: PUT of {SIZE_MIB} MiB, speed over curl's", values=ratios(curled_in, ours_in)),
        beside_curl(f"vSphere: GET of {SIZE_MIB} MiB, speed over curl's", values=ratios(curled_out, ours_out)),
        Figure(f"vSphere: {SIZE_MIB} MiB in, with checksum", "MiB/s", put),
        Figure(f"vSphere: {SIZE_MIB} MiB out, with checksum", "MiB/s", get),
    ]


async def _url_in(operations: GuestOperations, server: vsphere.Server) -> str:
    return meant(await operations._place_for(THERE, SIZE_MIB * MIB), server.settings.host, server.settings.port)


async def _url_out(operations: GuestOperations, server: vsphere.Server) -> str:
    return meant((await operations._from_guest(THERE)).url, server.settings.host, server.settings.port)


async def _success(process: asyncio.subprocess.Process) -> None:
    assert await process.wait() == 0


async def _took_s(verb: Awaitable[object]) -> float:
    began_s = time.monotonic()
    await verb
    return time.monotonic() - began_s
