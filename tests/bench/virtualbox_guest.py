"""What guests of VirtualBox's cost beside VirtualBox's own guestcontrol, where the tests' Linux can be had."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.peers import virtualbox_linux
from tests.peers.virtualbox import Profile, clean_profile
from vmwrapper.clock import RunningClock
from vmwrapper.guest.launcher import Launcher, Program
from vmwrapper.hypervisor.interface import MIB, Guest, Login, Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.virtualbox.place import place_of

from .figure import Figure, ratios, rounds

ROUNDS = 3
SIZE_MIB = 8
LIMIT_S = 600.0
UNLIMITED = 1 << 50
SERVICE_RUNS = "Guest Control: GUEST_MSG_REPORT_FEATURES"
IN_GUEST = "/tmp"
PROGRAM = "#!/bin/sh\nsleep 1000\n"


def measure_virtualbox_guest(folder: Path) -> list[Figure]:
    if reason := virtualbox_linux.missing():
        print(f"VirtualBox's guests are not measured: {reason}")
        return []
    with clean_profile(folder / "profile") as profile, pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID"):
            patch.setenv(name, profile.environment[name])
        return asyncio.run(_Measure(folder, profile).figures())


class _Measure:
    def __init__(self, folder: Path, profile: Profile) -> None:
        self._folder = folder
        self._profile = profile
        self._password = folder / "password"
        self._password.write_text(virtualbox_linux.PASSWORD)
        self._data = folder / "data"
        self._data.write_bytes(random.Random(1).randbytes(SIZE_MIB * MIB))

    async def figures(self) -> list[Figure]:
        hypervisor = VirtualBoxHypervisor()
        assert (await hypervisor.probe(RunningClock())).usable
        bare, ours, by_itself, back, put, get, copied_in, copied_out = [], [], [], [], [], [], [], []
        for _ in rounds(ROUNDS, "VirtualBox's guests"):
            async with self._machine(hypervisor) as machine:
                bare.append(self._bare_start_s())
                copied_in.append(SIZE_MIB / self._copied_s("copyto", self._data, f"{IN_GUEST}/copied"))
                copied_out.append(SIZE_MIB / self._copied_s("copyfrom", f"{IN_GUEST}/copied", self._folder / "copied"))
                (self._folder / "copied").unlink()
                self._profile.must("controlvm", self._uuid, "poweroff")
                await asyncio.sleep(2)
            began_s = time.monotonic()
            async with self._machine(hypervisor, starts_agent=True) as machine:
                await machine.power_on()
                await self._start_program(machine.guest)
                by_itself.append(time.monotonic() - began_s)
            began_s = time.monotonic()
            async with self._machine(hypervisor) as machine:
                await machine.power_on()
                await self._start_program(machine.guest)
                ours.append(time.monotonic() - began_s)
                put.append(SIZE_MIB / await _took_s(machine.guest.put({"file": self._data}, IN_GUEST)))
                arrived = self._folder / "arrived"
                get.append(
                    SIZE_MIB / await _took_s(machine.guest.get(IN_GUEST, {"file": arrived}, limit_bytes=UNLIMITED))
                )
                assert arrived.read_bytes() == self._data.read_bytes()
                arrived.unlink()
                await machine.take_snapshot(_standing, most_bytes=UNLIMITED)
                back.append(await _took_s(self._back(machine)))
        return [
            Figure("VirtualBox: bare startvm until guestcontrol runs a command", "s", bare),
            Figure("VirtualBox: created until the program runs, over that", "x", ratios(ours, bare), aim=1.2),
            Figure("VirtualBox: the same where the image starts the agent", "x", ratios(by_itself, bare), aim=1.2),
            Figure("VirtualBox: going back to a snapshot until the guest answers", "s", back),
            Figure(f"VirtualBox: {SIZE_MIB} MiB in, with checksum", "MB/s", put),
            Figure("VirtualBox: over bare guestcontrol copyto", "x", ratios(put, copied_in), more_is_better=True),
            Figure(f"VirtualBox: {SIZE_MIB} MiB out, with checksum", "MB/s", get),
            Figure("VirtualBox: over bare guestcontrol copyfrom", "x", ratios(get, copied_out), more_is_better=True),
        ]

    @property
    def _directory(self) -> Path:
        return self._folder / "machine"

    @property
    def _identity(self) -> MachineIdentity:
        return MachineIdentity("bench", "guest", str(self._directory))

    @property
    def _uuid(self) -> str:
        return place_of(self._identity, self._directory).uuid

    @asynccontextmanager
    async def _machine(self, hypervisor: VirtualBoxHypervisor, *, starts_agent: bool = False) -> AsyncIterator[Machine]:
        self._directory.mkdir(exist_ok=True)
        spec = MachineSpec(
            identity=self._identity,
            image=virtualbox_linux.cd(virtualbox_linux.its_agent() if starts_agent else ""),
            directory=self._directory,
            memory_mib=160,
            cpus=1,
            scratch_mib=0,
            login=None if starts_agent else Login("root", virtualbox_linux.PASSWORD),
        )
        async with hypervisor.machine(spec, RunningClock()) as machine:
            yield machine
            await machine.keep_snapshots([])

    def _guestcontrol(self, verb: str, *words: str | Path) -> bool:
        login = ("--username", "root", "--passwordfile", self._password)
        return self._profile.manage("guestcontrol", self._uuid, verb, *login, *words).returncode == 0

    def _bare_start_s(self) -> float:
        began_s = time.monotonic()
        self._profile.must("startvm", self._uuid, "--type", "headless")
        log = place_of(self._identity, self._directory).log
        while SERVICE_RUNS not in log.read_text():
            time.sleep(0.05)  # who asks for a command before that, may wait for 30 s more
        while not self._guestcontrol("run", "--exe", "/bin/true", "--", "true"):
            time.sleep(0.3)
        return time.monotonic() - began_s

    def _copied_s(self, verb: str, *words: str | Path) -> float:
        began_s = time.monotonic()
        assert self._guestcontrol(verb, *words)
        return time.monotonic() - began_s

    async def _start_program(self, guest: Guest) -> None:
        program = self._folder / "program"
        program.write_text(PROGRAM)
        await guest.ready(limit_s=LIMIT_S)
        launcher = Launcher(guest, datadir=IN_GUEST, user="root")
        await launcher.prepare(scratch=False)
        await guest.put({"program": program}, IN_GUEST)
        await launcher.start(Program(path="program", environment={}))

    async def _back(self, machine: Machine) -> None:
        await machine.revert(machine.snapshots[0])
        await machine.resume()
        await machine.guest.ready(limit_s=LIMIT_S)


@contextmanager
def _standing() -> Iterator[None]:
    yield


async def _took_s(verb: Awaitable[object]) -> float:
    began_s = time.monotonic()
    await verb
    return time.monotonic() - began_s
