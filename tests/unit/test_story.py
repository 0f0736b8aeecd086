"""Whole episodes: real job files and folders, on the hypervisor in memory."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest

from vmwrapper.boinc.api import Operations, Request
from vmwrapper.errors import (
    GuestPanicked,
    GuestPoweredOff,
    MachineExited,
    VmwrapperError,
)
from vmwrapper.exit_status import ExitStatus
from vmwrapper.folders import RECORD_FILE
from vmwrapper.hypervisor.interface import MIB
from vmwrapper.hypervisor.memory.backend import MemoryHypervisor
from vmwrapper.hypervisor.memory.guest import STDERR, MemoryGuest
from vmwrapper.hypervisor.registry import Registry
from vmwrapper.wrapper import Options, run_episode

from .episodes import (
    COPIES,
    Client,
    WantsAt,
    computes,
    copy,
    in_memory,
    listening,
    make_slot,
    run,
    task,
    wanting,
    works,
)

PHASES = [
    "Connected to",
    "Processing task 1",
    "VM image",
    "Machine created",
    "Machine is on",
    "Guest is ready",
    "Copying in",
    "Running the program",
    "Program done",
    "Copying out",
    "Sanitizing",
]
"""How the log's lines of an episode begin."""

BREAK_S = 3600.0


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    return make_slot(tmp_path)


@pytest.fixture
def client(slot: Path) -> Client:
    return Client(slot)


class TestSuccess:
    def test_outputs_come_out(self, client: Client, slot: Path) -> None:
        assert run(client, in_memory(copy), COPIES) == 0
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert client.error is None

    def test_an_earlier_output_is_replaced_and_leftovers_are_removed(self, client: Client, slot: Path) -> None:
        (slot / "out.dat").write_bytes(b"of an earlier episode")
        (slot / ".vmwrapper").mkdir()
        (slot / ".vmwrapper" / "overlay.qcow2").write_bytes(b"left over")
        assert run(client, in_memory(copy), COPIES) == 0
        assert (slot / "out.dat").read_bytes() == b"INPUT"

    def test_each_task_has_a_fresh_machine(self, client: Client, slot: Path) -> None:
        async def second(guest: MemoryGuest) -> int:
            guest.write("/tmp/two.dat", "\n".join(sorted(guest.files)).encode())
            return 0

        hypervisor = MemoryHypervisor({"program": copy, "second": second})
        (slot / "second").write_bytes(b"")
        assert run(client, hypervisor, COPIES, task("<output>two.dat</output>", program="second")) == 0
        assert len(hypervisor.machines) == 2
        assert b"in.dat" not in (slot / "two.dat").read_bytes()
        assert b"/tmp/second" in (slot / "two.dat").read_bytes()

    def test_weights_and_cpu_time_are_told(self, client: Client) -> None:
        tasks = [task("<data>in.dat</data>", f"<weight>{weight}</weight>") for weight in (1, 3)]
        assert run(client, in_memory(computes(100)), *tasks) == 0
        *each_second, last = client.statuses
        fractions = [status.fraction_done for status in each_second]
        assert fractions == sorted(fractions)
        assert fractions[99] < 0.25 <= fractions[101] < fractions[199] < 1
        assert last.fraction_done == 1
        assert last.cpu_time_s == pytest.approx(200, abs=0.5)
        for second, status in enumerate(each_second):
            assert status.cpu_time_s == pytest.approx(second, abs=0.5)
        safe = sorted({status.checkpoint_cpu_time_s for status in client.statuses})
        assert safe == [0, pytest.approx(100, abs=1.5), pytest.approx(200, abs=1.5)]
        assert "running" in {status.activity for status in client.statuses}

    def test_inputs_and_program_are_removed_in_the_guest(self, client: Client) -> None:
        hypervisor = in_memory(copy)
        assert run(client, hypervisor, COPIES) == 0
        [machine] = hypervisor.machines
        assert {path for path in machine.guest.files if path.startswith("/tmp/")} == {"/tmp/out.dat"}


class TestProgressOfTheProgram:
    """What the guest says of itself by files, and the client hears."""

    def test_the_fraction_done(self, client: Client) -> None:
        async def compute(guest: MemoryGuest) -> int:
            for said in (b"0.25\n", b"nonsense", b"0.1", b"0.75", b"1.5"):
                guest.write("/tmp/fraction", said)
                await guest.compute(20)
            return await copy(guest)

        asked = COPIES.replace("<data>", "<fraction_done_filename>fraction</fraction_done_filename><data>")
        assert run(client, in_memory(compute), asked) == 0
        fractions = [client.statuses[second].fraction_done for second in (15, 35, 55, 75, 95)]
        assert fractions == [0.25, 0.25, 0.25, 0.75, 0.75]

    def test_the_credit_report(self, client: Client) -> None:
        async def compute(guest: MemoryGuest) -> int:
            guest.write("/tmp/creditreport", b"5e9 7e6\n")
            await guest.compute(5000)
            guest.write("/tmp/creditreport", b"6e9 8e6\n")
            return await copy(guest)

        asked = COPIES.replace("<data>", "<partial_credit>1</partial_credit><data>")
        assert run(client, in_memory(compute), asked) == 0
        assert client.statuses[10].operations == Operations(floating_point=5e9, integer=7e6)
        assert client.statuses[-1].operations == Operations(floating_point=6e9, integer=8e6)
        [(variety, text)] = client.trickles
        assert variety == "cpu_time"
        assert "<runtime>3600.0" in text
        assert "<fpops>5000000000.000000</fpops>\n<intops>7000000.000000</intops>\n" in text

    def test_a_trickle_that_cant_be_written_is_only_worth_a_warning(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.trickles_fail = True
        assert run(client, in_memory(computes(100)), COPIES, trickle_period_s=30) == 0
        assert "A trickle-up is not sent: the disk is full" in caplog.text

    def test_trickles_as_often_as_asked(self, client: Client) -> None:
        assert run(client, in_memory(computes(100)), COPIES, trickle_period_s=30) == 0
        assert len(client.trickles) == 3
        assert all("<cpu_time>" in text and "<fpops>" not in text for _, text in client.trickles)

    @pytest.mark.parametrize(("basis", "cpu_time_s"), [("host", 100), ("elapsed", 100), ("guest", 30)])
    def test_which_time_counts(self, client: Client, basis: str, cpu_time_s: float) -> None:
        async def compute(guest: MemoryGuest) -> int:
            await guest.compute(100)
            guest.write("/proc/stat", b"cpu  1000 0 2000 4 5 0 0 0 0 0\n")
            return await copy(guest)

        asked = COPIES.replace("<data>", f"<cpu_time_basis>{basis}</cpu_time_basis><data>")
        assert run(client, in_memory(compute), asked) == 0
        assert client.statuses[-1].cpu_time_s == pytest.approx(cpu_time_s, abs=1)


class TestRestarting:
    """Under a client, which starts a job again in the same slot."""

    def episode(self, slot: Path, *plan: tuple[float, Request], by_hand: bool = False) -> Client:
        client = Client(slot)
        client.restarts = not by_hand
        client.plan = [*plan]
        return client

    @pytest.fixture
    def hypervisor(self, slot: Path) -> MemoryHypervisor:
        (slot / "second").write_bytes(b"")
        return MemoryHypervisor({"program": works(100), "second": works(50)})

    TASKS = (COPIES, task("<data>in.dat</data>", program="second"))

    def test_a_task_that_is_done_stays_done(self, slot: Path, hypervisor: MemoryHypervisor) -> None:
        assert run(self.episode(slot, (120, Request.QUIT)), hypervisor, *self.TASKS) == ExitStatus.INTERRUPTED
        again = self.episode(slot)
        assert run(again, hypervisor, *self.TASKS) == 0
        assert len(hypervisor.machines) == 3
        assert again.took_s == pytest.approx(30, abs=2)
        first, last = again.statuses[0], again.statuses[-1]
        assert 0.5 < first.fraction_done < 0.51
        assert first.cpu_time_s == first.checkpoint_cpu_time_s == pytest.approx(120, abs=1)
        assert last.cpu_time_s == pytest.approx(150, abs=1)

    def test_a_job_that_is_done_only_says_so_again(self, slot: Path, hypervisor: MemoryHypervisor) -> None:
        assert run(self.episode(slot), hypervisor, *self.TASKS) == 0
        (slot / ".vmwrapper").mkdir()  # as after a kill
        again = self.episode(slot)
        assert run(again, hypervisor, *self.TASKS) == 0
        assert len(hypervisor.machines) == 2
        assert again.took_s < 1

    def test_a_quit_while_the_machine_is_cleaned_up_loses_nothing(self, slot: Path) -> None:
        async def append(guest: MemoryGuest) -> int:
            guest.write("/tmp/state", guest.files["/tmp/state"].content + b"x")
            return 0

        (slot / "state").write_bytes(b"")
        in_place = task("<data>state</data>", "<output>state</output>")
        client = self.episode(slot)
        with wanting(client, "Sanitizing", Request.QUIT):
            assert run(client, in_memory(append, answer_s=1), in_place) == ExitStatus.INTERRUPTED
        assert run(self.episode(slot), in_memory(append), in_place) == 0
        assert (slot / "state").read_bytes() == b"x"

    @pytest.mark.parametrize("error", [GuestPanicked("panic"), MachineExited("killed")])
    def test_a_machine_that_ends_while_it_is_cleaned_up_is_only_worth_a_warning(
        self, slot: Path, caplog: pytest.LogCaptureFixture, error: VmwrapperError
    ) -> None:
        hypervisor = in_memory(copy, answer_s=1)
        with listening(WantsAt("Sanitizing", lambda: hypervisor.machines[0].end(error))):
            assert run(self.episode(slot), hypervisor, COPIES) == 0
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert "could not be sanitized" in caplog.text

    def test_another_job_begins_anew(self, slot: Path, hypervisor: MemoryHypervisor) -> None:
        assert run(self.episode(slot, (120, Request.QUIT)), hypervisor, *self.TASKS) == ExitStatus.INTERRUPTED
        (slot / "in.dat").write_bytes(b"other input")
        assert run(self.episode(slot), hypervisor, *self.TASKS) == 0
        assert len(hypervisor.machines) == 4
        assert (slot / "out.dat").read_bytes() == b"OTHER INPUT"

    def test_what_fails_for_a_time_is_tried_again_later_and_later(self, slot: Path) -> None:
        async def end(guest: MemoryGuest) -> int:
            guest.machine.end(MachineExited("killed"))
            return 0

        delays = []
        for _ in range(12):
            client = self.episode(slot)
            assert run(client, in_memory(end), COPIES) == ExitStatus.TEMPORARY
            assert isinstance(client.error, MachineExited)
            delays.append(client.error.retry_after_s)
        assert delays[:3] == [15, 30, 60]
        client = self.episode(slot)
        assert run(client, in_memory(end), COPIES) == ExitStatus.SUB_TASK_FAILURE
        assert client.message == "killed (given up after 13 tries in a row)"

    def test_by_hand_an_interruption_is_remembered_until_the_end(
        self, slot: Path, hypervisor: MemoryHypervisor
    ) -> None:
        interrupted = self.episode(slot, (120, Request.QUIT), by_hand=True)
        assert run(interrupted, hypervisor, *self.TASKS) == ExitStatus.INTERRUPTED
        again = self.episode(slot, by_hand=True)
        assert run(again, hypervisor, *self.TASKS) == 0
        assert len(hypervisor.machines) == 3
        assert again.took_s == pytest.approx(30, abs=2)
        assert not (slot / RECORD_FILE).exists()

    def test_by_hand_what_was_done_is_done_again(self, slot: Path, hypervisor: MemoryHypervisor) -> None:
        assert run(self.episode(slot), hypervisor, *self.TASKS) == 0  # with its record, as after a kill
        assert run(self.episode(slot, by_hand=True), hypervisor, *self.TASKS) == 0
        assert len(hypervisor.machines) == 4

    def test_by_hand_a_failure_is_not(self, slot: Path) -> None:
        async def fail(guest: MemoryGuest) -> int:
            return 1

        (slot / "second").write_bytes(b"")
        hypervisor = MemoryHypervisor({"program": copy, "second": fail})
        assert run(self.episode(slot, by_hand=True), hypervisor, *self.TASKS) == ExitStatus.CHILD_FAILED
        assert not (slot / RECORD_FILE).exists()


class TestLimits:
    def test_more_memory_than_the_workunit_allows(self, client: Client) -> None:
        client.init_data = replace(client.init_data, rsc_memory_bound_bytes=100 * MIB)
        assert run(client, in_memory(copy), COPIES) == ExitStatus.MEM_LIMIT_EXCEEDED
        assert "256 MiB" in client.message

    def test_more_of_the_disk_than_the_workunit_allows(self, client: Client, slot: Path) -> None:
        client.init_data = replace(client.init_data, rsc_disk_bound_bytes=2 * MIB)

        async def fill(guest: MemoryGuest) -> int:
            await guest.compute(15)
            (slot / "overlay").write_bytes(bytes(3 * MIB))
            await guest.compute(1000)
            return 0

        assert run(client, in_memory(fill), COPIES) == ExitStatus.DISK_LIMIT_EXCEEDED
        assert client.took_s == pytest.approx(20, abs=1)


class TestSuspending:
    """For an hour, which is longer than any limit."""

    def test_before_the_boot(self, client: Client) -> None:
        client.want(Request.SUSPEND)
        client.plan = [(BREAK_S, Request.RESUME)]
        with listening(WantsAt("Machine is on", lambda: None)) as handler:
            assert run(client, in_memory(copy), COPIES) == 0
        assert handler.at_s == pytest.approx(BREAK_S)

    @pytest.mark.parametrize("phase", PHASES)
    def test_in_any_phase(self, client: Client, slot: Path, phase: str) -> None:
        client.plan = [(BREAK_S, Request.RESUME)]
        hypervisor = in_memory(computes(100), boot_s=10, answer_s=1)
        limited = COPIES.replace("<data>", "<time_limit>120</time_limit><data>")
        with wanting(client, phase, Request.SUSPEND):
            assert run(client, hypervisor, limited, boot_limit_s=20) == 0
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert client.took_s == pytest.approx(BREAK_S, abs=125)
        assert hypervisor.machines[0].cpu_time_s() == pytest.approx(120, abs=5)

    def test_twice(self, client: Client) -> None:
        client.plan = [(10, Request.SUSPEND), (20, Request.RESUME), (30, Request.SUSPEND), (50, Request.RESUME)]
        hypervisor = in_memory(computes(100))
        assert run(client, hypervisor, COPIES) == 0
        assert client.took_s == pytest.approx(130, abs=1.5)

    @pytest.mark.parametrize(
        ("request_", "status"), [(Request.QUIT, ExitStatus.INTERRUPTED), (Request.ABORT, ExitStatus.ABORTED_BY_CLIENT)]
    )
    def test_quit_and_abort_are_obeyed(self, client: Client, request_: Request, status: int) -> None:
        client.plan = [(1, Request.SUSPEND), (3, request_)]
        assert run(client, in_memory(computes(100)), COPIES) == status
        assert client.took_s == pytest.approx(3)


class TestEndingEarly:
    @pytest.mark.parametrize("phase", PHASES)
    @pytest.mark.parametrize(
        ("request_", "status"), [(Request.QUIT, ExitStatus.INTERRUPTED), (Request.ABORT, ExitStatus.ABORTED_BY_CLIENT)]
    )
    def test_in_any_phase(self, client: Client, slot: Path, request_: Request, status: int, phase: str) -> None:
        (slot / "out.dat").write_bytes(b"earlier")
        hypervisor = in_memory(copy, boot_s=10, answer_s=10)
        with wanting(client, phase, request_) as handler:
            assert run(client, hypervisor, COPIES, COPIES.replace("out.dat", "never.dat")) == status
        assert handler.at_s is not None
        last_checkpoint_s = 10 if request_ is Request.QUIT and phase == "Running the program" else 0
        assert client.took_s == pytest.approx(handler.at_s + last_checkpoint_s)
        assert len(hypervisor.machines) <= 1
        assert (slot / "out.dat").read_bytes() == (b"INPUT" if phase == "Sanitizing" else b"earlier")

    def test_in_a_slow_copy(self, client: Client) -> None:
        client.plan = [(2, Request.ABORT)]
        hypervisor = MemoryHypervisor({"program": copy}, put_s=100)
        assert run(client, hypervisor, COPIES) == ExitStatus.ABORTED_BY_CLIENT
        assert client.took_s == 2

    def test_before_anything(self, client: Client) -> None:
        client.want(Request.ABORT)
        hypervisor = in_memory(copy, boot_s=10)
        assert run(client, hypervisor, COPIES) == ExitStatus.ABORTED_BY_CLIENT
        assert client.took_s == 0


class TestFailure:
    def test_a_program_that_fails(self, client: Client, slot: Path) -> None:
        async def fail(guest: MemoryGuest) -> int:
            guest.write(STDERR, b"begin" + b"." * 5000 + b"the reason")
            return 3

        assert run(client, in_memory(fail), COPIES) == ExitStatus.CHILD_FAILED
        assert "program failed: exit status 3" in client.message
        assert client.message.endswith("the reason")
        assert "begin" not in client.message
        assert not (slot / "out.dat").exists()

    def test_a_program_that_fails_with_a_file_for_its_errors(self, client: Client) -> None:
        async def fail(guest: MemoryGuest) -> int:
            guest.write("/tmp/errors.txt", b"the reason")
            return 1

        assert (
            run(client, in_memory(fail), task("<stderr_filename>errors.txt</stderr_filename>"))
            == ExitStatus.CHILD_FAILED
        )
        assert client.message.endswith("the reason")

    def test_a_missing_output(self, client: Client, slot: Path) -> None:
        (slot / "none.dat").write_bytes(b"earlier")
        outputs = [f"<output>{name}</output>" for name in ("none.dat", "out.dat", "neither.dat")]
        assert run(client, in_memory(copy), task("<data>in.dat</data>", *outputs)) == ExitStatus.CHILD_FAILED
        assert "none.dat, neither.dat" in client.message
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert (slot / "none.dat").read_bytes() == b"earlier"

    @pytest.mark.parametrize("under_client", [True, False])
    def test_an_output_that_would_stand_for_another_file(
        self, client: Client, slot: Path, *, under_client: bool
    ) -> None:
        if under_client:
            client.project_dir = slot.parent

        async def link(guest: MemoryGuest) -> int:
            guest.write("/tmp/out.dat", b"<soft_link>../../projects/P/main</soft_link>\n")
            return 0

        assert run(client, in_memory(link), COPIES) == (ExitStatus.CHILD_FAILED if under_client else 0)
        assert ("left a BOINC <soft_link> as out.dat" in client.message) is under_client
        assert (slot / "out.dat").exists() is not under_client

    def test_the_time_limit_of_the_job(self, client: Client) -> None:
        limited = COPIES.replace("<data>", "<time_limit>60</time_limit><data>")
        assert run(client, in_memory(computes(100)), limited) == ExitStatus.TIME_LIMIT_EXCEEDED
        assert client.took_s == pytest.approx(60, abs=0.1)
        assert "60 s" in client.message

    def test_a_guest_that_does_not_get_ready(self, client: Client) -> None:
        assert run(client, in_memory(copy, boot_s=math.inf), COPIES, boot_limit_s=60) == ExitStatus.CHILD_FAILED
        assert client.took_s == pytest.approx(60)
        assert "60 s" in client.message

    def test_a_guest_that_falls_silent(self, client: Client) -> None:
        async def fall_silent(guest: MemoryGuest) -> int:
            guest.machine.hypervisor.answer_s = math.inf
            await guest.compute(1000)
            return 0

        assert run(client, in_memory(fall_silent), COPIES) == ExitStatus.CHILD_FAILED
        assert client.took_s == pytest.approx(30, abs=1)

    def test_a_guest_that_falls_silent_before_its_outputs_are_copied(self, client: Client) -> None:
        async def fall_silent(guest: MemoryGuest) -> int:
            guest.machine.hypervisor.answer_s = math.inf
            return 0

        assert run(client, in_memory(fall_silent), COPIES) == ExitStatus.TEMPORARY

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (GuestPanicked("panic"), ExitStatus.CHILD_FAILED),
            (GuestPoweredOff("off"), ExitStatus.CHILD_FAILED),
            (MachineExited("killed"), ExitStatus.TEMPORARY),
        ],
    )
    def test_a_machine_that_ends(
        self, client: Client, caplog: pytest.LogCaptureFixture, error: VmwrapperError, status: int
    ) -> None:
        async def end(guest: MemoryGuest) -> int:
            await guest.compute(0.1)
            guest.machine.say(b"famous last words\n")
            guest.machine.end(error)
            return 0

        assert run(client, in_memory(end), COPIES) == status
        assert client.error is error
        assert "famous last words" in caplog.text

    @pytest.mark.parametrize("phase", PHASES[PHASES.index("Machine is on") : PHASES.index("Sanitizing")])
    def test_a_machine_that_ends_in_any_phase(self, client: Client, phase: str) -> None:
        hypervisor = in_memory(copy, boot_s=10, answer_s=10)
        handler = WantsAt(phase, lambda: hypervisor.machines[0].end(MachineExited("killed")))
        with listening(handler):
            assert run(client, hypervisor, COPIES) == ExitStatus.TEMPORARY
        assert client.message == "killed"

    def test_outputs_that_are_too_large(self, client: Client, slot: Path) -> None:
        async def write(guest: MemoryGuest) -> int:
            guest.write("/tmp/out.dat", b"small")
            guest.write("/tmp/large.dat", bytes(65 * MIB))
            return 0

        outputs = ["<output>out.dat</output>", "<output>large.dat</output>"]
        limits = ["<memory_mb>64</memory_mb>", "<disk_mb>0</disk_mb>"]
        assert run(client, in_memory(write), task(*outputs, *limits)) == ExitStatus.CHILD_FAILED
        assert not (slot / "out.dat").exists()

    def test_a_job_that_cannot_run(self, client: Client) -> None:
        assert run(client, in_memory(copy), task("<data>missing.dat</data>")) == ExitStatus.INIT_FAILURE
        assert "missing.dat" in client.message

    def test_an_image_that_the_hypervisor_cannot_use(self, client: Client, slot: Path) -> None:
        (slot / "guest.memory").write_bytes(b"something else")
        assert run(client, in_memory(copy), COPIES) == ExitStatus.INIT_FAILURE

    def test_no_job_file(self, client: Client, slot: Path) -> None:
        registry = Registry((in_memory(copy),))
        assert run_episode(slot / "none.xml", client, registry, Options()) == ExitStatus.NO_JOB_FILE
        assert client.error

    def test_a_second_task_that_fails_keeps_the_outputs_of_the_first(self, client: Client, slot: Path) -> None:
        async def fail(guest: MemoryGuest) -> int:
            return 1

        hypervisor = MemoryHypervisor({"program": copy, "second": fail})
        (slot / "second").write_bytes(b"")
        assert run(client, hypervisor, COPIES, task(program="second")) == ExitStatus.CHILD_FAILED
        assert "second failed" in client.message
        assert (slot / "out.dat").read_bytes() == b"INPUT"
