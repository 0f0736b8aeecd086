"""Whole episodes that take checkpoints and go on from them, on the hypervisor in memory, in simulated time."""

import asyncio
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmwrapper.boinc.api import Request
from vmwrapper.checkpoint import Record, read_record
from vmwrapper.errors import MachineExited, SnapshotFailed
from vmwrapper.exit_status import ExitStatus
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE
from vmwrapper.hypervisor.interface import MIB, Room, Standing
from vmwrapper.hypervisor.memory.backend import MemoryHypervisor, MemoryMachine, Power
from vmwrapper.hypervisor.memory.guest import MemoryGuest
from vmwrapper.limits import FULL_DISK
from vmwrapper.turns import turn

from . import simulated_time
from .episodes import Client, WantsAt, copy, done_s, episode, in_memory, listening, make_slot, run, task, wanting, works

INTERVAL_S = 100
NEEDED_MIB = 64
"""What a checkpoint may need of the disk, with a guest of 64 MiB."""


PLANS = st.dictionaries(
    st.integers(0, 400).map(lambda quarters: quarters / 4),
    st.sampled_from([Request.SUSPEND, Request.RESUME]),
    max_size=9,
).map(lambda plan: sorted(plan.items(), key=lambda wish: wish[0]))


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    slot = tmp_path / "slot"
    slot.mkdir()
    return make_slot(slot)


def job(*lines: str, interval_s: float = INTERVAL_S, program: str = "program") -> str:
    interval = f"<checkpoint_interval>{interval_s}</checkpoint_interval>"
    return task("<data>in.dat</data>", interval, "<memory_mb>64</memory_mb>", *lines, program=program)


JOB = job("<output>out.dat</output>")


def client_of(slot: Path, *plan: tuple[float, Request], period_s: float = 0.0, disk_bound: float = 0.0) -> Client:
    """Of one more episode in the slot, under a client, which wants something at these seconds."""
    client = Client(slot)
    client.restarts = True
    client.plan = [*plan]
    client.init_data = replace(client.init_data, checkpoint_period_s=period_s, rsc_disk_bound_bytes=disk_bound)
    return client


def told(client: Client) -> list[tuple[int, float]]:
    """When the client was told of a checkpoint within its task, in running seconds; and as of which CPU time."""
    seen = [status.checkpoint_cpu_time_s for status in client.statuses]
    changes = [(second, now) for second, (before, now) in enumerate(pairwise(seen), start=1) if before != now]
    return changes[:-1] if client.error is None else changes


def snapshots_in(slot: Path) -> list[str]:
    return sorted(path.name for path in (slot / MACHINE_FOLDER).glob("snapshot-*"))


def record_in(slot: Path) -> Record:
    record = read_record(slot)
    assert record
    return record


def damage(slot: Path, *, newest: int) -> None:
    """Damage so many of the newest snapshots."""
    for checkpoint in record_in(slot).checkpoints[:newest]:
        (slot / MACHINE_FOLDER / f"snapshot-{checkpoint.snapshot.number}").write_text("{}")


@dataclass
class Watched:
    """A program that works, and lets a test look at its slot, and at its machine in each snapshot."""

    seconds: int
    each_second: Callable[[MemoryGuest], None] = lambda _: None
    in_snapshot: Callable[[MemoryMachine], None] = lambda _: None
    """Called when the guest has just begun to stand still for one; may raise what keeps it from being taken."""
    began_at_s: list[int] = field(default_factory=list)
    """How much was done whenever it was started, or went on."""

    async def __call__(self, guest: MemoryGuest) -> int:
        self.began_at_s.append(done_s(guest))
        self._watch(guest.machine)
        while (done := done_s(guest)) < self.seconds:
            await guest.compute(1)
            guest.write("/tmp/done", str(done + 1).encode())
            self.each_second(guest)
        return await copy(guest)

    def _watch(self, machine: MemoryMachine) -> None:
        take = machine.take_snapshot

        async def watched_take(standing: Standing, *, most_bytes: int) -> None:
            @contextmanager
            def watched() -> Iterator[None]:
                with standing():
                    self.in_snapshot(machine)
                    yield

            await take(watched, most_bytes=most_bytes)

        machine.take_snapshot = watched_take  # type: ignore[method-assign]


class TestWhenDue:
    @pytest.mark.parametrize(("interval_s", "period_s"), [(300, 0), (300, 100), (100, 300)])
    def test_as_seldom_as_job_and_client_want(self, slot: Path, interval_s: float, period_s: float) -> None:
        client = client_of(slot, period_s=period_s)
        assert run(client, in_memory(works(2000)), job(interval_s=interval_s)) == 0
        checkpoints = told(client)
        assert 149 <= checkpoints[0][0] <= 301
        assert [later - earlier for (earlier, _), (later, _) in pairwise(checkpoints)] == pytest.approx(
            [300] * (len(checkpoints) - 1), abs=1
        )
        assert len(checkpoints) in (6, 7)
        for second, cpu_time_s in checkpoints:
            assert cpu_time_s == pytest.approx(second, abs=1.5)

    def test_not_all_jobs_at_the_same_time(self, slot: Path) -> None:
        firsts = set()
        for _ in range(5):
            client = client_of(slot)
            assert run(client, in_memory(works(300)), JOB) == 0
            firsts.add(told(client)[0][0])
            (slot / RECORD_FILE).unlink()
        assert len(firsts) > 1

    def test_two_are_kept_and_the_record_names_them(self, slot: Path) -> None:
        def look(guest: MemoryGuest) -> None:
            kept = snapshots_in(slot)
            assert len(kept) <= 2
            record = read_record(slot)
            numbers = [checkpoint.snapshot.number for checkpoint in record.checkpoints] if record else []
            assert set(kept) == {f"snapshot-{number}" for number in numbers}
            assert numbers == sorted(numbers, reverse=True)
            most.append(len(kept))

        most: list[int] = []
        assert run(client_of(slot), in_memory(Watched(990, look)), JOB) == 0
        assert set(most) == {0, 1, 2}

    def test_suspended_time_does_not_count(self, slot: Path) -> None:
        client = client_of(slot, (10, Request.SUSPEND), (5000, Request.RESUME))
        assert run(client, in_memory(works(250)), JOB) == 0
        assert len(told(client)) in (2, 3)

    def test_none_where_the_job_wants_none(self, slot: Path) -> None:
        client = client_of(slot, (500, Request.QUIT))
        without = job("<snapshots>0</snapshots>")
        assert run(client, in_memory(works(1000)), without) == ExitStatus.INTERRUPTED
        assert len(told(client)) == 1
        assert len(record_in(slot).checkpoints) == 1
        again = client_of(slot)
        assert run(again, in_memory(works(1000)), without) == 0
        assert again.took_s == pytest.approx(500, abs=2)

    def test_another_hypervisor_begins_anew(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        client = client_of(slot, (500, Request.QUIT))
        assert run(client, in_memory(works(1000)), JOB) == ExitStatus.INTERRUPTED
        other = in_memory(works(1000))
        other.name = "other"
        again = client_of(slot)
        assert run(again, other, JOB) == 0
        assert again.took_s == pytest.approx(1000, abs=5)
        assert "The task begins anew: its checkpoints are not other's" in caplog.text

    def test_expensive_ones_are_taken_more_seldom(self, slot: Path) -> None:
        hypervisor = MemoryHypervisor({"program": works(5000)}, answer_s=5)
        client = client_of(slot)
        assert run(client, hypervisor, JOB) == 0
        seconds = [second for second, _ in told(client)]
        assert [later - earlier for earlier, later in pairwise(seconds)] == pytest.approx(
            [250] * len(seconds[1:]), abs=2
        )
        stood_s = client.took_s - hypervisor.machines[0].cpu_time_s()
        assert len(seconds) * 5 == pytest.approx(stood_s, abs=1)
        assert stood_s <= 0.02 * client.took_s + 5

    def test_two_jobs_of_a_project_take_turns(self, tmp_path: Path) -> None:
        stood_s: list[tuple[float, float]] = []

        def stands(machine: MemoryMachine) -> None:
            now_s = asyncio.get_running_loop().time()
            stood_s.append((now_s, now_s + machine.hypervisor.answer_s))

        hypervisors = [in_memory(Watched(400, in_snapshot=stands), answer_s=2) for _ in range(2)]

        async def story() -> None:
            async with asyncio.TaskGroup() as jobs, turn(tmp_path):
                for number, hypervisor in enumerate(hypervisors):
                    slot = tmp_path / str(number)
                    slot.mkdir()
                    client = client_of(make_slot(slot))
                    client.project_dir = tmp_path
                    jobs.create_task(episode(client, hypervisor, JOB))
                await asyncio.sleep(150)  # both are due meanwhile
                assert stood_s == []
                for hypervisor in hypervisors:
                    assert hypervisor.machines[0].power is Power.RUNNING

        simulated_time.run(story())
        assert len(stood_s) >= 4
        assert stood_s[1][0] < 160
        for (_, earlier_ends_s), (later_begins_s, _) in pairwise(sorted(stood_s)):
            assert earlier_ends_s <= later_begins_s


class TestTheLastOne:
    def test_a_quit_loses_nothing(self, slot: Path) -> None:
        client = client_of(slot, (255.5, Request.QUIT))
        assert run(client, in_memory(works(1000)), JOB) == ExitStatus.INTERRUPTED
        assert client.took_s == pytest.approx(255.5)
        newest, older = record_in(slot).checkpoints
        assert newest.reached.cpu_time_s == pytest.approx(255.5, abs=1)
        assert newest.reached.program_ran_s == newest.reached.elapsed_s == pytest.approx(255.5, abs=0.5)
        assert older.reached.elapsed_s < 255

    def test_a_quit_while_suspended_loses_nothing(self, slot: Path) -> None:
        client = client_of(slot, (30, Request.SUSPEND), (5000, Request.QUIT))
        hypervisor = in_memory(works(1000), answer_s=1)
        assert run(client, hypervisor, JOB) == ExitStatus.INTERRUPTED
        assert client.took_s == pytest.approx(5001)
        assert hypervisor.machines[0].cpu_time_s() == pytest.approx(30)
        again = client_of(slot)
        assert run(again, in_memory(works(1000)), JOB) == 0
        assert again.took_s == pytest.approx(970, abs=10)

    @pytest.mark.parametrize("at_s", [5, 15])
    def test_a_quit_before_the_program_runs_is_obeyed_at_once(self, slot: Path, at_s: float) -> None:
        client = client_of(slot, (at_s, Request.QUIT))
        hypervisor = MemoryHypervisor({"program": works(100)}, boot_s=10, put_s=10, answer_s=1)
        assert run(client, hypervisor, JOB) == ExitStatus.INTERRUPTED
        assert client.took_s == at_s
        assert snapshots_in(slot) == []

    def test_a_quit_in_the_middle_of_one_waits_for_that_one_only(self, slot: Path) -> None:
        client = client_of(slot)
        program = Watched(1000, in_snapshot=lambda _: client.want(Request.QUIT))
        hypervisor = in_memory(program, answer_s=4)
        assert run(client, hypervisor, JOB) == ExitStatus.INTERRUPTED
        assert len(record_in(slot).checkpoints) == 1
        assert client.took_s == pytest.approx(hypervisor.machines[0].cpu_time_s() + 4)

    def test_an_abort_meanwhile_is_obeyed_at_once(self, slot: Path) -> None:
        client = client_of(slot, (250, Request.QUIT), (252, Request.ABORT))
        assert run(client, in_memory(works(1000), answer_s=4), JOB) == ExitStatus.ABORTED_BY_CLIENT
        assert client.took_s == 252

    def test_a_second_quit_meanwhile_is_obeyed_at_once(self, slot: Path) -> None:
        client = client_of(slot, (250, Request.QUIT), (252, Request.QUIT))
        assert run(client, in_memory(works(1000), answer_s=4), JOB) == ExitStatus.INTERRUPTED
        assert client.took_s == 252

    def test_one_that_takes_too_long_is_given_up(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        def slow_down(machine: MemoryMachine) -> None:
            machine.hypervisor.answer_s = 1000 if machine.cpu_time_s() > 240 else 0

        client = client_of(slot, (250, Request.QUIT))
        assert run(client, in_memory(Watched(1000, in_snapshot=slow_down)), JOB) == ExitStatus.INTERRUPTED
        assert client.took_s == 275
        assert "No checkpoint: it was not done within 25 s" in caplog.text
        assert record_in(slot).checkpoints[0].reached.elapsed_s < 250

    def test_after_the_program_none_is_taken_any_more(self, slot: Path) -> None:
        client = client_of(slot)
        with wanting(client, "Copying out", Request.QUIT) as handler:
            assert run(client, in_memory(works(150), answer_s=2), JOB) == ExitStatus.INTERRUPTED
        assert client.took_s == handler.at_s
        before_s = record_in(slot).checkpoints[0].reached.program_ran_s
        again = client_of(slot)
        assert run(again, in_memory(works(150)), JOB) == 0
        assert again.took_s == pytest.approx(150 - before_s, abs=5)


class TestSuspending:
    """A guest that is suspended stays so, whatever a checkpoint does to it."""

    @pytest.mark.parametrize("after_s", [0, 1, 2, 2.001])
    def test_in_the_middle_of_one(self, slot: Path, after_s: float) -> None:
        client = client_of(slot)
        powers = []

        def suspend(machine: MemoryMachine) -> None:
            if client.plan:
                return
            loop = asyncio.get_running_loop()
            client.plan = [(loop.time() + after_s, Request.SUSPEND)]
            loop.call_later(after_s, client.want, Request.SUSPEND)
            for seconds in range(3, 3600):
                loop.call_later(seconds, lambda: powers.append(machine.power))
            loop.call_later(3600, client.want, Request.RESUME)

        hypervisor = in_memory(Watched(150, in_snapshot=suspend), answer_s=2)
        assert run(client, hypervisor, JOB) == 0
        assert set(powers) == {Power.PAUSED}
        checkpoints = len(told(client))
        assert checkpoints in (1, 2)  # a second one, where the first comes early
        assert client.took_s == pytest.approx(3600 + 150 + 11 + 2 * checkpoints, abs=3)  # 11 s are for other answers

    def test_and_resumed_again_in_the_middle_of_one(self, slot: Path) -> None:
        client = client_of(slot)
        powers = []

        def suspend_and_resume(machine: MemoryMachine) -> None:
            loop = asyncio.get_running_loop()
            for after_s, request in enumerate([Request.SUSPEND, Request.RESUME] * 2):
                loop.call_later(after_s, client.want, request)
            loop.call_later(9.9, lambda: powers.append(machine.power))
            loop.call_later(10.5, lambda: powers.append(machine.power))

        hypervisor = in_memory(Watched(150, in_snapshot=suspend_and_resume), answer_s=10)
        assert run(client, hypervisor, JOB) == 0
        assert powers == [Power.PAUSED, Power.RUNNING]

    @settings(max_examples=30)
    @given(PLANS)
    def test_whatever_is_wanted_when(self, plan: list[tuple[float, Request]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            client = client_of(make_slot(Path(folder)), *plan, (101, Request.RESUME))
            hypervisor = in_memory(Watched(30, in_snapshot=lambda _: stood_s.append(3)), answer_s=3)
            stood_s: list[int] = []
            assert run(client, hypervisor, job(interval_s=5)) == 0
        running_s = hypervisor.machines[0].cpu_time_s()
        wanted_s = client.took_s - suspended_s(client)
        assert wanted_s - sum(stood_s) - 0.001 <= running_s <= wanted_s + 0.001


def suspended_s(client: Client) -> float:
    """How long it wanted to have its job suspended before that ended."""
    total_s, since_s = 0.0, None
    for after_s, request in client.plan:
        at_s = min(after_s, client.took_s)
        if request is Request.SUSPEND and since_s is None:
            since_s = at_s
        elif request is Request.RESUME and since_s is not None:
            total_s += at_s - since_s
            since_s = None
    return total_s


class TestGoingOn:
    """In another episode, from the last checkpoint of the one before."""

    def test_the_program_is_neither_copied_nor_started_again(
        self, slot: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        program = Watched(1000)
        assert run(client_of(slot, (250.5, Request.QUIT)), in_memory(program), JOB) == ExitStatus.INTERRUPTED
        caplog.clear()
        again = client_of(slot)
        assert run(again, MemoryHypervisor({"program": program}, boot_s=5000, put_s=5000), JOB) == 0
        assert program.began_at_s == [0, 250]
        assert again.took_s == pytest.approx(750, abs=1.5)
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert "Going on with the program: program" in caplog.text
        assert "Copying in" not in caplog.text
        assert "Running the program" not in caplog.text
        assert not (slot / MACHINE_FOLDER).exists()

    def test_in_many_short_episodes(self, slot: Path) -> None:
        program = Watched(300)
        for number in range(9):
            client = client_of(slot, (30.5, Request.QUIT))
            assert run(client, in_memory(program), JOB) == ExitStatus.INTERRUPTED
            assert len(snapshots_in(slot)) == min(number + 1, 2)
        last = client_of(slot)
        assert run(last, in_memory(program), JOB) == 0
        assert program.began_at_s == [30 * number for number in range(10)]
        assert last.statuses[-1].cpu_time_s == pytest.approx(9 * 30.5 + 30, abs=2)

    @pytest.mark.parametrize("basis", ["host", "guest", "elapsed"])
    def test_the_figures(self, slot: Path, basis: str) -> None:
        def say(guest: MemoryGuest) -> None:
            done = done_s(guest)
            guest.write("/tmp/fraction", str(done / 1000).encode())
            guest.write("/tmp/creditreport", f"{done}e9 {done}e6\n".encode())
            guest.write("/proc/stat", f"cpu  {50 * done} 0 0 4 5 0 0 0 0 0\n".encode())

        said = job(
            f"<cpu_time_basis>{basis}</cpu_time_basis>",
            "<fraction_done_filename>fraction</fraction_done_filename>",
            "<partial_credit>1</partial_credit>",
        )
        speed = 0.5 if basis == "guest" else 1
        first = client_of(slot, (250, Request.QUIT))
        assert run(first, in_memory(Watched(1000, say)), said) == ExitStatus.INTERRUPTED
        again = client_of(slot)
        assert run(again, in_memory(Watched(1000, say)), said, trickle_period_s=100) == 0
        before, after, later = first.statuses[-1], again.statuses[0], again.statuses[100]
        assert before.fraction_done == after.fraction_done == pytest.approx(0.25, abs=0.005)
        assert before.operations == after.operations
        assert after.operations
        assert after.operations.floating_point == 1000 * after.operations.integer == pytest.approx(250e9, rel=0.02)
        assert after.cpu_time_s == after.checkpoint_cpu_time_s == pytest.approx(250 * speed, abs=3)
        assert after.cpu_time_s >= before.cpu_time_s
        assert later.cpu_time_s == pytest.approx(350 * speed, abs=3)
        assert later.fraction_done == pytest.approx(0.35, abs=0.005)
        assert later.operations
        assert later.operations.floating_point == pytest.approx(350e9, rel=0.02)
        assert again.statuses[-1].cpu_time_s == pytest.approx(1000 * speed, abs=3)
        assert "<runtime>300.0" in again.trickles[0][1]  # the first time since the checkpoint
        assert record_in(slot).elapsed_s == pytest.approx(1000, abs=3)

    def test_an_estimated_fraction(self, slot: Path) -> None:
        assert run(client_of(slot, (360, Request.QUIT)), in_memory(works(1000)), JOB) == ExitStatus.INTERRUPTED
        again = client_of(slot)
        assert run(again, in_memory(works(1000)), JOB) == 0
        assert again.statuses[0].fraction_done == pytest.approx(0.1, abs=0.001)
        assert again.statuses[360].fraction_done == pytest.approx(0.2, abs=0.001)

    def test_the_time_limit(self, slot: Path) -> None:
        limited = job("<time_limit>500</time_limit>")
        assert run(client_of(slot, (450, Request.QUIT)), in_memory(works(1000)), limited) == ExitStatus.INTERRUPTED
        again = client_of(slot)
        assert run(again, in_memory(works(1000)), limited) == ExitStatus.TIME_LIMIT_EXCEEDED
        assert again.took_s == pytest.approx(50, abs=1)

    def test_suspended_at_once(self, slot: Path) -> None:
        program = Watched(100)
        assert run(client_of(slot, (50.5, Request.QUIT)), in_memory(program), JOB) == ExitStatus.INTERRUPTED
        again = client_of(slot, (0, Request.SUSPEND), (3600, Request.RESUME))
        hypervisor = in_memory(program, answer_s=1)
        assert run(again, hypervisor, JOB) == 0
        assert hypervisor.machines[0].cpu_time_s() < 60
        assert again.took_s == pytest.approx(3650, abs=10)

    def test_after_a_temporary_failure(self, slot: Path) -> None:
        def fail_once(guest: MemoryGuest) -> None:
            if len(program.began_at_s) == 1 and done_s(guest) == 250:
                guest.machine.end(MachineExited("killed"))

        program = Watched(1000, fail_once)
        client = client_of(slot)
        assert run(client, in_memory(program), JOB) == ExitStatus.TEMPORARY
        assert len(snapshots_in(slot)) == 2
        assert record_in(slot).failed_tries == 1
        again = client_of(slot, (300, Request.QUIT))
        assert run(again, in_memory(program), JOB) == ExitStatus.INTERRUPTED
        assert 150 <= program.began_at_s[1] <= 250
        assert record_in(slot).failed_tries == 0  # since it got further

    def test_a_guest_that_does_not_answer_any_more(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        program = Watched(1000)
        assert run(client_of(slot, (250, Request.QUIT)), in_memory(program), JOB) == ExitStatus.INTERRUPTED
        again = client_of(slot)
        hypervisor = in_memory(program, answer_s=math.inf)
        with listening(WantsAt("The task begins anew", lambda: setattr(hypervisor, "answer_s", 0.0))):
            assert run(again, hypervisor, JOB) == 0
        assert caplog.text.count("can't be used: no answer from the guest within 300 s") == 2
        assert again.took_s == pytest.approx(2 * 300 + 1000, abs=2)


class TestDamage:
    def interrupted(self, slot: Path, *jobs: str) -> None:
        """Two generations: one as of the periodic one of second 150 to 200, and one of second 205."""
        client = client_of(slot, (205.5, Request.QUIT))
        assert run(client, in_memory(works(1000)), *(jobs or [JOB])) == ExitStatus.INTERRUPTED
        assert len(snapshots_in(slot)) == 2

    def test_the_older_one_is_used(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.interrupted(slot)
        newest, older = record_in(slot).checkpoints
        damage(slot, newest=1)
        caplog.clear()
        again = client_of(slot)
        program = Watched(1000)
        assert run(again, in_memory(program), JOB) == 0
        assert program.began_at_s == [pytest.approx(older.reached.elapsed_s, abs=1.5)]
        assert f"Checkpoint {newest.snapshot.number} can't be used: the snapshot is damaged" in caplog.text
        assert "begins anew" not in caplog.text
        assert again.statuses[-1].cpu_time_s == pytest.approx(1000, abs=60)
        times = [status.cpu_time_s for status in again.statuses]
        assert times == sorted(times)
        assert record_in(slot).elapsed_s == pytest.approx(1000, abs=3)

    @pytest.mark.parametrize("how", ["damaged", "missing", "folder is missing"])
    def test_without_any_the_task_begins_anew(self, slot: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
        (slot / "second").write_bytes(b"")
        jobs = [job("<output>out.dat</output>"), job(program="second")]
        hypervisor = MemoryHypervisor({"program": works(100), "second": works(1000)})
        assert run(client_of(slot, (305, Request.QUIT)), hypervisor, *jobs) == ExitStatus.INTERRUPTED
        match how:
            case "damaged":
                damage(slot, newest=2)
            case "missing":
                for name in snapshots_in(slot):
                    (slot / MACHINE_FOLDER / name).unlink()
            case _:
                shutil.rmtree(slot / MACHINE_FOLDER)
        caplog.clear()
        program, second = Watched(100), Watched(1000)
        again = client_of(slot)
        assert run(again, MemoryHypervisor({"program": program, "second": second}), *jobs) == 0
        assert (program.began_at_s, second.began_at_s) == ([], [0])
        assert again.took_s == pytest.approx(1000, abs=2)
        assert caplog.text.count("The task begins anew") == 1
        assert caplog.text.count("can't be used") == 2
        assert record_in(slot).elapsed_s == pytest.approx(1100, abs=3)

    def test_what_is_damaged_is_deleted_when_the_task_begins_anew(self, slot: Path) -> None:
        def look(guest: MemoryGuest) -> None:
            left.append(snapshots_in(slot))

        left: list[list[str]] = []
        self.interrupted(slot)
        damage(slot, newest=2)
        assert run(client_of(slot, (20, Request.QUIT)), in_memory(Watched(1000, look)), JOB) == ExitStatus.INTERRUPTED
        assert left[0] == []
        assert len(record_in(slot).checkpoints) == 1

    def test_a_damaged_one_is_not_kept_instead_of_a_good_one(self, slot: Path) -> None:
        self.interrupted(slot)
        damage(slot, newest=1)
        older = record_in(slot).checkpoints[1]
        assert run(client_of(slot, (20, Request.QUIT)), in_memory(works(1000)), JOB) == ExitStatus.INTERRUPTED
        damage(slot, newest=1)
        program = Watched(1000)
        assert run(client_of(slot), in_memory(program), JOB) == 0
        assert program.began_at_s == [pytest.approx(older.reached.elapsed_s, abs=1.5)]

    def test_another_job_does_not_go_on_from_it(self, slot: Path) -> None:
        self.interrupted(slot)
        (slot / "in.dat").write_bytes(b"another")
        program = Watched(1000)
        assert run(client_of(slot), in_memory(program), JOB) == 0
        assert program.began_at_s == [0]
        assert (slot / "out.dat").read_bytes() == b"ANOTHER"


class TestWithoutMemorySnapshots:
    def test_the_task_begins_anew(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        program = Watched(1000)
        for _ in range(2):
            hypervisor = in_memory(program)
            hypervisor.memory_snapshots = False
            caplog.clear()
            client = client_of(slot, (550, Request.QUIT))
            assert run(client, hypervisor, JOB) == ExitStatus.INTERRUPTED
            assert client.took_s == 550
            assert told(client) == []
            assert not (slot / MACHINE_FOLDER).exists()
            assert caplog.text.count("saves no guest's memory: a restart will begin this task anew") == 1
        assert program.began_at_s == [0, 0]

    def test_checkpoints_of_another_hypervisor_are_not_used(self, slot: Path) -> None:
        program = Watched(1000)
        assert run(client_of(slot, (250, Request.QUIT)), in_memory(program), JOB) == ExitStatus.INTERRUPTED
        hypervisor = in_memory(program)
        hypervisor.memory_snapshots = False
        assert run(client_of(slot), hypervisor, JOB) == 0
        assert program.began_at_s == [0, 0]


class TestRoom:
    def test_too_small_a_bound_is_named_once_with_the_one_that_is_needed(
        self, slot: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = client_of(slot, disk_bound=50 * MIB)
        assert run(client, in_memory(works(1000)), JOB) == 0
        assert told(client) == []
        [line] = [record.getMessage() for record in caplog.records if "No checkpoint" in record.getMessage()]
        found = re.search(r"needs? (\d+) MiB .* allows 50 MiB: raise rsc_disk_bound to (\d+) or more", line)
        assert found
        assert int(found[1]) == NEEDED_MIB
        for name in (RECORD_FILE, "out.dat"):
            (slot / name).unlink()
        enough = client_of(slot, disk_bound=int(found[2]))
        assert run(enough, in_memory(works(190)), JOB) == 0
        assert told(enough)

    def test_a_full_disk(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        def fill(guest: MemoryGuest) -> None:
            room = Room(state_bytes=NEEDED_MIB * MIB, disks_bytes=1 << 60)
            guest.machine.room_for_snapshot = lambda: room  # type: ignore[method-assign]

        client = client_of(slot)
        assert run(client, in_memory(Watched(1000, fill)), JOB) == 0
        assert client.took_s == pytest.approx(1000, abs=2)
        assert told(client) == []
        assert "No checkpoint: it may need 1099511627840 MiB, and the disk has" in caplog.text

    @pytest.mark.parametrize("disk_bound", [0, 50 * MIB])
    def test_what_is_in_the_way_is_said_once_also_where_the_disks_grow(
        self, slot: Path, caplog: pytest.LogCaptureFixture, disk_bound: float
    ) -> None:
        def fill(guest: MemoryGuest) -> None:
            disks_bytes = (0 if disk_bound else 1 << 60) + done_s(guest) * MIB
            room = Room(state_bytes=NEEDED_MIB * MIB, disks_bytes=disks_bytes)
            guest.machine.room_for_snapshot = lambda: room  # type: ignore[method-assign]

        assert run(client_of(slot, disk_bound=disk_bound), in_memory(Watched(1000, fill)), JOB) == 0
        assert caplog.text.count("No checkpoint: it may need") == 1

    def test_the_older_one_is_dropped_where_that_makes_room(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        def fill(guest: MemoryGuest) -> None:
            guest.write("/tmp/large", bytes(3 * MIB))  # 4 MiB in a snapshot

        beside: list[int] = []
        program = Watched(1000, fill, in_snapshot=lambda _: beside.append(len(snapshots_in(slot))))
        client = client_of(slot, disk_bound=(NEEDED_MIB + 6) * MIB / FULL_DISK)
        assert run(client, in_memory(program), JOB) == 0
        assert beside[:4] == [0, 1, 1, 1]
        assert len(told(client)) == len(beside) >= 9
        assert "No checkpoint" not in caplog.text

    def test_the_older_one_is_not_dropped_where_that_makes_not_enough(self, slot: Path) -> None:
        program = Watched(1000)
        assert run(client_of(slot, (250, Request.QUIT)), in_memory(program), JOB) == ExitStatus.INTERRUPTED
        again = client_of(slot, (300, Request.QUIT), disk_bound=1 * MIB)
        assert run(again, in_memory(program), JOB) == ExitStatus.INTERRUPTED
        assert record_in(slot).checkpoints


class TestFailing:
    """No checkpoint is no reason to end a job."""

    def test_it_is_said_once_and_the_job_runs_on(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        def fail(machine: MemoryMachine) -> None:
            tries.append(machine.cpu_time_s())
            if 300 < machine.cpu_time_s() < 600 or machine.cpu_time_s() > 800:
                raise SnapshotFailed("no way")

        tries: list[float] = []
        client = client_of(slot)
        assert run(client, in_memory(Watched(1000, in_snapshot=fail)), JOB) == 0
        assert client.took_s == pytest.approx(1000, abs=2)
        assert len(tries) >= 9
        assert len(told(client)) in (4, 5)
        assert caplog.text.count("No checkpoint: no way") == 2  # after one that was taken it is said again

    def test_the_earlier_ones_stay_where_the_last_one_fails(self, slot: Path) -> None:
        def fail(machine: MemoryMachine) -> None:
            if machine.cpu_time_s() >= 250:
                raise SnapshotFailed("no way")

        program = Watched(1000, in_snapshot=fail)
        client = client_of(slot, (250, Request.QUIT))
        assert run(client, in_memory(program), JOB) == ExitStatus.INTERRUPTED
        assert client.took_s == 250
        assert run(client_of(slot), in_memory(Watched(1000)), JOB) == 0

    def test_one_that_is_larger_than_the_room(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        def fill(guest: MemoryGuest) -> None:
            guest.write("/tmp/large", bytes(100 * MIB if done_s(guest) < 120 else 0))

        client = client_of(slot, disk_bound=(NEEDED_MIB + 1) * MIB / FULL_DISK)
        assert run(client, in_memory(Watched(250, fill)), JOB) == 0
        assert "No checkpoint: the snapshot is too large" in caplog.text
        assert told(client)


class TestTheRecord:
    """Where it can't be written, what it names is there as before."""

    def watched(self, slot: Path, *, fails_s: tuple[int, int], end_s: int = 10_000) -> Watched:
        """Its machine ends by itself at last; from one second to another before that the record can't be written."""
        hindrance = slot / f".vmwrapper-{RECORD_FILE}.new"

        def look(guest: MemoryGuest) -> None:
            begins_s, ends_s = fails_s
            done = done_s(guest)
            if done == begins_s:
                hindrance.mkdir()
            elif done == ends_s:
                hindrance.rmdir()
            if done == end_s:
                guest.machine.end(MachineExited("killed"))
            seen.append(set(snapshots_in(slot)))
            if begins_s <= done < ends_s:
                named = {f"snapshot-{one.snapshot.number}" for one in record_in(slot).checkpoints}
                assert len(named) == 2
                assert named <= seen[-1]

        seen: list[set[str]] = []
        return Watched(5000, look)

    def test_the_earlier_ones_are_still_good(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        watched = self.watched(slot, fails_s=(210, 390), end_s=390)
        assert run(client_of(slot), in_memory(watched), JOB, leaves_more=True) == ExitStatus.TEMPORARY
        assert caplog.text.count("No checkpoint: can't write") == 1
        newest, _ = record_in(slot).checkpoints
        assert newest.reached.elapsed_s < 210
        program = Watched(1000)
        assert run(client_of(slot), in_memory(program), JOB) == 0
        assert program.began_at_s == [pytest.approx(newest.reached.elapsed_s, abs=1.5)]

    def test_afterwards_the_next_one_counts_and_two_are_kept(self, slot: Path) -> None:
        watched = self.watched(slot, fails_s=(210, 390), end_s=550)
        assert run(client_of(slot), in_memory(watched), JOB) == ExitStatus.TEMPORARY
        assert record_in(slot).checkpoints[0].reached.elapsed_s >= 450

    def test_not_ever_more_of_them_are_left(self, slot: Path) -> None:
        most: list[int] = []
        watched = Watched(2000, lambda _: most.append(len(snapshots_in(slot))))
        (slot / f".vmwrapper-{RECORD_FILE}.new").mkdir()
        assert run(client_of(slot), in_memory(watched), JOB, leaves_more=True) != 0
        assert max(most) <= 3

    def test_one_that_counts_late_has_its_own_figures(self, slot: Path) -> None:
        def look(machine: MemoryMachine) -> None:
            taken_at_s.append(machine.cpu_time_s())

        taken_at_s: list[float] = []
        watched = self.watched(slot, fails_s=(210, 310), end_s=401)
        watched.in_snapshot = look
        assert run(client_of(slot), in_memory(watched), JOB) == ExitStatus.TEMPORARY
        figures = [checkpoint.reached.cpu_time_s for checkpoint in record_in(slot).checkpoints]
        assert figures == pytest.approx(taken_at_s[-1:-3:-1], abs=1)
