"""What happens to VirtualBox in the field, with the real one: each machine is a guest of one sector that counts."""

import asyncio
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.peers import boot_sector, virtualbox_chroot
from tests.peers.virtualbox import Profile, clean_profile
from vmwrapper.clock import RunningClock
from vmwrapper.errors import (
    GuestPoweredOff,
    HostDiskFailed,
    MachineExited,
    ProcessFailed,
    SnapshotFailed,
    SnapshotUnusable,
    TemporaryFailure,
)
from vmwrapper.hypervisor import serial_file
from vmwrapper.hypervisor.interface import Machine, MachineSpec, Snapshot
from vmwrapper.hypervisor.virtualbox import machine as machines
from vmwrapper.hypervisor.virtualbox import service
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.virtualbox.place import place_of
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage

from .virtualbox_episode import kept, spec, standing

pytestmark = pytest.mark.virtualbox

LIMIT_S = 60
PLENTY = 1 << 40
SMALL_BYTES = 24 << 20


@pytest.fixture
def virtualbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Profile]:
    """A profile of its own, which is ours. Fails a test that leaves anything registered, or a machine running."""
    if reason := boot_sector.missing() or virtualbox_chroot.missing():
        pytest.skip(reason)
    with clean_profile(tmp_path / "virtualbox") as profile:
        for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID"):
            monkeypatch.setenv(name, profile.environment[name])
        yield profile


@pytest_asyncio.fixture
async def hypervisor(virtualbox: Profile) -> VirtualBoxHypervisor:
    hypervisor = VirtualBoxHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    return hypervisor


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    return tmp_path / "slot"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return image_of(tmp_path, boot_sector.boot_sector(timer_ticks=1))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A slot on a small disk; to be had before VirtualBox is started, which would not see it."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def image_of(folder: Path, sector: bytes) -> Path:
    return Path(shutil.copy(boot_sector.disk(sector, "vdi"), folder / "base.vdi"))


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            await asyncio.sleep(0.05)


def last_tick(machine: Machine) -> int:
    return max((int(number) for number in re.findall(r"TICK (\d+)$", machine.console_tail, re.MULTILINE)), default=0)


async def runs_on(machine: Machine) -> None:
    before = last_tick(machine)
    await until(lambda: last_tick(machine) > before + 1)


@asynccontextmanager
async def running(
    hypervisor: VirtualBoxHypervisor, slot: Path, image: Path, *snapshots: Snapshot
) -> AsyncIterator[Machine]:
    """A machine that has begun to count."""
    async with hypervisor.machine(spec(slot, image, *snapshots), RunningClock()) as machine:
        await machine.power_on()
        await runs_on(machine)
        yield machine


async def works(hypervisor: VirtualBoxHypervisor, slot: Path, image: Path) -> None:
    """As for a new job."""
    async with running(hypervisor, slot, image) as machine:
        assert "BOOT" in machine.console_tail
        await machine.take_snapshot(standing, most_bytes=PLENTY)
        await machine.revert(machine.snapshots[0])
        await machine.resume()
        await runs_on(machine)
        await machine.keep_snapshots([])


async def taken(machine: Machine) -> Snapshot:
    await machine.take_snapshot(standing, most_bytes=PLENTY)
    return machine.snapshots[0]


async def continues(machine: Machine, snapshot: Snapshot) -> None:
    """It is reverted, and goes on without having booted."""
    await machine.revert(snapshot)
    await machine.resume()
    await runs_on(machine)
    assert "BOOT" not in machine.console_tail


def uuid(slot: Path) -> str:
    return place(slot).uuid


def place(slot: Path) -> "machines.Place":
    one = spec(slot, Path())
    return place_of(one.identity, one.directory)


async def killed(profile: Profile, name: str) -> None:
    found = [process for process in profile.processes() if process.name() == name]
    for process in found:
        process.kill()
    await until(lambda: not any(process.is_running() and process.status() != "zombie" for process in found))


def is_locked(profile: Profile, slot: Path) -> bool:
    try:
        return "already locked" in profile.manage("modifyvm", uuid(slot), "--boot4=none", limit_s=10).stderr
    except subprocess.TimeoutExpired:  # who has it was stopped while VBoxSVC waits for him
        return False


@asynccontextmanager
async def held(profile: Profile, slot: Path) -> AsyncIterator[None]:
    """Somebody else has a session with the machine."""
    for delay_s in (0.04, 0.06, 0.08, 0.1, 0.12, 0.15) * 5:
        argv = [profile.vboxmanage, "showvminfo", uuid(slot)]
        with subprocess.Popen(argv, env=profile.environment, stdout=subprocess.DEVNULL) as other:
            await asyncio.sleep(delay_s)
            other.send_signal(signal.SIGSTOP)
            try:
                if is_locked(profile, slot):
                    yield
                    return
            finally:
                other.send_signal(signal.SIGCONT)
    pytest.fail("no moment was found at which showvminfo has its session")


class TestSomebodyElse:
    async def test_has_the_session(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
            async with held(virtualbox, slot):
                task = asyncio.create_task(machine.power_on())
                await asyncio.sleep(1)
                assert not task.done()
            await task
            await runs_on(machine)

    async def test_looks_on_all_the_time(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        script = f"while :; do {virtualbox.vboxmanage} showvminfo {uuid(slot)} >/dev/null; sleep 0.2; done"
        async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
            with subprocess.Popen(["sh", "-c", script], env=virtualbox.environment, stderr=subprocess.DEVNULL) as other:
                try:
                    await machine.power_on()
                    await machine.pause()
                    await machine.resume()
                    await runs_on(machine)
                    snapshot = await taken(machine)
                    await continues(machine, snapshot)
                    await machine.power_off()
                    await machine.keep_snapshots([])
                finally:
                    other.kill()

    async def test_unregisters_it_before_power_on(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
            virtualbox.must("unregistervm", uuid(slot))
            with pytest.raises(MachineExited):
                await machine.power_on()
        await works(hypervisor, slot, image)

    async def test_can_not_unregister_it_while_it_runs(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with running(hypervisor, slot, image) as machine:
            assert virtualbox.manage("unregistervm", uuid(slot)).returncode != 0
            await runs_on(machine)

    async def test_ends_it_and_unregisters_it(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with running(hypervisor, slot, image) as machine:
            snapshot = await taken(machine)
            virtualbox.must("controlvm", uuid(slot), "poweroff")
            await until(lambda: virtualbox.machines() == [])
            await until(lambda: virtualbox.manage("unregistervm", uuid(slot)).returncode == 0)
            with pytest.raises(MachineExited, match="somebody told it to"):
                await machine.watch()
            for verb in (machine.pause, machine.resume, lambda: taken(machine)):
                with pytest.raises(TemporaryFailure):
                    await verb()
            with pytest.raises(SnapshotUnusable):
                await machine.revert(snapshot)
            await machine.power_off()
        async with hypervisor.machine(spec(slot, image, snapshot), RunningClock()) as machine:
            await continues(machine, snapshot)
            await machine.keep_snapshots([])

    @pytest.mark.parametrize("is_on", [True, False])
    async def test_deletes_the_slot(
        self, hypervisor: VirtualBoxHypervisor, slot: Path, image: Path, *, is_on: bool
    ) -> None:
        async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
            if is_on:
                await machine.power_on()
                await taken(machine)
            shutil.rmtree(slot)
        assert not slot.exists()
        await works(hypervisor, slot, image)

    async def test_has_the_base_from_another_path(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path, tmp_path: Path
    ) -> None:
        other, child = shutil.copy(image, tmp_path / "other.vdi"), tmp_path / "child.vdi"
        virtualbox.must("createmedium", "disk", "--filename", child, "--diffparent", other)
        await works(hypervisor, slot, image)
        assert set(virtualbox.hdds()) == {str(other), str(child)}
        for file in (child, other):
            virtualbox.must("closemedium", "disk", file)


async def let_go(hypervisor: VirtualBoxHypervisor, virtualbox: Profile, spec: MachineSpec) -> bool:
    """Do what the message says where VirtualBox's service holds on to what it was at; whether that was not needed."""
    try:
        async with hypervisor.machine(spec, RunningClock()):
            return True
    except ProcessFailed as error:
        if "end the process VBoxSVC" not in str(error):
            raise
    await killed(virtualbox, "VBoxSVC")
    return False


class TestDeaths:
    async def test_of_virtualboxs_service(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with running(hypervisor, slot, image) as machine:
            snapshot = await taken(machine)
            await killed(virtualbox, "VBoxSVC")
            for verb in (machine.pause, lambda: taken(machine)):
                with pytest.raises(TemporaryFailure):
                    await verb()
            with pytest.raises(MachineExited):
                async with asyncio.timeout(LIMIT_S):
                    await machine.watch()
            await machine.power_off()
            await continues(machine, snapshot)
            await machine.keep_snapshots([])
        await works(hypervisor, slot, image)

    async def test_of_a_service_that_is_stuck(self, virtualbox: Profile) -> None:
        assert virtualbox.vms() == []
        [stuck] = [process for process in virtualbox.processes() if process.name() == "VBoxSVC"]
        stuck.suspend()
        assert await VBoxManage(virtualbox.vboxmanage)("list", "vms", limit_s=30) == ""
        assert not stuck.is_running()

    async def test_of_no_service_that_a_machine_needs(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with running(hypervisor, slot, image) as machine:
            assert not service.end_if_unneeded()
            await runs_on(machine)
        assert virtualbox.vms() == []
        assert service.end_if_unneeded()
        assert not service.end_if_unneeded()

    async def test_of_virtualboxs_service_just_before_the_end(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with running(hypervisor, slot, image):
            await killed(virtualbox, "VBoxSVC")
        await works(hypervisor, slot, image)

    async def test_of_the_machine(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with running(hypervisor, slot, image) as machine:
            snapshot = await taken(machine)
            await runs_on(machine)
            [process] = virtualbox.machines()
            process.kill()
            async with asyncio.timeout(2):
                with pytest.raises(MachineExited, match="status -9"):
                    await machine.watch()
            with pytest.raises(MachineExited):
                await machine.pause()
            await continues(machine, snapshot)
            await machine.keep_snapshots([])

    @pytest.mark.parametrize(
        "moment",
        [
            "after createvm",
            "after createmedium",
            "after storageattach",
            "while running",
            "in snapshot take",
            "after snapshot take",
            "in snapshot delete",
            "after snapshot delete",
        ],
    )
    async def test_of_an_earlier_episode(  # noqa: PLR0917
        self,
        hypervisor: VirtualBoxHypervisor,
        virtualbox: Profile,
        slot: Path,
        image: Path,
        tmp_path: Path,
        moment: str,
    ) -> None:
        slot.mkdir()
        other = tmp_path / "other slot"
        argv = [sys.executable, "-m", "tests.real.virtualbox_episode", slot, image, moment]
        (tmp_path / "its").mkdir()
        its_image = image_of(tmp_path / "its", boot_sector.boot_sector(timer_ticks=2))
        async with running(hypervisor, other, its_image) as neighbour:
            episode = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
            _, said = await episode.communicate()
            assert episode.returncode == -signal.SIGKILL, said
            snapshots = kept(slot)
            if "snapshot" in moment or moment == "while running":
                assert [one.number for one in snapshots] == [2, 1]
            neighbour_runs = await let_go(hypervisor, virtualbox, spec(slot, image, *snapshots))
            async with hypervisor.machine(spec(slot, image, *snapshots), RunningClock()) as machine:
                if moment in ("while running", "in snapshot take", "after snapshot take"):
                    await continues(machine, machine.snapshots[0])
                else:
                    with suppress(SnapshotUnusable):
                        for snapshot in machine.snapshots:
                            await continues(machine, snapshot)
                    await machine.power_off()
                    await machine.power_on()
                    await runs_on(machine)
                snapshot = await taken(machine)
                await machine.keep_snapshots([snapshot.number])
                await continues(machine, snapshot)
                await machine.keep_snapshots([])
                await machine.power_off()
                await machine.keep_snapshots([])
                assert not list(place(slot).folder.glob("Snapshots/*.sav"))
            if neighbour_runs:
                await runs_on(neighbour)
                assert neighbour.console_tail.count("BOOT") <= 1
        assert not list((slot / "machine").iterdir())

    async def test_of_an_earlier_episode_whose_slot_was_deleted(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        slot.mkdir()
        argv = [sys.executable, "-m", "tests.real.virtualbox_episode", slot, image, "while running"]
        subprocess.run(argv, check=False)
        while slot.exists():  # its machine may be about to end
            shutil.rmtree(slot, ignore_errors=True)
        await works(hypervisor, slot, image)


class TestBase:
    async def test_two_machines_share_it(
        self, hypervisor: VirtualBoxHypervisor, image: Path, tmp_path: Path, slot: Path
    ) -> None:
        before = image.stat().st_mtime_ns
        await works(hypervisor, slot, image)
        assert image.stat().st_mtime_ns == before
        content = hashlib.sha256(image.read_bytes()).digest()
        async with asyncio.TaskGroup() as both:
            for name in "ab":
                both.create_task(works(hypervisor, tmp_path / name, image))
        assert hashlib.sha256(image.read_bytes()).digest() == content
        assert image.stat().st_mtime_ns == before

    async def test_snapshots_of_two_machines_that_share_it(
        self, hypervisor: VirtualBoxHypervisor, image: Path, tmp_path: Path, slot: Path
    ) -> None:
        """VirtualBox lists the disks of both in the settings of the machine that came first to the base."""
        async with running(hypervisor, tmp_path / "neighbour", image):
            async with running(hypervisor, slot, image) as machine:
                snapshots = [await taken(machine)]
                await runs_on(machine)
                snapshots.append(await taken(machine))
            async with hypervisor.machine(spec(slot, image, *snapshots), RunningClock()) as machine:
                await continues(machine, snapshots[1])
                await continues(machine, snapshots[0])
        async with hypervisor.machine(spec(slot, image, *snapshots), RunningClock()) as machine:
            await continues(machine, snapshots[0])
            await machine.keep_snapshots([])


class TestLackOfSpace:
    async def test_for_a_snapshot(
        self, small: Path, hypervisor: VirtualBoxHypervisor, image: Path, tmp_path: Path
    ) -> None:
        slot = small / "slot"
        async with running(hypervisor, slot, image) as machine:
            good = await taken(machine)
            await runs_on(machine)  # it has written to the new layer, and needs no more room there
            filler = fill(small, but_bytes=100_000)
            with pytest.raises((SnapshotFailed, MachineExited), match="VERR_DISK_FULL") as raised:
                await taken(machine)
            assert list(machine.snapshots) == [good]
            filler.unlink()
            if raised.type is SnapshotFailed:  # else VirtualBox has left it standing
                await runs_on(machine)
            await machine.verify_snapshot(good.number)
            await continues(machine, good)
            await continues(machine, await taken(machine))
            await machine.keep_snapshots([])

    async def test_for_a_machine(self, small: Path, hypervisor: VirtualBoxHypervisor, image: Path) -> None:
        filler = fill(small, but_bytes=20_000)
        slot = small / "slot"
        with pytest.raises(TemporaryFailure, match=r"less than 8 MiB are free|VERR_DISK_FULL"):
            await works(hypervisor, slot, image)
        filler.unlink()
        await works(hypervisor, slot, image)

    async def test_for_what_a_guest_writes(self, small: Path, hypervisor: VirtualBoxHypervisor, image: Path) -> None:
        slot = small / "slot"
        async with running(hypervisor, slot, image) as machine:
            await machine.pause()
            await taken(machine)  # there is a new layer, where each write needs room
            filler = fill(small, but_bytes=300_000)
            await machine.resume()
            await until(lambda: "DISKFULL" in place(slot).log.read_text(errors="replace"))
            with pytest.raises(HostDiskFailed, match="DISKFULL"):
                await machine.watch()
        filler.unlink()
        await works(hypervisor, slot, image)


def fill(disk: Path, *, but_bytes: int) -> Path:
    filler = disk / "filler"
    room = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - but_bytes)))
    return filler


class TestSnapshots:
    async def test_revert_while_it_runs(self, hypervisor: VirtualBoxHypervisor, slot: Path, image: Path) -> None:
        async with running(hypervisor, slot, image) as machine:
            snapshot = await taken(machine)
            at = last_tick(machine)
            await until(lambda: last_tick(machine) > at + 10)
            await machine.revert(snapshot)
            await machine.resume()
            await until(lambda: last_tick(machine))
            assert int(re.findall(r"TICK (\d+)$", machine.console_tail, re.MULTILINE)[0]) <= at + 3
            await machine.keep_snapshots([])

    @pytest.mark.parametrize("size", [None, 0, 600])
    async def test_settings_that_were_not_yet_written(
        self, hypervisor: VirtualBoxHypervisor, slot: Path, image: Path, size: int | None
    ) -> None:
        async with running(hypervisor, slot, image) as machine:
            snapshot = await taken(machine)
            at = last_tick(machine)
        if size is None:
            place(slot).settings.unlink()
        else:
            os.truncate(place(slot).settings, size)
        async with hypervisor.machine(spec(slot, image, snapshot), RunningClock()) as machine:
            await machine.revert(snapshot)
            await machine.resume()
            await until(lambda: last_tick(machine) > at)
            await machine.keep_snapshots([])

    @pytest.mark.parametrize("harm", ["damaged", "cut", "missing", "settings", "no settings", "no disk"])
    async def test_spoilt(self, hypervisor: VirtualBoxHypervisor, slot: Path, image: Path, harm: str) -> None:
        async with running(hypervisor, slot, image) as machine:
            snapshot = await taken(machine)
        [state] = place(slot).folder.glob("Snapshots/*.sav")
        match harm:
            case "damaged":
                with state.open("r+b") as file:
                    file.seek(state.stat().st_size // 2)
                    file.write(b"\xff\x00\xff")
            case "cut":
                os.truncate(state, state.stat().st_size // 2)
            case "missing":
                state.unlink()
            case "settings":
                os.truncate(place(slot).settings, 600)
                place(slot).good_settings.unlink()
            case "no settings":
                place(slot).settings.unlink()
                place(slot).good_settings.write_bytes(b"")
            case "no disk":
                (place(slot).folder / "root.vdi").unlink()
        async with hypervisor.machine(spec(slot, image, snapshot), RunningClock()) as machine:
            with pytest.raises(SnapshotUnusable):
                await machine.revert(snapshot)
            await machine.keep_snapshots([])
        await works(hypervisor, slot, image)


class TestProcessorTime:
    async def test_a_part_of_it(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        """VirtualBox knows what it shall be; its interpreter does not obey."""
        capped = replace(spec(slot, image), cpu_cap_percent=20)
        async with hypervisor.machine(capped, RunningClock()) as machine:
            await machine.power_on()
            await runs_on(machine)
            snapshot = await taken(machine)
        capped = replace(capped, cpu_cap_percent=30, snapshots=[snapshot])
        async with hypervisor.machine(capped, RunningClock()) as machine:
            await continues(machine, snapshot)
            assert "cpuexecutioncap=30" in virtualbox.must("showvminfo", uuid(slot), "--machinereadable")
            await machine.keep_snapshots([])


class TestGuests:
    async def test_powers_off(self, hypervisor: VirtualBoxHypervisor, slot: Path, tmp_path: Path) -> None:
        image = image_of(tmp_path, boot_sector.boot_sector(timer_ticks=1, powers_off_at=5))
        async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
            await machine.power_on()
            with pytest.raises(GuestPoweredOff, match="powered off before"):
                await machine.watch()
            await machine.power_off()

    async def test_triple_faults(self, hypervisor: VirtualBoxHypervisor, slot: Path, tmp_path: Path) -> None:
        image = image_of(tmp_path, boot_sector.boot_sector(timer_ticks=1, crashes_at=5))
        async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
            await machine.power_on()
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(MachineExited, match="Guru Meditation"):
                    await machine.watch()

    async def test_floods_its_console(
        self, hypervisor: VirtualBoxHypervisor, slot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serial_file, "MOST_BYTES", 64 * 1024)
        image = image_of(tmp_path, boot_sector.boot_sector(timer_ticks=0, rests=False))
        async with running(hypervisor, slot, image) as machine:
            watch = asyncio.create_task(machine.watch())
            file = place(slot).console
            most = 0
            ends_at_s = time.monotonic() + LIMIT_S
            while file.stat().st_size < 5 * serial_file.MOST_BYTES:
                assert time.monotonic() < ends_at_s
                most = max(most, file.stat().st_blocks * 512)
                await asyncio.sleep(0.05)
            assert most < 4 * serial_file.MOST_BYTES
            assert machine.console_tail
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch


class TestProcess:
    async def test_stalls_at_start(
        self,
        hypervisor: VirtualBoxHypervisor,
        virtualbox: Profile,
        slot: Path,
        image: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(machines, "_START_LIMIT_S", 0.5)
        headless, hypervisor._headless = hypervisor._headless, ["sh", "-c", "exec sleep 1000"]
        async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
            with pytest.raises(MachineExited, match=r"has not started the machine within 0\.5 s"):
                await machine.power_on()
            assert psutil.Process().children(recursive=True) == []
            monkeypatch.undo()
        hypervisor._headless = headless
        for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID"):
            monkeypatch.setenv(name, virtualbox.environment[name])
        await works(hypervisor, slot, image)

    async def test_stopped(
        self, hypervisor: VirtualBoxHypervisor, virtualbox: Profile, slot: Path, image: Path
    ) -> None:
        async with running(hypervisor, slot, image) as machine:
            [process] = virtualbox.machines()
            process.suspend()
            began_s = time.monotonic()
            await machine.power_off()
            assert time.monotonic() - began_s < 5
        await works(hypervisor, slot, image)
