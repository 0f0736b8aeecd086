"""How fast files cross, over the host's own copying and the guest agent's file calls; and what a further task costs."""

import asyncio
import base64
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from vmwrapper.clock import RunningClock
from vmwrapper.folders import image_folder
from vmwrapper.guest.launcher import Launcher
from vmwrapper.hypervisor.interface import MIB, Guest, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor

from .figure import Figure, ratios, rounds
from .job import Job

DATADIR = "/tmp"
LARGE_MIB = 256
AGENT_MIB = 1
AGENT_CALL_BYTES = 48 * 1024
SMALL_FILES = 1000
ROUNDS = 5
TASKS = 3
HUGE_MIB = 4096


def measure_large_files(folder: Path) -> list[Figure]:
    return asyncio.run(_in_guest(folder, _large_files))


def measure_small_files(folder: Path) -> list[Figure]:
    return asyncio.run(_in_guest(folder, _small_files))


async def _in_guest(folder: Path, measure: Callable[[Guest, Path], Awaitable[list[Figure]]]) -> list[Figure]:
    hypervisor = QemuHypervisor()
    await hypervisor.probe(RunningClock())
    directory = folder / "machine"
    directory.mkdir()
    spec = MachineSpec(
        identity=MachineIdentity("bench", "transfers", str(folder)),
        image=image_folder() / "default.vmguest",
        directory=directory,
        memory_mib=1024,
        cpus=1,
        scratch_mib=2048,
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=60)
        await Launcher(machine.guest, datadir=DATADIR, user="root").prepare(scratch=True)
        return await measure(machine.guest, folder)


async def _large_files(guest: Guest, folder: Path) -> list[Figure]:
    there, copy, back = folder / "large", folder / "copy", folder / "back"
    there.write_bytes(os.urandom(LARGE_MIB * MIB))
    cp, put, get, agent_put, agent_get = [], [], [], [], []
    for _ in rounds(ROUNDS, "large files"):
        cp.append(LARGE_MIB / await _timed(asyncio.to_thread(shutil.copyfile, there, copy)))
        put.append(LARGE_MIB / await _timed(guest.put({"large": there}, DATADIR)))
        get.append(LARGE_MIB / await _timed(guest.get(DATADIR, {"large": back}, limit_bytes=LARGE_MIB * MIB)))
        agent_put.append(AGENT_MIB / await _timed(_agent_writes(guest)))
        agent_get.append(AGENT_MIB / await _timed(_agent_reads(guest)))
        back.unlink()
    return [
        Figure("host: copying 256 MiB in the page cache", "MiB/s", cp),
        Figure("256 MiB into the guest, checked", "MiB/s", put, aim=100, more_is_better=True),
        Figure("256 MiB out of the guest, checked", "MiB/s", get, aim=100, more_is_better=True),
        Figure("into the guest over the host's copying", "x", ratios(put, cp), aim=1 / 6, more_is_better=True),
        Figure("out of the guest over the host's copying", "x", ratios(get, cp), aim=1 / 6, more_is_better=True),
        Figure("into the guest over the agent's calls", "x", ratios(put, agent_put), aim=50, more_is_better=True),
        Figure("out of the guest over the agent's calls", "x", ratios(get, agent_get), aim=50, more_is_better=True),
    ]


async def _agent_writes(guest: Guest) -> None:
    agent = guest._agent
    handle = await agent.call("guest-file-open", path=f"{DATADIR}/agent", mode="w")
    chunk = base64.b64encode(os.urandom(AGENT_CALL_BYTES)).decode()
    for _ in range(AGENT_MIB * MIB // AGENT_CALL_BYTES + 1):
        await agent.call("guest-file-write", handle=handle, **{"buf-b64": chunk})
    await agent.call("guest-file-close", handle=handle)


async def _agent_reads(guest: Guest) -> None:
    agent = guest._agent
    handle = await agent.call("guest-file-open", path=f"{DATADIR}/agent", mode="r")
    for _ in range(AGENT_MIB * MIB // AGENT_CALL_BYTES + 1):
        await agent.call("guest-file-read", handle=handle, count=AGENT_CALL_BYTES)
    await agent.call("guest-file-close", handle=handle)


async def _small_files(guest: Guest, folder: Path) -> list[Figure]:
    files = {f"file {number}": folder / f"{number}" for number in range(SMALL_FILES)}
    for path in files.values():
        path.write_bytes(os.urandom(1000))
    put, get = [], []
    for number in rounds(ROUNDS, "small files"):
        put.append(await _timed(guest.put(files, DATADIR)))
        back = folder / f"back {number}"
        back.mkdir()
        get.append(await _timed(guest.get(DATADIR, {name: back / name for name in files}, limit_bytes=MIB)))
    return [
        Figure("1,000 files of 1 kB into the guest", "s", put),
        Figure("1,000 files of 1 kB out of the guest", "s", get),
    ]


async def _timed(work: Awaitable[object]) -> float:
    started_at = time.monotonic()
    await work
    return time.monotonic() - started_at


def measure_further_tasks(folder: Path) -> list[Figure]:
    one, further = [], []
    for _ in rounds(ROUNDS, "tasks"):
        one.append(_job_s(folder, 1))
        further.append((_job_s(folder, TASKS) - one[-1]) / (TASKS - 1))
    return [
        Figure("a job of one task that does nothing", "s", one),
        Figure("added by each further task", "s", further),
        Figure("a further task over a job of one", "x", ratios(further, one)),
    ]


def _job_s(folder: Path, tasks: int) -> float:
    job = Job(folder, tasks * [""], script="exit 0")
    job.process.communicate()
    return time.monotonic() - job.started_at


def measure_huge_file(folder: Path) -> list[Figure]:
    with (folder / "huge").open("wb") as file:
        file.truncate(HUGE_MIB * MIB)
    tags = f"<disk_mb>{HUGE_MIB + 512}</disk_mb><data>huge</data><output>back</output>"
    peaks_mb = []
    for _ in rounds(1, "4 GiB"):
        job = Job(folder, [tags], script="mv huge back")
        job.wait_for("Sanitizing")
        [peak_kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{job.process.pid}/status").read_text())
        peaks_mb.append(int(peak_kib) * 1024 / 1e6)
        job.process.communicate()
    return [Figure("wrapper's peak memory with 4 GiB in and out", "MB", peaks_mb, aim=40)]
