"""What VirtualBox's machines cost beside VirtualBox's own programs, where the tests' VirtualBox can be had."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.peers import boot_sector, virtualbox_chroot
from tests.peers.virtualbox import Profile, clean_profile
from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside
from vmwrapper.errors import MachineExited
from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.virtualbox.machine import VirtualBoxMachine

from .figure import Figure, rounds

ROUNDS = 9
FOLLOWED_S = 60.0
MEMORY_MIB = 32
UNLIMITED = 1 << 50
_STATE = re.compile(r"^(\d+):(\d+):([\d.]+) Changing the VM state from '\w+' to '(\w+)'", re.MULTILINE)


def measure_virtualbox(folder: Path) -> list[Figure]:
    """Of a guest that counts, and rests in between."""
    if reason := boot_sector.missing() or virtualbox_chroot.missing():
        print(f"VirtualBox is not measured: {reason}")
        return []
    with clean_profile(folder / "profile") as profile, pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID"):
            patch.setenv(name, profile.environment[name])
        return asyncio.run(_measure(folder, profile))


async def _measure(folder: Path, profile: Profile) -> list[Figure]:
    hypervisor = VirtualBoxHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    started, bare, stood, took, paused, noticed, gone = [], [], [], [], [], [], []
    for _ in rounds(ROUNDS, "VirtualBox"):
        bare.append(_bare_start_s(profile, folder))
        began_s = time.monotonic()
        async with _machine(hypervisor, folder) as machine:
            started.append(time.monotonic() - began_s)
            await asyncio.sleep(1)
            took.append(await _took_s(machine.take_snapshot(_standing, most_bytes=UNLIMITED)))
            stood.append(_stood_s(machine))
            paused.append(await _took_s(machine.pause()))
            await machine.resume()
            noticed.append(await _noticed_s(machine))
        async with _machine(hypervisor, folder) as machine:
            await asyncio.sleep(1)
            began_s = time.monotonic()
        gone.append(time.monotonic() - began_s)
    async with _machine(hypervisor, folder) as machine:
        followed = await _followed_cpu_s(profile, machine)
    added = [ours - theirs for ours, theirs in zip(started, bare, strict=True)]
    return [
        Figure("VirtualBox: bare startvm", "s", bare),
        Figure("VirtualBox: created and started, beyond bare startvm", "s", added, aim=0.5),
        Figure("VirtualBox: a checkpoint stops the guest for", "s", stood, aim=0.44),
        Figure("VirtualBox: until a checkpoint is on the disk", "s", took),
        Figure("VirtualBox: suspend to paused", "s", paused, aim=0.5),
        Figure("VirtualBox: death of the machine noticed", "s", noticed, aim=2),
        Figure("VirtualBox: abort to all gone", "s", gone, aim=2),
        Figure("VirtualBox: CPU time of following, a minute", "s", [followed], aim=0.08),
    ]


@asynccontextmanager
async def _machine(hypervisor: VirtualBoxHypervisor, folder: Path) -> AsyncIterator[VirtualBoxMachine]:
    directory = folder / "machine"
    directory.mkdir(exist_ok=True)
    spec = MachineSpec(
        identity=MachineIdentity("bench", "virtualbox", str(directory)),
        image=boot_sector.disk(boot_sector.boot_sector(timer_ticks=1), "vdi"),
        directory=directory,
        memory_mib=MEMORY_MIB,
        cpus=1,
        scratch_mib=0,
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        assert isinstance(machine, VirtualBoxMachine)
        await machine.power_on()
        yield machine
        await machine.keep_snapshots([])


@contextmanager
def _standing() -> Iterator[None]:
    yield


async def _took_s(verb: object) -> float:
    began_s = time.monotonic()
    await verb  # type: ignore[misc]
    return time.monotonic() - began_s


def _stood_s(machine: VirtualBoxMachine) -> float:
    """For how long the guest stood last, by its machine's log."""
    said = machine._place.log.read_text(errors="replace")
    states = [(3600 * int(h) + 60 * int(m) + float(s), state) for h, m, s, state in _STATE.findall(said)]
    stopped_s = [at_s for at_s, state in states if state.startswith("SUSPENDING")][-1]
    return min(at_s for at_s, state in states if state == "RUNNING" and at_s > stopped_s) - stopped_s


async def _noticed_s(machine: VirtualBoxMachine) -> float:
    watching = asyncio.create_task(machine.watch())
    await asyncio.sleep(0.1)
    began_s = time.monotonic()
    psutil.Process(machine._on.pid).kill()
    with suppress(MachineExited):
        await watching
    return time.monotonic() - began_s


async def _followed_cpu_s(profile: Profile, machine: VirtualBoxMachine) -> float:
    """In a minute, of us and all of VirtualBox's but the machine itself."""

    def used_s() -> float:
        others = [process for process in profile.processes() if process.pid != machine._on.pid]
        return time.process_time() + sum(sum(process.cpu_times()[:2]) for process in others)

    async with beside(machine.watch()):
        await asyncio.sleep(6)  # until its service has nothing to do any more
        before_s, began_s = used_s(), time.monotonic()
        looking_s = time.process_time()
        used_s()
        looking_s = time.process_time() - looking_s
        await asyncio.sleep(FOLLOWED_S)
        return (used_s() - before_s - 2 * looking_s) / (time.monotonic() - began_s) * 60


def _bare_start_s(profile: Profile, folder: Path) -> float:
    """Of a machine that there is, by VirtualBox's own command."""
    name = "bare"
    profile.must("createvm", "--name", name, "--basefolder", folder, "--ostype", "Linux_64", "--register")
    profile.must("modifyvm", name, "--memory", str(MEMORY_MIB), "--vm-execution-engine", "interpreter")
    began_s = time.monotonic()
    profile.must("startvm", name, "--type", "headless")
    took_s = time.monotonic() - began_s
    profile.must("controlvm", name, "poweroff")
    while profile.manage("unregistervm", name, "--delete").returncode:
        time.sleep(0.1)
    return took_s
