"""The hypervisors that the contract is tested with, each with what tests do to its machines behind its back."""

import asyncio
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil
from pyVim.task import WaitForTask

from tests.peers import boot_sector, virtualbox_linux, vmrun_stand_in, vsphere
from vmwrapper.errors import GuestPanicked, GuestPoweredOff, GuestSilent, MachineExited
from vmwrapper.guest.launcher import Launcher, Program
from vmwrapper.hypervisor.interface import Guest, Hypervisor, Login, Machine, MachineSpec, Snapshot
from vmwrapper.hypervisor.memory.backend import MemoryHypervisor, MemoryMachine
from vmwrapper.hypervisor.memory.guest import FOLDER, LINK, GuestFile, MemoryGuest
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor
from vmwrapper.hypervisor.qemu.saved import saved
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.virtualbox.machine import VirtualBoxMachine
from vmwrapper.hypervisor.vmware.vmrun.backend import VmrunHypervisor
from vmwrapper.hypervisor.vmware.vmrun.disks import make_disk
from vmwrapper.hypervisor.vmware.vmrun.place import place_of as vmrun_place_of
from vmwrapper.hypervisor.vmware.vmrun.running import running
from vmwrapper.hypervisor.vmware.vmrun.settings import SCRATCH_UUID
from vmwrapper.hypervisor.vmware.vmrun.vmx import vmx_text
from vmwrapper.hypervisor.vmware.vsphere.backend import VsphereHypervisor

COUNTER = "counter"
COUNTER_SCRIPT = """\
#!/bin/sh
while :; do
    n=$((n + 1))
    echo $n >count.new
    mv count.new count
done
"""
"""A program that never ends, and counts in the file `count` of its datadir."""


class Subject(Protocol):
    """A hypervisor, and the hands of a guest's user or a host's owner."""

    image: Path
    ends_within_s: float
    """Whatever happens, the end of a machine's block; also each verb."""
    boots_within_s: float
    answers_within_s: float
    """Each request to its guest."""
    login: Login | None

    def hypervisor(self) -> Hypervisor:
        """A new one, not yet probed."""

    async def up(self, machine: Machine, *, limit_s: float) -> None:
        """Wait until the guest is up. Raises as `Guest.ready` does."""

    async def start_counter(self, machine: Machine, folder: Path) -> None:
        """Have a guest that is up count from now on; `folder` is for files of the host."""

    async def counted(self, machine: Machine) -> int:
        """How far, which a guest's memory and disk agree on."""

    async def make_folder(self, guest: Guest, path: str) -> None: ...
    async def make_link(self, guest: Guest, path: str, target: str) -> None: ...
    async def is_executable(self, guest: Guest, path: str) -> bool: ...
    async def say(self, machine: Machine, words: bytes) -> None:
        """Write to the guest's console."""

    async def uptime_s(self, machine: Machine) -> float:
        """The guest's own clock."""

    def files_of(self, snapshot: Snapshot) -> set[str]:
        """The names of all files that a snapshot needs."""

    def kill(self, machine: Machine, spec: MachineSpec) -> None:
        """End the hypervisor's process."""

    async def power_off_inside(self, machine: Machine) -> None: ...
    async def panic(self, machine: Machine) -> None: ...


class _Commanded:
    """Of hypervisors whose guests take commands."""

    ends_within_s = 1.0
    boots_within_s = 30.0
    answers_within_s = 20.0
    login: Login | None = None

    async def up(self, machine: Machine, *, limit_s: float) -> None:
        await machine.guest.ready(limit_s=limit_s)

    async def start_counter(self, machine: Machine, folder: Path) -> None:
        await launch_counter(machine, folder, scratch=True)

    async def counted(self, machine: Machine) -> int:
        return int(await machine.guest.read("/tmp/count", limit_bytes=20) or 0)


class MemorySubject(_Commanded):
    """See `Subject`."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def hypervisor(self) -> Hypervisor:
        return MemoryHypervisor({COUNTER: _count}, boot_s=0.2, put_s=0.12)

    async def make_folder(self, guest: Guest, path: str) -> None:
        _files(guest)[path] = FOLDER

    async def make_link(self, guest: Guest, path: str, target: str) -> None:
        _files(guest)[path] = LINK

    async def is_executable(self, guest: Guest, path: str) -> bool:
        return _files(guest)[path].executable

    async def say(self, machine: Machine, words: bytes) -> None:
        _in_memory(machine).say(words)

    async def uptime_s(self, machine: Machine) -> float:
        memory = _in_memory(machine)
        return memory.cpu_time_s() - memory.guest._boots

    def files_of(self, snapshot: Snapshot) -> set[str]:
        return {f"snapshot-{snapshot.number}"}

    def kill(self, machine: Machine, spec: MachineSpec) -> None:
        _in_memory(machine).end(MachineExited("killed"))

    async def power_off_inside(self, machine: Machine) -> None:
        _in_memory(machine).end(GuestPoweredOff("powered off"))

    async def panic(self, machine: Machine) -> None:
        _in_memory(machine).end(GuestPanicked("panicked"))


class _Linux(_Commanded):
    """Of those whose guest is one."""

    async def _sh(self, guest: Guest, script: str) -> None:
        result = await guest.run(["sh", "-c", script], limit_s=self.answers_within_s)
        assert result.status == 0, result.stderr

    async def make_folder(self, guest: Guest, path: str) -> None:
        await self._sh(guest, f"mkdir {shlex.quote(path)}")

    async def make_link(self, guest: Guest, path: str, target: str) -> None:
        await self._sh(guest, f"ln -s {shlex.quote(target)} {shlex.quote(path)}")

    async def is_executable(self, guest: Guest, path: str) -> bool:
        return (await guest.run(["test", "-x", path], limit_s=self.answers_within_s)).status == 0

    async def say(self, machine: Machine, words: bytes) -> None:
        await machine.guest.run(["sh", "-c", "cat >/dev/console"], stdin=words, limit_s=self.answers_within_s)

    async def uptime_s(self, machine: Machine) -> float:
        result = await machine.guest.run(["cat", "/proc/uptime"], limit_s=self.answers_within_s)
        return float(result.stdout.split()[0])


class QemuSubject(_Linux):
    """See `Subject`."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def hypervisor(self) -> Hypervisor:
        return QemuHypervisor()

    def files_of(self, snapshot: Snapshot) -> set[str]:
        return saved(snapshot).files

    def kill(self, machine: Machine, spec: MachineSpec) -> None:
        [process] = [child for child in psutil.Process().children() if str(spec.identity) in _command_line(child)]
        process.kill()

    async def power_off_inside(self, machine: Machine) -> None:
        await _last_command(machine.guest, "poweroff -f")

    async def panic(self, machine: Machine) -> None:
        await _last_command(machine.guest, "echo c >/proc/sysrq-trigger")


class VirtualBoxSubject:
    """See `Subject`. Its guest counts from its start on, and does nothing else."""

    ends_within_s = 15.0  # its service stalls for ten, once in some hundred calls
    boots_within_s = 30.0
    answers_within_s = 20.0
    login = None

    def __init__(self) -> None:
        self.image = boot_sector.disk(boot_sector.boot_sector(timer_ticks=1, rests=False), "vdi")

    def hypervisor(self) -> Hypervisor:
        return VirtualBoxHypervisor()

    async def up(self, machine: Machine, *, limit_s: float) -> None:
        async with asyncio.timeout(limit_s):
            while not await self.counted(machine):
                await asyncio.sleep(0.02)

    async def start_counter(self, machine: Machine, folder: Path) -> None:
        pass

    async def counted(self, machine: Machine) -> int:
        found = re.findall(r"TICK (\d+)\nDISK (\d+)\n", machine.console_tail)
        if not found:
            return 0
        memory, disk = map(int, found[-1])
        assert disk == memory - 1
        return memory

    def files_of(self, snapshot: Snapshot) -> set[str]:
        raise AssertionError

    def kill(self, machine: Machine, spec: MachineSpec) -> None:
        assert isinstance(machine, VirtualBoxMachine)
        psutil.Process(machine._on.pid).kill()


class VirtualBoxLinuxSubject(_Linux):
    """See `Subject`. Where VirtualBox interprets its guests, each call takes some seconds."""

    ends_within_s = 15.0
    boots_within_s = 90.0
    answers_within_s = 120.0
    login = Login(virtualbox_linux.USER, virtualbox_linux.PASSWORD)

    def __init__(self) -> None:
        self.image = virtualbox_linux.cd()

    def hypervisor(self) -> Hypervisor:
        return VirtualBoxHypervisor()


class VsphereSubject(_Linux):
    """See `Subject`. Its guests are containers behind a simulator: they have no scratch disk."""

    ends_within_s = 15.0
    boots_within_s = 60.0
    answers_within_s = 20.0
    login = vsphere.ROOT

    def __init__(self, server: vsphere.Server) -> None:
        self._server = server
        self.image = server.image

    def hypervisor(self) -> Hypervisor:
        return VsphereHypervisor(lambda: self._server.settings)

    async def start_counter(self, machine: Machine, folder: Path) -> None:
        await launch_counter(machine, folder, scratch=False)

    def kill(self, machine: Machine, spec: MachineSpec) -> None:
        with self._server.owner() as content:
            found = vsphere.machine_of(content, spec.identity)
            WaitForTask(found.PowerOff())
            WaitForTask(found.Destroy())


class VmrunSubject(_Linux):
    """See `Subject`. A stand-in for vmrun, whose guests are processes: they have no scratch disk."""

    ends_within_s = 15.0
    boots_within_s = 60.0
    login = Login("root", vmrun_stand_in.PASSWORD)

    def __init__(self, home: Path) -> None:
        self.home = home
        vmrun_stand_in.install(home, "ws")
        make_disk(home / "guest.vmdk", 4096, serial=SCRATCH_UUID)
        self.image = home / "guest.vmx"
        self.image.write_text(vmx_text({"scsi0:0.fileName": "guest.vmdk"}))

    def hypervisor(self) -> Hypervisor:
        return VmrunHypervisor(self.home / "vmrun", modules=Path(os.devnull))

    async def start_counter(self, machine: Machine, folder: Path) -> None:
        await launch_counter(machine, folder, scratch=False)

    def kill(self, machine: Machine, spec: MachineSpec) -> None:
        [process] = running(vmrun_place_of(spec.identity, spec.directory).vmx)
        process.kill()


def host_files(folder: Path, contents: dict[str, bytes]) -> dict[str, Path]:
    files = {name: folder / f"input {number}" for number, name in enumerate(contents)}
    for name, path in files.items():
        path.write_bytes(contents[name])
    return files


async def launch_counter(machine: Machine, folder: Path, *, scratch: bool) -> None:
    launcher = Launcher(machine.guest, datadir="/tmp", user="root")
    await launcher.prepare(scratch=scratch)
    await machine.guest.put(host_files(folder, {COUNTER: COUNTER_SCRIPT.encode()}), "/tmp")
    await launcher.start(Program(path=COUNTER, environment={}))


async def _count(guest: MemoryGuest) -> int:
    while True:
        counted = guest.files.get("/tmp/count")
        guest.write("/tmp/count", str(1 + (int(counted.content) if counted else 0)).encode())
        await guest.compute(0.01)


def _in_memory(machine: Machine) -> MemoryMachine:
    assert isinstance(machine, MemoryMachine)
    return machine


def _files(guest: Guest) -> dict[str, GuestFile]:
    assert isinstance(guest, MemoryGuest)
    return guest.files


async def _last_command(guest: Guest, script: str) -> None:
    """Run what the guest doesn't survive."""
    with suppress(GuestSilent):
        await guest.run(["sh", "-c", f"sleep 0.1; {script}"], limit_s=0.5)


def _command_line(process: psutil.Process) -> str:
    with suppress(psutil.Error):  # it has just ended
        return " ".join(process.cmdline())
    return ""
