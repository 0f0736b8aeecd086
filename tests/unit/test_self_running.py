"""Jobs whose guest works by itself: whole episodes on the hypervisor in memory."""

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vmwrapper.boinc.api import Request
from vmwrapper.errors import GuestPoweredOff, JobError, MachineExited, PostponedByGuest
from vmwrapper.exit_status import ExitStatus
from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hypervisor.memory.backend import MemoryHypervisor
from vmwrapper.hypervisor.memory.guest import MemoryGuest, Program
from vmwrapper.wrapper import Options

from . import simulated_time
from .episodes import Client, episode, make_slot, run

BREAK_S = 3600.0


def task(*lines: str) -> str:
    return "\n".join(["<task>", "<vm>guest</vm>", *lines, "</task>"])


COPIES = task(
    "<data>in.dat</data> <output>out.dat</output>",
    "<completion_trigger_file>done</completion_trigger_file>",
    "<temporary_exit_trigger_file>later</temporary_exit_trigger_file>",
    "<checkpoint_interval>10</checkpoint_interval>",
)
BEATS = COPIES.replace("<data>", "<heartbeat_filename>beat</heartbeat_filename><data>").replace(
    "<data>", "<minimum_heartbeat_interval>60</minimum_heartbeat_interval><data>"
)
LASTS = task("<data>in.dat</data> <output>out.dat</output> <job_duration>100</job_duration>")


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    return make_slot(tmp_path)


@pytest.fixture
def client(slot: Path) -> Client:
    return Client(slot)


def by_itself(program: Program) -> MemoryHypervisor:
    hypervisor = MemoryHypervisor()
    hypervisor.works_by_itself = program
    return hypervisor


def copies(guest: MemoryGuest) -> None:
    (guest.shared / "out.dat").write_bytes((guest.shared / "in.dat").read_bytes().upper())


def ends(said: str, *, after_s: float = 5.0, name: str = "done", stays: bool = True) -> Program:
    """A guest that makes the output, says that in a file, and then powers off or `stays`."""

    async def work(guest: MemoryGuest) -> int:
        await guest.compute(after_s)
        copies(guest)
        (guest.shared / name).write_text(said)
        await guest.compute(1e6 if stays else 0)
        return 0

    return work


def works(seconds: int, *, then: Callable[[MemoryGuest], Awaitable[None]] | None = None) -> Program:
    """A guest that can go on from a snapshot, and shows that it lives each second."""

    async def work(guest: MemoryGuest) -> int:
        while (done := int(guest.files["/tmp/done"].content) if "/tmp/done" in guest.files else 0) < seconds:
            await guest.compute(1)
            guest.write("/tmp/done", str(done + 1).encode())
            (guest.shared / "beat").write_text(str(done))
        if then:
            await then(guest)
        copies(guest)
        (guest.shared / "done").write_text("0\n")
        return 0

    return work


class TestTheEndByItsFile:
    @pytest.mark.parametrize("stays", [True, False])
    def test_outputs_come_out_of_the_folder(self, client: Client, slot: Path, *, stays: bool) -> None:
        assert run(client, by_itself(ends("0\n", stays=stays)), COPIES) == 0
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert client.took_s < 12
        assert client.statuses[-1].fraction_done == 1

    @pytest.mark.parametrize(
        ("said", "status"),
        [
            ("", 0),
            ("\n", 0),
            (" 0 \r\n0\r\n", 0),
            ("7\n", 7),
            ("-163\n1\nno data\n", 93),
            ("256\n", ExitStatus.CHILD_FAILED),
            ("512", ExitStatus.CHILD_FAILED),
            ("success\n", ExitStatus.CHILD_FAILED),
            ("1e3\n", ExitStatus.CHILD_FAILED),
            ("9" * 400 + "\n", ExitStatus.CHILD_FAILED),
            ("\0\x1b[31m\n" * 100_000, ExitStatus.CHILD_FAILED),
        ],
    )
    def test_its_exit_status_is_ours(self, client: Client, slot: Path, said: str, status: int) -> None:
        assert run(client, by_itself(ends(said)), COPIES) == status
        assert (slot / "out.dat").exists() == (status == 0)

    def test_its_message_is_logged_and_the_volunteer_sees_it_if_wanted(
        self, slot: Path, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        quiet = Client(slot)
        assert run(quiet, by_itself(ends("0\n0\nquietly\n")), COPIES) == 0
        assert quiet.notices == []
        assert run(client, by_itself(ends("0\n1\nAll \x1b[31mstars\nare found\n")), COPIES) == 0
        assert client.notices == ["All \ufffd[31mstars\nare found"]
        assert "quietly" in caplog.text
        assert "\x1b" not in caplog.text

    def test_a_file_counts_once_it_does_not_change_any_more(self, client: Client, slot: Path) -> None:
        async def work(guest: MemoryGuest) -> int:
            for said, for_s in (("", 6.0), ("7\n", 1.5), ("7\n1", 1.5), ("0\n0\nat last\n", 0.0)):
                (guest.shared / "done").write_text(said)
                await guest.compute(for_s)
            copies(guest)
            await guest.compute(1e6)
            return 0

        assert run(client, by_itself(work), COPIES) == 0
        assert client.took_s == pytest.approx(11, abs=1.1)

    def test_a_suspended_guest_is_not_taken_at_its_half_word(self, client: Client) -> None:
        async def work(guest: MemoryGuest) -> int:
            await guest.compute(4.4)
            (guest.shared / "done").write_text("7\n")
            await guest.compute(1.0)
            copies(guest)
            (guest.shared / "done").write_text("0\n0\nnot 7\n")
            await guest.compute(1e6)
            return 0

        client.plan = [(4.6, Request.SUSPEND), (4.6 + BREAK_S, Request.RESUME)]
        assert run(client, by_itself(work), COPIES) == 0

    def test_a_missing_output_fails_the_job(self, client: Client, caplog: pytest.LogCaptureFixture) -> None:
        wants_more = COPIES.replace("<data>", "<output>more.dat</output><data>")
        assert run(client, by_itself(ends("0\n")), wants_more) == ExitStatus.CHILD_FAILED
        assert "the guest guest left no file more.dat in its shared folder" in client.message


class TestTheEndByTime:
    def test_it_is_done_after_its_duration(self, client: Client, slot: Path) -> None:
        assert run(client, by_itself(ends("", name="x")), LASTS) == 0
        assert client.took_s == pytest.approx(100, abs=1.5)
        assert client.statuses[50].fraction_done == pytest.approx(0.5, abs=0.02)
        assert (slot / "out.dat").exists()

    def test_only_running_time_counts(self, client: Client) -> None:
        client.plan = [(50, Request.SUSPEND), (50 + BREAK_S, Request.RESUME)]
        assert run(client, by_itself(ends("", name="x")), LASTS) == 0
        assert client.took_s == pytest.approx(100 + BREAK_S, abs=1.5)

    def test_a_guest_that_powers_off_earlier_has_failed(self, client: Client) -> None:
        assert run(client, by_itself(ends("", name="x", stays=False)), LASTS) == ExitStatus.ABORTED_BY_CLIENT

    def test_its_file_ends_it_earlier(self, client: Client) -> None:
        both = LASTS.replace("<job_duration>", "<completion_trigger_file>done</completion_trigger_file><job_duration>")
        assert run(client, by_itself(ends("0\n")), both) == 0
        assert client.took_s < 12

    def test_a_time_limit_ends_it(self, client: Client) -> None:
        limited = LASTS.replace("<job_duration>", "<time_limit>40</time_limit><job_duration>")
        assert run(client, by_itself(ends("", name="x")), limited) == ExitStatus.TIME_LIMIT_EXCEEDED


class TestOtherEnds:
    def test_a_guest_that_just_powers_off_has_failed(self, client: Client, caplog: pytest.LogCaptureFixture) -> None:
        async def work(guest: MemoryGuest) -> int:
            guest.machine.say(b"Kernel panic\n")
            await guest.compute(5)
            return 0

        assert run(client, by_itself(work), COPIES) == ExitStatus.ABORTED_BY_CLIENT
        assert "Kernel panic" in caplog.text

    @pytest.mark.parametrize(
        ("said", "delay_s"),
        [("100\n1\nno licence\n", 100), ("0\n", 15), ("-5\n", 15), ("999999\n", 86400), ("soon\n", 300), ("\n", 15)],
    )
    def test_it_may_go_on_later(self, client: Client, slot: Path, said: str, delay_s: int) -> None:
        hypervisor = by_itself(ends(said, name="later"))
        assert run(client, hypervisor, COPIES) == ExitStatus.TEMPORARY
        assert isinstance(client.error, PostponedByGuest)
        assert client.error.retry_after_s == delay_s
        assert client.error.concerns_volunteer == ("1" in said.split("\n")[1])
        assert not (slot / MACHINE_FOLDER / "shared/later").exists()

    def test_it_goes_on_from_where_it_wanted_to_go_on_later(self, slot: Path) -> None:
        async def wait(guest: MemoryGuest) -> None:
            if "/tmp/asked" not in guest.files:
                guest.write("/tmp/asked", b"")
                (guest.shared / "later").write_text("60\n0\n")
            await guest.compute(10)

        first, second = Client(slot), Client(slot)
        assert run(first, by_itself(works(100, then=wait)), COPIES) == ExitStatus.TEMPORARY
        assert run(second, by_itself(works(100, then=wait)), COPIES) == 0
        assert second.took_s < 20


class TestItsHeart:
    def test_a_guest_that_beats_lives(self, client: Client) -> None:
        assert run(client, by_itself(works(300)), BEATS) == 0

    def test_one_that_never_began_is_ended_after_the_interval(self, client: Client) -> None:
        status = run(client, by_itself(ends("0\n", after_s=1000)), BEATS)
        assert status == ExitStatus.NO_HEARTBEAT_FILE
        assert client.took_s == pytest.approx(60, abs=2)

    def test_one_that_stops_is_ended_after_three_looks(self, client: Client) -> None:
        async def faint(guest: MemoryGuest) -> None:
            await guest.compute(1000)

        assert run(client, by_itself(works(100, then=faint)), BEATS) == ExitStatus.NO_HEARTBEAT
        assert client.took_s == pytest.approx(170, abs=12)

    def test_one_that_removes_its_file_is_ended_at_once(self, client: Client) -> None:
        async def hide(guest: MemoryGuest) -> None:
            (guest.shared / "beat").unlink()
            await guest.compute(1000)

        assert run(client, by_itself(works(99, then=hide)), BEATS) == ExitStatus.NO_HEARTBEAT_FILE
        assert client.took_s == pytest.approx(100, abs=2)

    def test_while_suspended_nobody_beats_and_nobody_looks(self, client: Client) -> None:
        async def beat_seldom(guest: MemoryGuest) -> int:
            for pause_s in (21, 54, 20):
                await guest.compute(pause_s)
                (guest.shared / "beat").write_text(str(pause_s))
            return await ends("0\n")(guest)

        requests = (Request.SUSPEND, Request.RESUME)
        client.plan = [(at_s, requests[number % 2]) for number, at_s in enumerate((61, 161, 163, 263, 265, 365))]
        assert run(client, by_itself(beat_seldom), BEATS) == 0

    def test_a_touch_by_a_clock_that_is_late_counts(self, client: Client) -> None:
        async def touch(guest: MemoryGuest) -> None:
            for second in range(200, 0, -1):
                os.utime(guest.shared / "beat", (second, second))
                await guest.compute(1)

        assert run(client, by_itself(works(10, then=touch)), BEATS) == 0


class TestItsFractionDone:
    TELLS = COPIES.replace("<data>", "<fraction_done_filename>how/far</fraction_done_filename><data>")

    def test_the_last_number_clamped_and_never_less(self, client: Client) -> None:
        async def tell(guest: MemoryGuest) -> None:
            (guest.shared / "how").mkdir()
            for said in (b"0.1\n0.25\n", b"nonsense", b"-3", b"0.1", b"0.75", b"1.5"):
                (guest.shared / "how/far").write_bytes(said)
                await guest.compute(20)

        assert run(client, by_itself(works(10, then=tell)), self.TELLS) == 0
        fractions = [client.statuses[second].fraction_done for second in (5, 25, 45, 65, 85, 105, 125)]
        assert fractions == [0.001, 0.25, 0.25, 0.25, 0.25, 0.75, 0.999]


class TestCheckpoints:
    def test_it_goes_on_from_one_and_its_folder_stays(self, slot: Path, caplog: pytest.LogCaptureFixture) -> None:
        first, second = Client(slot), Client(slot)
        first.plan = [(50, Request.QUIT)]
        hypervisor = by_itself(works(100))
        assert run(first, hypervisor, COPIES) == ExitStatus.INTERRUPTED
        assert (slot / MACHINE_FOLDER / "shared/in.dat").read_bytes() == b"input"
        assert run(second, hypervisor, COPIES) == 0
        assert second.took_s == pytest.approx(50, abs=5)
        assert "The guest goes on by itself" in caplog.text
        assert (slot / "out.dat").read_bytes() == b"INPUT"
        assert not (slot / MACHINE_FOLDER).exists()

    def test_no_checkpoint_is_taken_before_it_has_written_anything(self, slot: Path) -> None:
        client = Client(slot)
        client.plan = [(50, Request.QUIT)]
        assert run(client, by_itself(ends("0\n", after_s=1000)), COPIES) == ExitStatus.INTERRUPTED
        assert not (slot / MACHINE_FOLDER).exists()

    def test_what_it_said_after_the_checkpoint_is_not_believed(self, slot: Path) -> None:
        first, second = Client(slot), Client(slot)
        hypervisor = by_itself(works(100))
        first.plan = [(50, Request.QUIT)]
        run(first, hypervisor, COPIES)
        (slot / MACHINE_FOLDER / "shared/done").write_text("7\n")
        assert run(second, hypervisor, COPIES) == 0
        assert second.took_s == pytest.approx(50, abs=5)

    @pytest.mark.parametrize("heals_at", [1, 2])
    def test_one_in_which_its_heart_stands_still_is_not_used(
        self, slot: Path, caplog: pytest.LogCaptureFixture, heals_at: int
    ) -> None:
        boots = 0

        async def work(guest: MemoryGuest) -> int:
            nonlocal boots
            boots += 1
            if 1 < boots <= 1 + heals_at:
                await guest.compute(1e6)
            return await works(100)(guest)

        first, second = Client(slot), Client(slot)
        first.plan = [(50, Request.QUIT)]
        hypervisor = by_itself(work)
        run(first, hypervisor, BEATS)
        assert run(second, hypervisor, BEATS) == 0
        assert (
            caplog.text.count("can't be used: the guest has not changed its heartbeat file beat for 60 s") == heals_at
        )
        assert ("The task begins anew" in caplog.text) == (heals_at == 2)

    def test_its_folder_is_made_anew_where_it_begins_anew(self, slot: Path) -> None:
        first, second = Client(slot), Client(slot)
        hypervisor = by_itself(works(100))
        first.plan = [(50, Request.QUIT)]
        run(first, hypervisor, COPIES)
        shared = slot / MACHINE_FOLDER / "shared"
        (shared / "in.dat").write_bytes(b"changed")
        (shared / "left").mkdir()
        for snapshot in (slot / MACHINE_FOLDER).glob("snapshot-*"):
            snapshot.write_text("damaged")
        assert run(second, hypervisor, COPIES) == 0
        assert second.took_s == pytest.approx(100, abs=5)
        assert (slot / "out.dat").read_bytes() == b"INPUT"

    def test_abort_removes_all(self, client: Client, slot: Path) -> None:
        client.plan = [(50, Request.ABORT)]
        assert run(client, by_itself(works(100)), COPIES) == ExitStatus.ABORTED_BY_CLIENT
        assert not (slot / MACHINE_FOLDER).exists()

    def test_a_machine_that_ends_is_tried_again(self, client: Client) -> None:
        async def end(guest: MemoryGuest) -> int:
            await guest.compute(5)
            guest.machine.end(MachineExited("killed"))
            await guest.compute(5)
            return 0

        assert run(client, by_itself(end), COPIES) == ExitStatus.TEMPORARY


class TestHostileFiles:
    def hostile(self, make: Callable[[Path], object], name: str) -> Program:
        async def work(guest: MemoryGuest) -> int:
            await guest.compute(2)
            make(guest.shared / name)
            await guest.compute(40)
            guest.machine.end(GuestPoweredOff("off"))
            await guest.compute(1)
            return 0

        return work

    KINDS: tuple[Callable[[Path], object], ...] = (
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("in.dat"),
        os.mkfifo,
        Path.mkdir,
    )

    @pytest.mark.parametrize("make", KINDS)
    @pytest.mark.parametrize("name", ["done", "later", "beat"])
    def test_only_a_regular_file_counts(self, client: Client, make: Callable[[Path], object], name: str) -> None:
        expected = ExitStatus.NO_HEARTBEAT_FILE if name == "beat" else ExitStatus.ABORTED_BY_CLIENT
        interval = "<minimum_heartbeat_interval>30</minimum_heartbeat_interval>"
        asked = BEATS.replace("<minimum_heartbeat_interval>60</minimum_heartbeat_interval>", interval)
        assert run(client, by_itself(self.hostile(make, name)), asked if name == "beat" else COPIES) == expected

    @pytest.mark.parametrize("make", KINDS)
    def test_only_a_regular_file_is_an_output(self, client: Client, slot: Path, make: Callable[[Path], object]) -> None:
        async def work(guest: MemoryGuest) -> int:
            make(guest.shared / "out.dat")
            (guest.shared / "done").write_text("0\n")
            return 0

        assert run(client, by_itself(work), COPIES) == ExitStatus.CHILD_FAILED
        assert "left no file out.dat (it is a " in client.message
        assert not (slot / "out.dat").exists()

    def test_a_folder_on_the_way_that_is_a_link(self, client: Client, slot: Path, tmp_path: Path) -> None:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets/out.dat").write_text("secret")
        (slot / "of").mkdir()

        async def work(guest: MemoryGuest) -> int:
            (guest.shared / "of").symlink_to(tmp_path / "secrets")
            (guest.shared / "done").write_text("0\n")
            return 0

        asked = COPIES.replace("<output>out.dat", "<output>of/out.dat")
        assert run(client, by_itself(work), asked) == ExitStatus.CHILD_FAILED
        assert not (slot / "of/out.dat").exists()

    def test_a_gigabyte_is_not_read(self, client: Client) -> None:
        async def work(guest: MemoryGuest) -> int:
            for name in ("done", "far"):
                with (guest.shared / name).open("wb") as file:
                    file.truncate(1 << 30)
                    file.write(b"7\n")
            await guest.compute(1e6)
            return 0

        asked = COPIES.replace(
            "<data>", "<disk_mb>4096</disk_mb><fraction_done_filename>far</fraction_done_filename><data>"
        )
        assert run(client, by_itself(work), asked) == 7
        assert len(client.message) < 1000

    def test_a_folder_that_becomes_too_large_ends_the_job(self, client: Client) -> None:
        async def work(guest: MemoryGuest) -> int:
            with (guest.shared / "large").open("wb") as file:
                file.truncate((100 << 20) + 1)
            await guest.compute(1e6)
            return 0

        asked = COPIES.replace("<data>", "<disk_mb>100</disk_mb><data>")
        assert run(client, by_itself(work), asked) == ExitStatus.DISK_LIMIT_EXCEEDED
        assert "raise <disk_mb>" in client.message

    def test_outputs_that_are_too_large_are_not_copied(self, client: Client, slot: Path) -> None:
        async def work(guest: MemoryGuest) -> int:
            with (guest.shared / "out.dat").open("wb") as file:
                file.truncate((100 << 20) + 1)
            (guest.shared / "done").write_text("0\n")
            return 0

        asked = COPIES.replace("<data>", "<disk_mb>100</disk_mb><data>")
        status = run(client, by_itself(work), asked)
        assert status in {ExitStatus.CHILD_FAILED, ExitStatus.DISK_LIMIT_EXCEEDED}
        assert not (slot / "out.dat").exists()


def test_inputs_that_are_too_large_are_not_copied(client: Client, slot: Path) -> None:
    with (slot / "in.dat").open("wb") as file:
        file.truncate((100 << 20) + 1)
    asked = COPIES.replace("<data>", "<disk_mb>100</disk_mb><data>")
    assert run(client, by_itself(ends("0\n")), asked) == ExitStatus.INIT_FAILURE
    assert "the inputs have 100 MiB" in client.message


def test_executables_stay_executable(client: Client, slot: Path) -> None:
    (slot / "in.dat").chmod(0o755)

    async def work(guest: MemoryGuest) -> int:
        assert (guest.shared / "in.dat").stat().st_mode & 0o777 == 0o755
        copies(guest)
        (guest.shared / "out.dat").chmod(0o700)
        (guest.shared / "done").write_text("0\n")
        return 0

    assert run(client, by_itself(work), COPIES) == 0
    assert os.access(slot / "out.dat", os.X_OK)


def test_there_is_nothing_to_keep(client: Client) -> None:
    keeping = episode(client, by_itself(ends("0\n")), COPIES, options=Options(keep=True))
    assert simulated_time.run(keeping) == JobError.exit_status
