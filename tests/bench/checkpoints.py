"""What a checkpoint costs: the guest's standstill, the time, the bytes, and the work that a job loses by it."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from vmwrapper.clock import RunningClock
from vmwrapper.folders import image_folder
from vmwrapper.guest.bundle import extract, open_bundle
from vmwrapper.hypervisor.interface import MIB, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.agent import REPLY_LIMIT_BYTES, Agent
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor
from vmwrapper.hypervisor.qemu.machine import QemuMachine

from .figure import Figure, ratios, rounds

MEMORY_MIB = 1024
DIRTY_MIB = 800
ROUNDS = 7
PAIRS = 12
WINDOW_S = 20.0
UNLIMITED = 1 << 50
SCRIPT_LIMIT_S = 300.0
PART_MIB = DIRTY_MIB // 8

FILL = (
    f"mkdir -p /mem && mount -t tmpfs -o size={DIRTY_MIB + 1}m mem /mem && "
    f"for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mem/$i bs=1M count={PART_MIB} 2>/dev/null || exit; done"
)
DIRTIED_AT_ONCE_MIB = 10
DIRTY = (
    "echo 0 >/run/dirtied;"
    f"(while :; do for at in {' '.join(str(mib) for mib in range(0, PART_MIB, DIRTIED_AT_ONCE_MIB))}; do"
    f" dd if=/mem/2 of=/mem/1 bs=1M count={DIRTIED_AT_ONCE_MIB} skip=$at seek=$at conv=notrunc; sleep 0.05;"
    f" n=$((n + {DIRTIED_AT_ONCE_MIB})); echo $n >/run/dirtied; done; done) >/dev/null 2>&1 </dev/null &"
)
HALVE = "rm /mem/1 /mem/3 /mem/5 /mem/7"
COUNT = (
    "echo 0 >/run/count;"
    "(while :; do i=0; while [ $i -lt 100 ]; do i=$((i + 1)); done; n=$((n + 1)); echo $n >/run/count; done)"
    " >/dev/null 2>&1 </dev/null &"
)
IN_USE = 'awk \'/^(MemTotal|MemFree)/ {kb[$1] = $2} END {print kb["MemTotal:"] - kb["MemFree:"]}\' /proc/meminfo'


@dataclass(frozen=True, slots=True)
class Taken:
    """One checkpoint, as it went."""

    stood_s: float
    took_s: float
    state: Path
    size: int


class BenchMachine:
    """A machine with the default guest and a disk, and the wrapper's hands on it."""

    def __init__(self, machine: QemuMachine, folder: Path) -> None:
        self._machine = machine
        self._folder = folder

    async def sh(self, script: str) -> str:
        result = await self._machine.guest.run(["sh", "-c", script], limit_s=SCRIPT_LIMIT_S)
        assert result.status == 0, result
        return result.stdout.decode()

    async def number(self, path: str) -> int:
        """What stands in a file that is written again and again."""
        while not (said := await self.sh(f"cat {path}")):
            pass
        return int(said)

    async def take(self) -> Taken:
        """The guest's standstill is by QEMU's word; the time until it is on the disk."""
        machine = self._machine

        @contextmanager
        def standing() -> Iterator[None]:
            yield
            resumes.append(asyncio.create_task(machine.resume()))

        resumes: list[asyncio.Task[None]] = []
        with machine._on.monitor.listener(("STOP", "RESUME")) as events:
            began_s = time.monotonic()
            await machine.take_snapshot(standing, most_bytes=UNLIMITED)
            took_s = time.monotonic() - began_s
            await asyncio.gather(*resumes)
            stood_s = _stood_s(events.history)
        newest = machine.snapshots[0].number
        await machine.keep_snapshots([newest])
        state = self._folder / f"state-{newest}"
        return Taken(stood_s, took_s, state, state.stat().st_size)

    async def revert(self) -> float:
        """How long it takes until the guest runs as in the last checkpoint."""
        began_s = time.monotonic()
        await self._machine.revert(self._machine.snapshots[0])
        await self._machine.resume()
        took_s = time.monotonic() - began_s
        await self._machine.guest.ready(limit_s=60)
        return took_s


@asynccontextmanager
async def bench_machine(folder: Path, *, memory_mib: int) -> AsyncIterator[BenchMachine]:
    hypervisor = QemuHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    folder = folder / "machine"
    folder.mkdir()
    spec = MachineSpec(
        identity=MachineIdentity("bench", "checkpoints", str(folder)),
        image=image_folder() / "default.vmguest",
        directory=folder,
        memory_mib=memory_mib,
        cpus=1,
        scratch_mib=256,
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        assert isinstance(machine, QemuMachine)
        await machine.power_on()
        await machine.guest.ready(limit_s=60)
        yield BenchMachine(machine, folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _stood_s(events: Sequence[Any]) -> float:
    """How long the guest stood in all, by the hypervisor's own clock."""
    stood_s = stopped_s = 0.0
    for event in events:
        at_s = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
        if event["event"] == "STOP":
            stopped_s = at_s
        else:
            stood_s += at_s - stopped_s
    return stood_s


@asynccontextmanager
async def bare_qemu(folder: Path) -> AsyncIterator[tuple[QMPClient, Agent]]:
    """The same guest in bare QEMU, on whose disk QEMU keeps its own snapshots."""
    bundle = open_bundle(image_folder() / "default.vmguest")
    for name, section in (("kernel", bundle.kernel), ("initramfs", bundle.initramfs)):
        with (folder / name).open("wb") as file:
            extract(bundle, section, file)
    disk = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "256M"], check=True)
    agent_ours, agent_theirs = socket.socketpair()
    monitor_ours, monitor_theirs = socket.socketpair()
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-cpu", "Nehalem"),
        *("-m", f"{MEMORY_MIB}M", "-kernel", folder / "kernel", "-initrd", folder / "initramfs"),
        *("-append", bundle.command_line, "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,fd={agent_theirs.fileno()}"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-chardev", f"socket,id=monitor,fd={monitor_theirs.fileno()}", "-mon", "chardev=monitor,mode=control"),
        *("-blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={disk}"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]
    with agent_theirs, monitor_theirs:
        qemu = subprocess.Popen(argv, pass_fds=[agent_theirs.fileno(), monitor_theirs.fileno()])
    try:
        reader, writer = await asyncio.open_connection(sock=agent_ours, limit=REPLY_LIMIT_BYTES)
        agent = Agent(reader, writer, RunningClock())
        monitor = QMPClient()
        await monitor.connect(monitor_ours)
        await agent.ready(limit_s=60)
        yield monitor, agent
        writer.close()
        await monitor.disconnect()
    finally:
        qemu.kill()
        qemu.wait()


async def internal_snapshot_s(monitor: QMPClient) -> float:
    """How long the guest stands still for QEMU's snapshot-save."""
    with monitor.listener(("STOP", "RESUME")) as events:
        await _job(monitor, "snapshot-save", tag="bench", vmstate="disk", devices=["disk"])
        stood_s = _stood_s(events.history)
    await _job(monitor, "snapshot-delete", tag="bench", devices=["disk"])
    return stood_s


async def _job(monitor: QMPClient, command: str, **arguments: Any) -> None:
    await monitor.execute(command, {"job-id": "bench", **arguments})
    while True:
        [job] = await monitor.execute("query-jobs")  # type: ignore[misc]
        if job["status"] == "concluded":
            break
        await asyncio.sleep(0.01)
    await monitor.execute("job-dismiss", {"id": "bench"})
    assert "error" not in job, job


def written_s(folder: Path, size: int) -> float:
    """How long it takes to have so many bytes on the disk."""
    chunk = os.urandom(MIB)
    path = folder / "written"
    began_s = time.monotonic()
    with path.open("wb") as file:
        for _ in range(-(-size // MIB)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    took_s = time.monotonic() - began_s
    path.unlink()
    return took_s


def read_s(path: Path) -> float:
    """How long it takes to read a file that is not cached."""
    with path.open("rb", buffering=0) as file:
        forget_cached(path)
        began_s = time.monotonic()
        while file.read(MIB):
            pass
        took_s = time.monotonic() - began_s
    forget_cached(path)
    return took_s


def forget_cached(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_checkpoints(folder: Path) -> list[Figure]:
    """Of a guest with much memory that can't be compressed, which rests."""
    return asyncio.run(_measure_checkpoints(folder))


async def _measure_checkpoints(folder: Path) -> list[Figure]:
    internal, taken, written, read, restored = [], [], [], [], []
    async with bare_qemu(folder) as (monitor, agent), bench_machine(folder, memory_mib=MEMORY_MIB) as machine:
        filled = await agent.run(["sh", "-c", FILL], stdin=b"", limit_s=SCRIPT_LIMIT_S)
        assert filled.status == 0, filled
        await machine.sh(FILL)
        for _ in rounds(ROUNDS, "checkpoints"):
            internal.append(await internal_snapshot_s(monitor))
            taken.append(await machine.take())
            written.append(written_s(folder, taken[-1].size))
            read.append(read_s(taken[-1].state))
            restored.append(await machine.revert())
    stood, took = [one.stood_s for one in taken], [one.took_s for one in taken]
    return [
        Figure("checkpoint of 800 MiB: QEMU's own snapshot-save stops the guest for", "s", internal),
        Figure("checkpoint of 800 MiB: ours stops it for", "s", stood, aim=0.1),
        Figure("... over QEMU's own", "x", ratios(stood, internal), aim=0.05),
        Figure("checkpoint of 800 MiB: until it is on the disk and read back", "s", took),
        Figure("... over writing as much with fsync", "x", ratios(took, written), aim=1.3),
        Figure("going back to it", "s", restored),
        Figure("... over reading as much", "x", ratios(restored, read), aim=1.5),
    ]


def measure_busy_checkpoints(folder: Path) -> list[Figure]:
    """Of a guest that changes its memory all the time."""
    return asyncio.run(_measure_busy_checkpoints(folder))


async def _measure_busy_checkpoints(folder: Path) -> list[Figure]:
    taken, written, rates = [], [], []
    async with bench_machine(folder, memory_mib=MEMORY_MIB) as machine:
        await machine.sh(FILL)
        await machine.sh(DIRTY)
        for _ in rounds(ROUNDS, "busy checkpoints"):
            rates.append(await _dirtied_mb_per_s(machine))
            taken.append(await machine.take())
            written.append(written_s(folder, taken[-1].size))
    return [
        Figure("a guest that changes its memory, by", "MB/s", rates),
        Figure("... is stopped by a checkpoint for", "s", [one.stood_s for one in taken], aim=0.1),
        Figure("... which has", "MB", [one.size / 1e6 for one in taken]),
        Figure("... and takes, over writing as much", "x", ratios([one.took_s for one in taken], written), aim=1.3),
    ]


async def _dirtied_mb_per_s(machine: BenchMachine) -> float:
    before, began_s = await machine.number("/run/dirtied"), time.monotonic()
    await asyncio.sleep(3)
    after = await machine.number("/run/dirtied")
    return (after - before) * MIB / 1e6 / (time.monotonic() - began_s)


def measure_freed_memory(folder: Path) -> list[Figure]:
    """How much of a checkpoint is memory that the guest does not use any more."""
    return asyncio.run(_measure_freed_memory(folder))


async def _measure_freed_memory(folder: Path) -> list[Figure]:
    over = []
    for _ in rounds(3, "freed memory"):
        async with bench_machine(folder, memory_mib=MEMORY_MIB) as machine:
            await machine.sh(FILL)
            await machine.sh(HALVE)
            await asyncio.sleep(5)
            in_use = 1024 * int(await machine.sh(IN_USE))
            over.append((await machine.take()).size / in_use)
    return [Figure("checkpoint after half was freed, over the memory in use", "x", over, aim=1.1)]


def measure_loss(folder: Path) -> list[Figure]:
    """How much work a job loses by a checkpoint each minute."""
    return asyncio.run(_measure_loss(folder))


async def _measure_loss(folder: Path) -> list[Figure]:
    losses = []
    async with bench_machine(folder, memory_mib=256) as machine:
        await machine.sh(COUNT)
        await asyncio.sleep(5)
        for _ in rounds(PAIRS, "loss of speed"):
            without = await _worked(machine, takes=False)
            with_one = await _worked(machine, takes=True)
            losses.append((without - with_one) / without * WINDOW_S / 60 * 100)
    return [Figure("work lost by a checkpoint each minute", "%", losses, aim=1)]


async def _worked(machine: BenchMachine, *, takes: bool) -> float:
    """By a guest in one window, in which one checkpoint is taken."""
    before, began_s = await machine.number("/run/count"), time.monotonic()
    await asyncio.sleep(WINDOW_S / 4)
    if takes:
        await machine.take()
    await asyncio.sleep(began_s + WINDOW_S - time.monotonic())
    after = await machine.number("/run/count")
    return (after - before) / (time.monotonic() - began_s)
