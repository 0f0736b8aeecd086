"""What interface.py promises of snapshots.

Each test has machines of its own: the program in them counts, in its memory and in a file on a disk.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside
from vmwrapper.errors import SnapshotFailed, SnapshotUnusable, VmwrapperError
from vmwrapper.hypervisor.interface import MIB, Hypervisor, Machine, MachineSpec, Snapshot

from .subjects import MemorySubject, Subject, host_files
from .test_hypervisor_contract import cpu_time_in, goes_on, nothing_left

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_S = 30.0
ROOM_BYTES = 1024 * MIB
WHILE_S = 0.3


@asynccontextmanager
async def created(hypervisor: Hypervisor, spec: MachineSpec, *snapshots: Snapshot) -> AsyncIterator[Machine]:
    """A machine of which an earlier one has left these snapshots."""
    async with (
        asyncio.timeout(2 * LIMIT_S),
        hypervisor.machine(replace(spec, snapshots=snapshots), RunningClock()) as machine,
    ):
        yield machine


@asynccontextmanager
async def counting(
    subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
) -> AsyncIterator[Machine]:
    """A machine whose program counts."""
    async with created(hypervisor, spec) as machine:
        await machine.power_on()
        await subject.up(machine, limit_s=LIMIT_S)
        await subject.start_counter(machine, tmp_path)
        await goes_on(subject, machine)
        yield machine


async def stands_still(machine: Machine) -> bool:
    return await cpu_time_in(machine, seconds=WHILE_S) < WHILE_S / 6


async def mark(machine: Machine, tmp_path: Path, name: str) -> None:
    """Leave a file of this name on the disk."""
    await machine.guest.put(host_files(tmp_path, {name: name.encode()}), "/tmp")


async def marks(machine: Machine, *names: str) -> list[str]:
    """Those that are there."""
    await machine.guest.ready(limit_s=LIMIT_S)
    return [name for name in names if await machine.guest.read(f"/tmp/{name}", limit_bytes=9) == name.encode()]


@contextmanager
def standing() -> Iterator[None]:
    yield


async def take(machine: Machine) -> Snapshot:
    """Take one, and let the guest run on."""
    await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
    await machine.resume()
    return machine.snapshots[0]


def numbers(machine: Machine) -> list[int]:
    return [snapshot.number for snapshot in machine.snapshots]


def files_in(spec: MachineSpec) -> set[str]:
    return {str(path.relative_to(spec.directory)) for path in spec.directory.rglob("*")}


def state_of(snapshot: Snapshot, subject: Subject) -> str:
    """The file with the guest's memory."""
    [name] = [name for name in subject.files_of(snapshot) if name.startswith(("state-", "snapshot-"))]
    return name


class TestTaking:
    @pytest.mark.guest_commands
    async def test_the_guest_stands_still_from_then_on(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            stood = []

            @contextmanager
            def stands() -> Iterator[None]:
                stood.append("begins")
                yield
                stood.append("ends")

            async with beside(machine.watch()):
                await machine.take_snapshot(stands, most_bytes=ROOM_BYTES)
                assert stood == ["begins", "ends"]
                assert await stands_still(machine)
                await machine.resume()
                await goes_on(subject, machine)
            assert numbers(machine) == [1]
            assert machine.room_for_snapshot().state_bytes > 0

    async def test_of_a_paused_guest_which_stays_so(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await machine.pause()
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            assert await stands_still(machine)
            await machine.resume()
            await goes_on(subject, machine)
            await machine.revert(machine.snapshots[0])
            await machine.resume()
            await goes_on(subject, machine)

    async def test_twice_while_the_guest_is_paused(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await machine.pause()
            await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            with suppress(SnapshotFailed):  # there is nothing new
                await machine.take_snapshot(standing, most_bytes=ROOM_BYTES)
            assert await stands_still(machine)
            assert numbers(machine) in ([1], [2, 1])

    async def test_one_that_is_too_large_changes_nothing(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await take(machine)
            before, files = list(machine.snapshots), files_in(spec)
            stood = []

            @contextmanager
            def stands() -> Iterator[None]:
                stood.append("stands")
                yield

            for _ in range(3):
                with pytest.raises(SnapshotFailed):
                    await machine.take_snapshot(stands, most_bytes=1)
                if stood:
                    await machine.resume()
                await goes_on(subject, machine)
            assert list(machine.snapshots) == before
            assert len(files_in(spec)) <= len(files) + 1
            await take(machine)
            await machine.revert(machine.snapshots[0])
            await machine.resume()
            await goes_on(subject, machine)

    async def test_an_error_of_the_block_in_which_it_stands_comes_out(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        @contextmanager
        def fails() -> Iterator[None]:
            raise ValueError("of the block")
            yield

        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            with pytest.raises(ValueError, match="of the block"):
                await machine.take_snapshot(fails, most_bytes=ROOM_BYTES)
            await machine.resume()
            await goes_on(subject, machine)
            await take(machine)

    @pytest.mark.guest_commands  # others' end within seconds
    @pytest.mark.parametrize("after_s", [0, 0.01, 0.02, 0.03, 0.05])
    async def test_a_hypervisor_that_is_killed_meanwhile_leaves_nothing_open(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path, after_s: float
    ) -> None:
        async with nothing_left(spec), counting(subject, hypervisor, spec, tmp_path) as machine:
            taking = asyncio.create_task(machine.take_snapshot(standing, most_bytes=ROOM_BYTES))
            await asyncio.sleep(after_s)
            subject.kill(machine, spec)
            await asyncio.wait([taking], timeout=LIMIT_S)
            with suppress(VmwrapperError):
                await machine.keep_snapshots([])
        taking.exception()  # is still there until now, with all that it has seen

    @pytest.mark.guest_commands
    async def test_one_that_is_cancelled_leaves_the_machine_good_for_more(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await mark(machine, tmp_path, "one")
            first = await take(machine)
            for hundredths in (0, 2, 4, 5, 6, 7, 8, 9, 10, 13, 20):
                taking = asyncio.create_task(machine.take_snapshot(standing, most_bytes=ROOM_BYTES))
                await asyncio.sleep(hundredths / 100)
                taking.cancel()
                await asyncio.wait([taking], timeout=1)
                assert taking.done()
                await machine.resume()
                await goes_on(subject, machine)
                if not taking.cancelled():
                    await machine.keep_snapshots([first.number])
                assert numbers(machine) == [first.number]
            await mark(machine, tmp_path, "two")
            await take(machine)
            second, first = machine.snapshots
            for snapshot, expected in ((first, ["one"]), (second, ["one", "two"])):
                await machine.revert(snapshot)
                await machine.resume()
                assert await marks(machine, "one", "two") == expected
                await goes_on(subject, machine)


class TestReverting:
    async def test_the_guest_goes_on_where_it_was(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            before = await subject.counted(machine)
            await take(machine)
            after = await goes_on(subject, machine)
            for _ in range(5):  # more often than after going back
                later = await goes_on(subject, machine)
            for _ in range(2):
                await machine.revert(machine.snapshots[0])
                assert await stands_still(machine)
                await machine.resume()
                await goes_on(subject, machine)
            assert before < await subject.counted(machine) < later
            await take(machine)
        for snapshots in (machine.snapshots, machine.snapshots[1:]):
            async with created(hypervisor, spec, *snapshots) as machine:
                await machine.revert(snapshots[0])
                await machine.resume()
                assert before < await goes_on(subject, machine) < later + 100
            assert list(machine.snapshots) == list(snapshots)
        assert after < later
        async with created(hypervisor, spec):
            pass
        assert files_in(spec) == set()

    @pytest.mark.guest_commands
    async def test_memory_and_files_are_as_they_were_and_the_clock_is_late(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await mark(machine, tmp_path, "one")
            before = await subject.counted(machine)
            snapshot = await take(machine)
            await mark(machine, tmp_path, "two")
            await asyncio.sleep(1)
            later = await goes_on(subject, machine)
            used_s, uptime_s = machine.cpu_time_s(), await subject.uptime_s(machine)
            await machine.revert(snapshot)
            assert machine.cpu_time_s() >= used_s
            assert await stands_still(machine)
            await machine.resume()
            await machine.guest.ready(limit_s=LIMIT_S)
            assert before <= await subject.counted(machine) < later
            assert await subject.uptime_s(machine) < uptime_s
            assert await marks(machine, "one", "two") == ["one"]
            await goes_on(subject, machine)
            await mark(machine, tmp_path, "two")
            assert await marks(machine, "two") == ["two"]

    @pytest.mark.guest_commands
    async def test_to_any_of_them_in_any_order(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            left = {}
            for name in ("a", "b"):
                await mark(machine, tmp_path, name)
                left[(await take(machine)).number] = ["a", "b"][: len(left) + 1]
            first, second = left
            await machine.revert(machine.snapshots[1])
            await machine.resume()
            await mark(machine, tmp_path, "c")
            third = (await take(machine)).number
            left[third] = ["a", "c"]
            assert numbers(machine) == sorted(left, reverse=True)
            for number in (second, third, first, first, third):
                [snapshot] = [one for one in machine.snapshots if one.number == number]
                await machine.revert(snapshot)
                await machine.resume()
                assert await marks(machine, "a", "b", "c") == left[number]
                await goes_on(subject, machine)

    @pytest.mark.guest_commands
    async def test_in_a_later_episode(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await mark(machine, tmp_path, "one")
            await take(machine)
            first = await goes_on(subject, machine)
            await take(machine)
        snapshots = list(machine.snapshots)
        kept = subject.files_of(snapshots[0]) | subject.files_of(snapshots[1])
        assert files_in(spec) == kept
        for snapshot in snapshots:
            async with created(hypervisor, spec, *snapshots) as machine:
                await machine.revert(snapshot)
                await machine.resume()
                assert await marks(machine, "one") == ["one"]
                assert (await subject.counted(machine) >= first) is (snapshot == snapshots[0])
                await goes_on(subject, machine)
            assert list(machine.snapshots) == snapshots
            assert files_in(spec) == kept
        async with created(hypervisor, spec, snapshots[0]):
            assert files_in(spec) == subject.files_of(snapshots[0])

    @pytest.mark.guest_commands
    async def test_and_further_from_episode_to_episode(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await take(machine)
        names = ["a", "b", "c", "d", "e"]
        for number, name in enumerate(names):
            async with created(hypervisor, spec, *machine.snapshots) as machine:
                await machine.revert(machine.snapshots[0])
                await machine.resume()
                assert await marks(machine, *names) == names[:number]
                await mark(machine, tmp_path, name)
                await goes_on(subject, machine)
                await take(machine)
                await machine.keep_snapshots(numbers(machine)[:2])
                kept = list(machine.snapshots)
            assert list(machine.snapshots) == kept
            assert files_in(spec) == set().union(*map(subject.files_of, kept))
        assert len(files_in(spec)) <= 10


class TestKeeping:
    async def test_others_are_deleted(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        async with nothing_left(spec), counting(subject, hypervisor, spec, tmp_path) as machine:
            for _ in range(3):
                await take(machine)
            third, second, first = machine.snapshots
            before = files_in(spec)
            await machine.keep_snapshots([second.number])
            assert numbers(machine) == [second.number]
            assert files_in(spec) < before
            for gone in (first, third):
                with pytest.raises(SnapshotUnusable):
                    await machine.revert(gone)
            await machine.revert(machine.snapshots[0])
            await machine.resume()
            await goes_on(subject, machine)
            await machine.keep_snapshots([])
            await machine.keep_snapshots([])
            assert numbers(machine) == []
            await goes_on(subject, machine)

    @pytest.mark.guest_commands
    async def test_many_of_them_leave_no_more_files_than_few(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> None:
        files = []
        async with counting(subject, hypervisor, spec, tmp_path) as machine, beside(machine.watch()):
            for number in range(10):
                await mark(machine, tmp_path, str(number))
                await take(machine)
                await machine.keep_snapshots(numbers(machine)[:2])
                files.append(len(files_in(spec)))
                await goes_on(subject, machine)
            newest, older = machine.snapshots
        assert max(files[4:]) <= max(files[:5]), files
        async with created(hypervisor, spec, newest, older) as machine:
            for snapshot, most in ((older, 9), (newest, 10)):
                await machine.revert(snapshot)
                await machine.resume()
                expected = [str(number) for number in range(most)]
                assert await marks(machine, *map(str, range(10))) == expected
                await goes_on(subject, machine)


class TestUnusable:
    @pytest.fixture
    async def left(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
    ) -> tuple[Snapshot, Path]:
        """One snapshot, which an earlier episode has left, and a copy of all its files."""
        async with counting(subject, hypervisor, spec, tmp_path) as machine:
            await mark(machine, tmp_path, "one")
            await take(machine)
        copy = tmp_path / "copy"
        shutil.copytree(spec.directory, copy)
        return machine.snapshots[0], copy

    @pytest.mark.guest_commands
    async def test_what_is_damaged(
        self,
        subject: Subject,
        hypervisor: Hypervisor,
        spec: MachineSpec,
        left: tuple[Snapshot, Path],
    ) -> None:
        snapshot, copy = left
        state = state_of(snapshot, subject)
        damages = [(name, Path.unlink) for name in subject.files_of(snapshot)]
        for name, damage in [*damages, (state, _empty), (state, _halve), (state, _spoil)]:
            shutil.copytree(copy, spec.directory, dirs_exist_ok=True)
            async with created(hypervisor, spec, snapshot) as machine:
                damage(spec.directory / name)
                with pytest.raises(SnapshotUnusable):
                    await machine.revert(snapshot)
                with pytest.raises(VmwrapperError):
                    await machine.guest.run(["true"], limit_s=0.5)
        shutil.copytree(copy, spec.directory, dirs_exist_ok=True)
        async with created(hypervisor, spec, snapshot) as machine:
            _spoil(spec.directory / state)
            with pytest.raises(SnapshotUnusable):
                await machine.revert(snapshot)
            await machine.keep_snapshots([])
            await machine.power_on()
            assert await marks(machine, "one") == []
        assert files_in(spec) == set()

    @pytest.mark.guest_commands
    async def test_what_is_empty(
        self,
        subject: Subject,
        request: pytest.FixtureRequest,
        hypervisor: Hypervisor,
        spec: MachineSpec,
        left: tuple[Snapshot, Path],
    ) -> None:
        snapshot, copy = left
        for name in subject.files_of(snapshot):
            shutil.copytree(copy, spec.directory, dirs_exist_ok=True)
            async with created(hypervisor, spec, snapshot) as machine:
                _empty(spec.directory / name)
                with pytest.raises(SnapshotUnusable):
                    await machine.revert(snapshot)

    @pytest.mark.guest_commands
    async def test_what_makes_no_sense(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        for description in ("", "{}", "[", "7", "[" * 100_000, "☃", '{"layers": {"scratch": ["../x"]}}'):
            odd = Snapshot(3, description)
            async with nothing_left(spec), created(hypervisor, spec, odd) as machine:
                with pytest.raises(SnapshotUnusable):
                    await machine.revert(odd)
        async with nothing_left(spec), created(hypervisor, spec, odd) as machine:
            with pytest.raises(SnapshotUnusable):
                await machine.revert(odd)
            await machine.keep_snapshots([])
            await machine.power_on()
            await machine.guest.ready(limit_s=LIMIT_S)

    @pytest.mark.guest_commands
    async def test_of_another_machine(
        self, subject: Subject, hypervisor: Hypervisor, spec: MachineSpec, left: tuple[Snapshot, Path]
    ) -> None:
        if isinstance(subject, MemorySubject):
            return  # its machines are all the same
        for other in (replace(spec, memory_mib=160), replace(spec, cpus=2), replace(spec, scratch_mib=0)):
            async with created(hypervisor, other, left[0]) as machine:
                with pytest.raises(SnapshotUnusable, match="its machine had"):
                    await machine.revert(left[0])

    @pytest.mark.guest_commands
    async def test_another_number(
        self,
        subject: Subject,
        request: pytest.FixtureRequest,
        hypervisor: Hypervisor,
        spec: MachineSpec,
        left: tuple[Snapshot, Path],
    ) -> None:
        for number in (0, 2, 10**300):
            odd = replace(left[0], number=number)
            async with created(hypervisor, spec, odd) as machine:
                with pytest.raises(SnapshotUnusable):
                    await machine.revert(odd)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)
