"""Machines of vmrun's stand-in, whose guests execute programs: never real VMware's."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.peers import vmrun_stand_in as stand_in
from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside
from vmwrapper.errors import (
    GuestError,
    GuestPoweredOff,
    GuestSilent,
    HostDiskFailed,
    JobError,
    MachineExited,
    OutputTooLarge,
    SnapshotFailed,
    SnapshotUnusable,
)
from vmwrapper.hypervisor.interface import FileKind, Leftover, Login, Machine, MachineIdentity, MachineSpec, Snapshot
from vmwrapper.hypervisor.vmware.vmrun.backend import VmrunHypervisor
from vmwrapper.hypervisor.vmware.vmrun.disks import make_disk
from vmwrapper.hypervisor.vmware.vmrun.running import running
from vmwrapper.hypervisor.vmware.vmrun.settings import SCRATCH_UUID
from vmwrapper.process import complete

pytestmark = pytest.mark.skipif(bool(stand_in.missing()), reason=str(stand_in.missing()))

LIMIT_S = 20
ROOM_BYTES = 1 << 40
MODULES = Path(os.devnull)
LOGIN = Login("root", stand_in.PASSWORD)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Of the stand-in."""
    stand_in.install(tmp_path / "vmware", "ws")
    yield tmp_path / "vmware"
    stand_in.end_all(tmp_path / "vmware")


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[MachineSpec]:
    image = tmp_path / "base image.vmdk"
    make_disk(image, 4096, serial=SCRATCH_UUID)
    slot = tmp_path / "slot 0"
    (slot / ".vmwrapper").mkdir(parents=True)
    yield MachineSpec(
        identity=MachineIdentity("test", "result", str(slot)),
        image=image,
        directory=slot / ".vmwrapper",
        memory_mib=64,
        cpus=1,
        scratch_mib=8,
        login=LOGIN,
    )
    shutil.rmtree(slot)


async def probed(home: Path) -> VmrunHypervisor:
    hypervisor = VmrunHypervisor(home / "vmrun", modules=MODULES)
    assert (await hypervisor.probe(RunningClock())).usable
    return hypervisor


@asynccontextmanager
async def created(home: Path, spec: MachineSpec, *snapshots: Snapshot) -> AsyncIterator[Machine]:
    hypervisor = await probed(home)
    async with hypervisor.machine(replace(spec, snapshots=snapshots), RunningClock()) as machine:
        yield machine


@asynccontextmanager
async def on(home: Path, spec: MachineSpec, *snapshots: Snapshot) -> AsyncIterator[Machine]:
    async with created(home, spec, *snapshots) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=LIMIT_S)
        yield machine


@contextmanager
def standing() -> Iterator[None]:
    yield


def vmx(spec: MachineSpec) -> Path:
    [file] = spec.directory.glob("*/machine.vmx")
    return file


def verbs(home: Path) -> list[str]:
    """All that vmrun was told, without its flags, since the machine was created."""
    told = [[word for word in words if word not in ("-T", "ws", "-gu", "root", "-gp", LOGIN.password)] for words in
            stand_in.calls(home)]  # fmt: skip
    return [words[0] for words in told if words and words[0] != "list"]


async def sh(machine: Machine, script: str) -> str:
    result = await machine.guest.run(["sh", "-c", script], limit_s=LIMIT_S)
    assert result.status == 0, result
    return result.stdout.decode().strip()


async def stands_still(machine: Machine) -> bool:
    before_s = machine.cpu_time_s()
    await asyncio.sleep(0.3)
    return machine.cpu_time_s() == before_s


async def goes_on(machine: Machine) -> None:
    """Wait until it has used more of the host's processor, whoever else does."""
    before_s = machine.cpu_time_s()
    async with asyncio.timeout(LIMIT_S):
        while machine.cpu_time_s() < before_s + 0.02:
            await asyncio.sleep(0.02)


async def until_ended(machine: Machine, end: Callable[[], object]) -> None:
    """As a job would hear of it: it asks the guest, too."""
    async with asyncio.timeout(LIMIT_S), beside(machine.watch()):
        end()
        while True:
            await sh(machine, "true")


class TestProbe:
    async def test_workstation(self, home: Path) -> None:
        hypervisor = VmrunHypervisor(home / "vmrun", modules=MODULES)
        found = await hypervisor.probe(RunningClock())
        assert (found.usable, found.accelerated) == (True, True)
        assert found.version == f"VMware Workstation, vmrun {stand_in.VERSION}"
        assert found.abilities.memory_snapshots
        assert found.abilities.needs_login

    async def test_player_takes_no_snapshots(self, tmp_path: Path) -> None:
        program = stand_in.install(tmp_path / "vmware", "player")
        found = await VmrunHypervisor(program, modules=MODULES).probe(RunningClock())
        assert found.usable
        assert found.version
        assert found.version.startswith("VMware Player")
        assert not found.abilities.memory_snapshots
        assert "no checkpoints" in found.reasons[0]

    async def test_no_product(self, tmp_path: Path) -> None:
        program = stand_in.install(tmp_path / "vmware")
        found = await VmrunHypervisor(program, modules=MODULES).probe(RunningClock())
        assert not found.usable
        assert "install VMware Workstation" in found.reasons[0]

    async def test_no_vmrun(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        found = await VmrunHypervisor().probe(RunningClock())
        assert (found.usable, found.version) == (False, None)
        assert await VmrunHypervisor().leftovers() == ()

    async def test_no_kernel_modules(self, home: Path, tmp_path: Path) -> None:
        found = await VmrunHypervisor(home / "vmrun", modules=tmp_path / "vmmon").probe(RunningClock())
        assert not found.usable
        assert "vmware-modconfig" in found.reasons[0]

    async def test_one_that_hangs(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vmwrapper.hypervisor.vmware.vmrun.backend._TRIAL_LIMIT_S", 2.0)
        stand_in.inject(home, "list", hang_s=30)
        began_s = time.monotonic()
        found = await VmrunHypervisor(home / "vmrun", modules=MODULES).probe(RunningClock())
        assert not found.usable
        assert "vmrun is stuck" in found.reasons[0]
        assert time.monotonic() - began_s < 3


class TestPower:
    async def test_on_and_off(self, home: Path, spec: MachineSpec) -> None:
        content = spec.image.read_bytes()
        async with on(home, spec) as machine:
            [process] = running(vmx(spec))
            assert psutil.Process(process.pid).parent() != psutil.Process()
            await goes_on(machine)
            assert machine.working_set_bytes() >= 64 << 20
            assert "Linux boots" in machine.console_tail
            before_s = machine.cpu_time_s()
            await machine.power_off()
            await machine.power_off()
            assert not process.is_alive
            assert machine.cpu_time_s() >= before_s
            assert machine.working_set_bytes() == 0
            await machine.power_on()
        assert not list(spec.directory.iterdir())
        assert spec.image.read_bytes() == content
        assert sorted(path.name for path in spec.image.parent.iterdir()) == ["base image.vmdk", "slot 0", "vmware"]

    async def test_its_words(self, home: Path, spec: MachineSpec) -> None:
        async with created(home, spec) as machine:
            await machine.power_on()
            file = str(vmx(spec))
            await machine.pause()
            await machine.pause()
            await machine.resume()
            await machine.resume()
        told = [words for words in stand_in.calls(home) if words and words[-1] != "list"]
        flags = ["-T", "ws"]
        assert told == [
            [*flags, "start", file, "nogui"],
            [*flags, "pause", file],
            [*flags, "unpause", file],
            [*flags, "stop", file, "hard"],
        ]

    async def test_it_lets_others_go_first(self, home: Path, spec: MachineSpec) -> None:
        async with created(home, replace(spec, niceness=19)) as machine:
            await machine.power_on()
            [process] = running(vmx(spec))
            assert psutil.Process(process.pid).nice() == 19
            if (group := Path(f"/proc/{process.pid}/autogroup")).exists():
                assert group.read_text().split()[-1] == "19"

    async def test_a_paused_one_uses_no_processor(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            await sh(machine, "while :; do echo x >>/tmp/grows; sleep 0.05; done >/dev/null 2>&1 &")
            await machine.pause()
            grown = (vmx(spec).parent / "guest/tmp/grows").stat().st_size
            assert await stands_still(machine)
            assert (vmx(spec).parent / "guest/tmp/grows").stat().st_size == grown
            await machine.resume()
            async with asyncio.timeout(LIMIT_S):
                while (vmx(spec).parent / "guest/tmp/grows").stat().st_size == grown:
                    await asyncio.sleep(0.02)
            await goes_on(machine)

    async def test_where_the_product_cant_pause(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            stand_in.inject(home, "pause", "Error: The operation is not supported")
            await machine.pause()
            assert await stands_still(machine)
            await machine.resume()
            await goes_on(machine)
            assert "unpause" not in verbs(home)
            stand_in.inject(home, "pause", "Error: The operation is not supported")
            await machine.pause()

    async def test_its_process_is_killed(self, home: Path, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        async with on(home, spec) as machine:
            with pytest.raises(MachineExited, match="process of the machine ended"):
                await until_ended(machine, lambda: os.kill(running(vmx(spec))[0].pid, signal.SIGKILL))
            monkeypatch.setattr("vmwrapper.hypervisor.vmware.vmrun.guest._WATCH_S", 0.1)
            with pytest.raises(MachineExited):
                await machine.pause()
            with pytest.raises(MachineExited):
                await machine.guest.run(["true"], limit_s=LIMIT_S)

    async def test_the_guest_powers_off(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            with pytest.raises(GuestPoweredOff):
                await until_ended(machine, (vmx(spec).parent / "guest/poweroff").touch)

    @pytest.mark.parametrize(
        ("said", "error"),
        [
            ("Error: Insufficient disk space", HostDiskFailed),
            ("Error: Unknown error", MachineExited),
            ("Error: The file is already in use", MachineExited),
        ],
    )
    async def test_it_does_not_start(self, home: Path, spec: MachineSpec, said: str, error: type[Exception]) -> None:
        async with created(home, spec) as machine:
            stand_in.inject(home, "start", said, status=0)
            with pytest.raises(error, match=said.removeprefix("Error: ")):
                await machine.power_on()
            await machine.power_on()  # at the next try

    async def test_a_start_that_is_no_start(
        self, home: Path, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vmwrapper.hypervisor.vmware.vmrun.machine._APPEARING_LIMIT_S", 0.5)
        async with created(home, spec) as machine:
            stand_in.inject(home, "start", status=0)
            with pytest.raises(MachineExited, match="no process runs it"):
                await machine.power_on()

    async def test_a_cancelled_start(self, home: Path, spec: MachineSpec) -> None:
        async with created(home, spec) as machine:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await machine.power_on()
            file = vmx(spec)
        assert running(file) == []

    async def test_vmrun_that_does_not_stop_it(self, home: Path, spec: MachineSpec) -> None:
        async with created(home, spec) as machine:
            await machine.power_on()
            stand_in.inject(home, "stop", "Error: Unknown error")
            file = vmx(spec)
        assert running(file) == []

    async def test_a_console_that_grows(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine, beside(machine.watch()):
            await sh(machine, "head -c 3000000 /dev/zero | tr '\\0' x >>/dev/console; echo end >>/dev/console")
            await asyncio.sleep(1.2)
            assert (vmx(spec).parent / "console").stat().st_blocks * 512 < 1 << 20


class TestGuest:
    async def test_commands_and_hostile_names(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            words = ["a b", "$(touch /tmp/x)", "'\"", "-gp", "ä☃", "", "a\nb", "|0a"]
            result = await machine.guest.run(["printf", "%s.", *words], limit_s=LIMIT_S)
            assert result.stdout.decode() == "".join(f"{word}." for word in words)
            result = await machine.guest.run(
                ["sh", "-c", "cat; echo wrong >&2; exit 7"], stdin=b"\0in", limit_s=LIMIT_S
            )
            assert (result.status, result.stdout, result.stderr) == (7, b"\0in", b"wrong\n")
            assert await machine.guest.read("/tmp/x", limit_bytes=9) is None
            with pytest.raises(GuestError, match="no command"):
                await machine.guest.run(["nix"], limit_s=LIMIT_S)

    async def test_files(self, home: Path, spec: MachineSpec, tmp_path: Path) -> None:
        (tmp_path / "large").write_bytes(os.urandom(3_000_000))
        (tmp_path / "small").write_bytes(b"small")
        (tmp_path / "small").chmod(0o755)
        names = {"l a r g e": tmp_path / "large", "-f/$x": tmp_path / "small"}
        async with on(home, spec) as machine:
            await machine.guest.put(names, "/tmp")
            outputs = {name: tmp_path / f"out{number}" for number, name in enumerate((*names, "none"))}
            kinds = await machine.guest.get("/tmp", outputs, limit_bytes=10_000_000)
            assert list(kinds.values()) == [FileKind.REGULAR, FileKind.REGULAR, FileKind.MISSING]
            assert (tmp_path / "out0").read_bytes() == (tmp_path / "large").read_bytes()
            assert (tmp_path / "out1").read_bytes() == b"small"
            assert os.access(tmp_path / "out1", os.X_OK)
            with pytest.raises(OutputTooLarge):
                await machine.guest.get("/tmp", {"l a r g e": tmp_path / "more"}, limit_bytes=2_000_000)
        assert not list(spec.directory.iterdir())

    async def test_nothing_is_left_in_the_guest_but_the_last_call(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            for _ in range(3):
                await sh(machine, "true")
            assert int(await sh(machine, "ls -A /tmp /run | grep -c vmwrapper")) <= 4

    async def test_the_password_only_in_its_command_line(
        self, home: Path, spec: MachineSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        async with on(home, spec) as machine:
            for verb in ("runProgramInGuest", "CopyFileFromHostToGuest"):
                stand_in.inject(home, verb, "Error: Unknown error", times=2)
            stand_in.inject(home, "CopyFileFromGuestToHost", "Error: Unknown error", times=100)
            with pytest.raises(GuestSilent) as raised:
                await machine.guest.run(["true"], limit_s=2)
            file = vmx(spec)
            assert LOGIN.password not in file.read_text()
        assert LOGIN.password not in str(raised.value) + caplog.text
        assert any(LOGIN.password in words for words in stand_in.calls(home))  # as the documentation says

    async def test_a_status_that_lies(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            stand_in.inject(home, "runProgramInGuest", status=0)  # and nothing was run
            assert await sh(machine, "echo once >>/tmp/times; cat /tmp/times") == "once"
            stand_in.inject(home, "CopyFileFromGuestToHost", status=0)  # and no file came
            assert await sh(machine, "echo twice >>/tmp/times; cat /tmp/times") == "once\ntwice"

    async def test_a_hung_call_is_told_again(
        self, home: Path, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with on(home, spec) as machine:
            monkeypatch.setattr("vmwrapper.hypervisor.vmware.vmrun.guest._COPY_LIMIT_S", 1.0)
            stand_in.inject(home, "CopyFileFromHostToGuest", hang_s=30)
            assert await sh(machine, "echo x") == "x"

    async def test_a_command_without_end(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            with pytest.raises(GuestSilent, match="'sleep' in the guest did not end within 1 s"):
                await machine.guest.run(["sleep", "60"], limit_s=1)
            assert await sh(machine, "echo x") == "x"

    async def test_tools_that_never_run(self, tmp_path: Path, spec: MachineSpec) -> None:
        stand_in.install(tmp_path / "vmware", "ws", boot_s=1000)
        async with created(tmp_path / "vmware", spec) as machine:
            await machine.power_on()
            with pytest.raises(GuestSilent, match="VMware Tools"):
                await machine.guest.ready(limit_s=1)

    async def test_a_wrong_password(self, home: Path, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vmwrapper.hypervisor.refusals._LIMIT_S", 0.5)
        async with created(home, replace(spec, login=Login("root", "wrong"))) as machine:
            await machine.power_on()
            with pytest.raises(JobError, match="does not let root log in"):
                await machine.guest.ready(limit_s=LIMIT_S)

    async def test_nobody_may_log_in(self, home: Path, spec: MachineSpec) -> None:
        async with created(home, replace(spec, login=None)) as machine:
            with pytest.raises(JobError, match="no <password>"):
                _ = machine.guest

    async def test_an_answer_without_end(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            spoil = "for f in /tmp/.vmwrapper-call-*.new; do head -c 30000000 /dev/zero >>$f; done"
            with pytest.raises(GuestError, match="more than it was asked for"):
                await machine.guest.run(["sh", "-c", spoil], limit_s=LIMIT_S)
            assert await sh(machine, "echo x") == "x"


class TestSnapshots:
    async def test_back_and_forth(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            await sh(machine, "touch /tmp/one")
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            await sh(machine, "touch /tmp/two")
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            await sh(machine, "touch /tmp/three")
            second, first = machine.snapshots
            for snapshot, names in ((first, "one"), (second, "one two"), (first, "one")):
                await machine.verify_snapshot(snapshot.number)
                await machine.revert(snapshot)
                assert await stands_still(machine)
                await machine.resume()
                assert await sh(machine, "cd /tmp; echo *") == names
            await machine.keep_snapshots([second.number])
            with pytest.raises(SnapshotUnusable):
                await machine.revert(first)
        assert machine.snapshots == [second]

    async def test_in_a_later_episode(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            await sh(machine, "touch /tmp/one")
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            await sh(machine, "touch /tmp/two")
            kept = list(machine.snapshots)
        async with created(home, spec, *kept) as machine:
            await machine.revert(kept[0])
            await machine.resume()
            assert await sh(machine, "cd /tmp; echo *") == "one"
            await machine.power_off()
            await machine.power_on()  # is the beginning
            await machine.guest.ready(limit_s=LIMIT_S)
            assert await sh(machine, "cd /tmp; echo *") == "*"
            assert not machine.snapshots
        assert not list(spec.directory.iterdir())

    async def test_what_is_damaged(self, home: Path, spec: MachineSpec, tmp_path: Path) -> None:
        async with on(home, spec) as machine:
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            [kept] = machine.snapshots
        shutil.copytree(spec.directory, tmp_path / "copy", ignore=shutil.ignore_patterns("guest"))
        for name in ("machine-Snapshot1.vmem", "machine-Snapshot1.vmsn", "machine.vmsd"):
            shutil.copytree(tmp_path / "copy", spec.directory, dirs_exist_ok=True)
            async with created(home, spec, kept) as machine:
                [file] = spec.directory.glob(f"*/{name}")
                if name == "machine.vmsd":
                    file.unlink()
                else:
                    content = bytearray(file.read_bytes())
                    content[len(content) // 2] ^= 0x55
                    file.write_bytes(content)
                with pytest.raises(SnapshotUnusable):
                    await machine.revert(kept)
                await machine.power_on()

    async def test_of_another_machine(self, home: Path, spec: MachineSpec, tmp_path: Path) -> None:
        async with on(home, spec) as machine:
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            [kept] = machine.snapshots
        shutil.copy(spec.image, tmp_path / "other.vmdk")
        for other in (replace(spec, memory_mib=128), replace(spec, image=tmp_path / "other.vmdk")):
            async with created(home, other, kept) as machine:
                with pytest.raises(SnapshotUnusable, match="its machine had the"):
                    await machine.revert(kept)

    async def test_what_fails_leaves_the_guest_and_the_others(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            for said in ("Error: Insufficient disk space", "Error: The operation is not supported"):
                stand_in.inject(home, "snapshot", said, status=0)
                with pytest.raises(SnapshotFailed):
                    await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            with pytest.raises(SnapshotFailed, match="more than the"):
                await machine.take_snapshot(standing, most_bytes=1)
            stand_in.inject(home, "pause", "Error: The operation is not supported")
            await machine.pause()
            with pytest.raises(SnapshotFailed, match="stands still"):
                await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            await machine.resume()
            await machine.verify_snapshot(1)
            assert await sh(machine, "echo x") == "x"
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            assert [one.number for one in machine.snapshots] == [2, 1]

    @pytest.mark.parametrize("said", [None, "Error: Unknown error"])
    async def test_of_a_paused_guest_which_stays_so(self, home: Path, spec: MachineSpec, said: str | None) -> None:
        async with on(home, spec) as machine:
            await machine.pause()
            if said:  # of the second pause, which a paused machine has no use for
                stand_in.inject(home, "pause", said)
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            assert await stands_still(machine)
            await machine.resume()
            assert await sh(machine, "echo x") == "x"
            await machine.revert(machine.snapshots[0])
            await machine.resume()
            assert await sh(machine, "echo x") == "x"

    async def test_one_that_was_cut_off_is_deleted(self, home: Path, spec: MachineSpec) -> None:
        async with on(home, spec) as machine:
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            stray = [home / "vmrun", "snapshot", vmx(spec), "vmwrapper-2"]
            assert (await complete(list(map(str, stray)), limit_s=LIMIT_S)).status == 0
            kept = list(machine.snapshots)
        async with created(home, spec, *kept) as machine:
            await machine.revert(kept[0])
            await machine.resume()
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            assert len(list(spec.directory.glob("*/*.vmsn"))) == 2


async def leftovers(hypervisor: VmrunHypervisor, spec: MachineSpec) -> list[Leftover]:
    """Those in the folder of this machine's: other tests' run at the same time."""
    return [one for one in await hypervisor.leftovers() if one.files == spec.directory]


class TestLeftovers:
    async def test_one_whose_wrapper_died(self, home: Path, spec: MachineSpec) -> None:
        hypervisor = await probed(home)
        async with created(home, spec) as machine:
            await machine.power_on()
            file = vmx(spec)
            [left] = await leftovers(hypervisor, spec)
            assert (left.slot, left.files) == (spec.directory.parent, spec.directory)
            assert "slot 0, which runs" in left.what
            await left.remove()
            await left.remove()
            assert running(file) == []
            assert file.exists()
            assert await leftovers(hypervisor, spec) == []

    async def test_the_next_episode_ends_it(self, home: Path, spec: MachineSpec) -> None:
        async with created(home, spec) as machine:
            await machine.power_on()
            [before] = running(vmx(spec))
            async with on(home, spec) as again:
                assert not before.is_alive
                assert await sh(again, "echo x") == "x"

    async def test_machines_of_others_are_not_touched(self, home: Path, spec: MachineSpec, tmp_path: Path) -> None:
        other = replace(spec, directory=tmp_path / "other", identity=replace(spec.identity, slot="/elsewhere"))
        other.directory.mkdir()
        async with created(home, other) as machine:
            await machine.power_on()
            assert await leftovers(await probed(home), other) == []
            async with created(home, spec):
                assert len(running(vmx(other))) == 1
