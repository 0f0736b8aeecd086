"""The client's twin, with apps that end in every way."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.init_data import read_init_data
from vmwrapper.boinc.slot_files import resolve
from vmwrapper.errors import JobError, SlotBusy
from vmwrapper.job.model import Job, Task
from vmwrapper.twin.client import EXIT_TOO_MANY, Pace
from vmwrapper.twin.exits import Fate, judge
from vmwrapper.twin.files import TaskFiles, job_files
from vmwrapper.twin.messages import Figures, read_status
from vmwrapper.twin.player import play
from vmwrapper.twin.script import parse_script
from vmwrapper.twin.slot import AUTHENTICATOR, PROXY_PASSWORD, SLOT_FOLDER, twin_slot

from .fuzzing import fuzzed

FAKE_APP = Path(__file__).with_name("fake_app.py")
HASTE = Pace(poll_s=0.05, kill_after_s=0.4, unread_s=0.4, most_exits=3)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vmwrapper")


@pytest.fixture
def files(tmp_path: Path) -> TaskFiles:
    folder = tmp_path / "R&D"
    folder.mkdir()
    (folder / "hubble.xml").touch()
    return TaskFiles(job_file=folder / "hubble.xml", names=("prog.sh", "stars/north.dat", "out"), outputs=("out",))


def played(files: TaskFiles, script: str, *habits: str) -> int:
    """The exit status of a play in which the app has these habits, one at each start."""
    steps, problems = parse_script(script.encode())
    assert problems == []
    command = [sys.executable, "-I", str(FAKE_APP), str(files.project_dir), *habits]
    status = play(files, command=command, steps=steps, show=lambda _: None, pace=HASTE)
    assert not (files.project_dir / SLOT_FOLDER).exists()
    return status


def starts(files: TaskFiles) -> int:
    return int((files.project_dir / "starts").read_text())


class TestEndings:
    @pytest.mark.parametrize(
        ("habits", "status", "number_of_starts"),
        [
            (["done"], 0, 1),
            (["exit 195"], 195, 1),
            (["exit 0", "done"], 0, 2),
            (["exit 0", "exit 3"], 3, 2),
            (["later no hypervisor", "done"], 0, 2),
            (["later", "done"], 0, 2),  # without a reason it is a premature exit
            (["signal 11"], 193, 1),
            (["signal 15", "done"], 0, 2),
            (["no-output"], 195, 1),
        ],
    )
    def test_by_itself(self, files: TaskFiles, habits: Sequence[str], status: int, number_of_starts: int) -> None:
        assert played(files, "", *habits) == status
        assert starts(files) == number_of_starts

    def test_a_job_that_gets_nowhere_is_given_up(self, files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
        assert played(files, "", "exit 0") == EXIT_TOO_MANY
        assert starts(files) == 4
        assert "more than 3 such exits" in caplog.text

    def test_an_abort_is_final_whatever_the_app_returns(self, files: TaskFiles) -> None:
        assert played(files, "wait for start\nabort", "obey") == 203

    @pytest.mark.parametrize("verb", ["quit", "kill"])
    def test_it_is_started_again_at_the_end_of_the_script(self, files: TaskFiles, verb: str) -> None:
        assert played(files, f"wait for start\n{verb}", "obey", "done") == 0
        assert starts(files) == 2

    def test_it_is_not_started_again_before_the_script_says_it(self, files: TaskFiles) -> None:
        began = time.monotonic()
        assert played(files, "wait for start\nquit\nwait 0.5\nstart", "obey", "done") == 0
        assert time.monotonic() - began > 0.5

    def test_who_ignores_quit_is_killed(self, files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
        assert played(files, "wait for start\nquit", "deaf", "done") == 0
        assert "the app ignores quit: killing it" in caplog.text

    def test_who_reads_no_requests_is_killed(self, files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
        script = "wait for start\nreread\nreread\nwait for start 1"
        assert played(files, script, "deaf", "done") == 0
        assert "the app reads no requests: killing it" in caplog.text

    def test_what_it_knows_is_shown(self, files: TaskFiles) -> None:
        steps, _ = parse_script(b"wait for start\nsuspend\nwait 0.2\nresume\nwait for resume\nquit")
        command = [sys.executable, "-I", str(FAKE_APP), str(files.project_dir), "obey", "done"]
        shown: list[Status] = []
        play(files, command=command, steps=steps, show=shown.append, pace=HASTE)
        assert [status.activity for status in shown] == ["suspended", "running", "running"]
        assert (shown[-1].fraction_done, shown[-1].cpu_time_s) == (1, 2)

    def test_what_is_left_is_named(self, files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
        assert played(files, "wait for start\nquit", "litter", "done") == 0
        assert "left behind by the app: left over" in caplog.text


class TestRequests:
    def asked(self, files: TaskFiles) -> list[str]:
        return (files.project_dir / "requests").read_text().split()

    def test_they_arrive_one_after_the_other(self, files: TaskFiles) -> None:
        script = "wait for start\nsuspend\nwait for asked\nresume\nreread\nwait for reread\nquit"
        assert played(files, script, "obey", "done") == 0
        assert self.asked(files) == ["<suspend/>", "<resume/>", "<reread_app_info/>"]

    def test_a_limit_of_cpu_time_suspends_now_and_then(self, files: TaskFiles) -> None:
        script = "cpu limit 50\nwait 0.9\ncpu limit 100\nwait 0.2\nquit"
        assert played(files, script, "obey", "done") == 0
        asked = self.asked(files)
        assert len(asked) > 4
        assert asked == ["<suspend/>", "<resume/>"] * (len(asked) // 2)

    def test_without_heartbeats_the_app_hears_nobody(self, files: TaskFiles) -> None:
        script = "network off\nwait 0.7\nheartbeats off\nwait for nobody there"
        assert played(files, script, "listen", "done") == 0
        assert "<client_pid>0</client_pid>" in (files.project_dir / "init_data.0").read_text()

    def test_a_new_start_is_told_of_the_last_checkpoint(
        self, files: TaskFiles, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert played(files, "wait for start\nwait 0.3\nkill", "checkpoint", "done") == 0
        assert "<wu_cpu_time>0.0" in (files.project_dir / "init_data.0").read_text()
        assert "<wu_cpu_time>4.0" in (files.project_dir / "init_data.1").read_text()
        assert "the app made a checkpoint, at 4.00 s" in caplog.text
        assert "seen last: 100.0 % done, 2.00 s of CPU time" in caplog.text

    def test_trickles_and_uploads_are_taken(self, files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
        script = 'wait for start\nwait 0.5\ntrickle down "more work"\nwait for the project says more work <status>0'
        assert played(files, script, "trickle", "done") == 0
        assert "client: trickle-up: <variety>credit</variety>\\nsome text" in caplog.text
        assert "client: uploaded out" in caplog.text
        assert "was not done" not in caplog.text

    def test_the_other_process_ends_with_the_app(self, files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
        with subprocess.Popen(["sleep", "60"]) as other:
            assert played(files, "", f"other-pid {other.pid}", "done") == 0
            assert other.wait(5) == -signal.SIGKILL
        assert caplog.text.count("killed the app's other_pid") == 1
        (files.project_dir / "starts").unlink()
        assert played(files, "", "other-pid -1", "done") == 0
        assert "the app named other_pid -1: the client would now kill itself" in caplog.text

    def test_steps_after_the_end_are_named(self, files: TaskFiles, caplog: pytest.LogCaptureFixture) -> None:
        assert played(files, "wait for nothing that is ever said", "done") == 0
        assert "line 1 was not done, since the job was over: wait for nothing that is ever said" in caplog.text


class TestShutdown:
    """In a process of its own, which hears the signals."""

    PLAY = """\
import sys
from pathlib import Path
from vmwrapper.twin.client import Pace
from vmwrapper.twin.files import TaskFiles
from vmwrapper.twin.player import play
from vmwrapper.twin.script import parse_script
files = TaskFiles(job_file=Path(sys.argv[1]), names=(), outputs=())
steps, _ = parse_script(sys.argv[2].encode())
sys.exit(play(files, command=sys.argv[3:], steps=steps, show=print, pace=Pace(poll_s=0.05)))
"""

    def play(self, files: TaskFiles, script: str, habit: str) -> "subprocess.Popen[str]":
        app = [sys.executable, "-I", FAKE_APP, files.project_dir, habit]
        argv = [sys.executable, "-c", self.PLAY, files.job_file, script, *app]
        return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    @pytest.mark.parametrize(("habit", "times"), [("obey", 1), ("deaf", 2), ("later for an hour", 1)])
    def test_ctrl_c_ends_the_app_and_leaves_nothing(self, files: TaskFiles, habit: str, times: int) -> None:
        with self.play(files, "wait 60", habit) as twin:
            assert twin.stderr is not None
            assert "start 0" in twin.stderr.readline()
            for _ in range(times):
                time.sleep(0.3)
                twin.send_signal(signal.SIGINT)
            twin.communicate(timeout=10)
        assert twin.returncode == 130
        assert not (files.project_dir / SLOT_FOLDER).exists()
        assert starts(files) == 1


class TestSlot:
    def test_it_has_links_to_the_projects_files(self, files: TaskFiles) -> None:
        with twin_slot(files) as slot:
            slot.link()
            assert (slot.path / "job.xml").read_bytes() == b"<soft_link>../hubble.xml</soft_link>\n"
            for name in files.names:
                assert resolve(slot.path, name).resolve() == files.project_dir / name
            assert slot.left_by_app() == []

    def test_its_init_data_is_understood(self, files: TaskFiles) -> None:
        with twin_slot(files) as slot:
            slot.write_init_data(client_pid=7, cpu_time_s=2.5, elapsed_s=3.0)
            data = read_init_data(slot.path)
            assert (data.project_dir, data.client_pid, data.shm_key) == (files.project_dir, 7, -1)
            assert (data.result_name, data.checkpoint_cpu_time_s) == ("hubble_0", 2.5)
            text = (slot.path / "init_data.xml").read_text()
            assert AUTHENTICATOR in text
            assert PROXY_PASSWORD in text

    @pytest.mark.parametrize("name", ["two\nlines", "n" * 600])
    def test_a_name_that_no_client_can_link_is_refused(self, files: TaskFiles, name: str) -> None:
        bad = TaskFiles(job_file=files.job_file, names=(name,), outputs=())
        with twin_slot(bad) as slot, pytest.raises(JobError, match="a BOINC client can't link"):
            slot.link()

    def test_what_a_killed_twin_left_is_removed(self, files: TaskFiles) -> None:
        (files.project_dir / SLOT_FOLDER / "folder").mkdir(parents=True)
        (files.project_dir / SLOT_FOLDER / "file").touch()
        with twin_slot(files) as slot:
            assert [path.name for path in slot.path.iterdir()] == ["boinc_mmap_file"]

    def test_only_one_twin_uses_it(self, files: TaskFiles) -> None:
        with twin_slot(files) as slot:
            with pytest.raises(SlotBusy), twin_slot(files):
                pass
            assert slot.path.exists()

    def test_an_app_that_outlives_a_killed_twin_keeps_it(self, files: TaskFiles) -> None:
        slot = files.project_dir / SLOT_FOLDER
        slot.mkdir()
        hold = "import fcntl, sys; f = open(sys.argv[1], 'wb'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
        argv = [sys.executable, "-c", hold, str(slot / "boinc_lockfile")]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as app:
            assert app.stdout is not None
            app.stdout.readline()
            with pytest.raises(SlotBusy, match="another vmwrapper is at work"), twin_slot(files):
                pass
            app.communicate(b"\n")

    def test_a_link_with_its_name_is_not_followed(self, files: TaskFiles, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (files.project_dir / SLOT_FOLDER).symlink_to(tmp_path / "mine")
        with pytest.raises(Exception, match="can't make the slot"), twin_slot(files):
            pass


class TestFiles:
    def test_all_that_a_job_names(self, tmp_path: Path) -> None:
        for name in ("guest.qcow2", "guest", "guest.txt"):
            (tmp_path / name).touch()
        task = Task(
            line=1,
            vm="guest",
            innerjob="prog",
            data=("data",),
            output=("out",),
            packages=("pack.tar",),
            stdin="in",
            stdout="said",
            stderr="said2",
        )
        files = job_files(Job(tasks=(task, task)), tmp_path / "job.xml", image_suffixes=[".qcow2", ".raw"])
        assert sorted(files.names) == sorted(
            ["guest", "guest.qcow2", "prog", "data", "in", "pack.tar", "out", "said", "said2"]
        )
        assert files.outputs == ("out", "said", "said2")

    @pytest.mark.parametrize("vm", ["default", "/etc/passwd", "../secret"])
    def test_images_elsewhere_are_not_linked(self, tmp_path: Path, vm: str) -> None:
        (tmp_path / "project").mkdir()
        (tmp_path / "secret").touch()
        (tmp_path / "project/default").touch()
        job = Job(tasks=(Task(line=1, vm=vm, innerjob="prog"),))
        assert job_files(job, tmp_path / "project/job.xml", image_suffixes=[]).names == ("prog",)


class TestJudgement:
    @pytest.mark.parametrize(
        ("content", "delay_s"),
        [
            ("60\ndisk full\n", 60),
            ("3600\nno QEMU\nnotice\n", 3600),
            ("-1\nbad delay\n", 300),
            ("86401\nbad delay\n", 300),
            ("soon\nbad delay\n", 300),
            ("\nno delay\n", 300),
        ],
    )
    def test_temporary_exits(self, tmp_path: Path, content: str, delay_s: float) -> None:
        (tmp_path / "boinc_temporary_exit").write_text(content)
        ending = judge(tmp_path, status=0, asked=None, outputs=[])
        assert (ending.fate, ending.delay_s) == (Fate.POSTPONED, delay_s)

    def test_a_quit_comes_before_all_else(self, tmp_path: Path) -> None:
        (tmp_path / "boinc_temporary_exit").write_text("60\ndisk full\n")
        assert judge(tmp_path, status=195, asked=Request.QUIT, outputs=[]).fate is Fate.RESTARTED

    def test_a_temporary_exit_comes_before_a_status(self, tmp_path: Path) -> None:
        (tmp_path / "boinc_temporary_exit").write_text("60\ndisk full\n")
        assert judge(tmp_path, status=195, asked=None, outputs=[]).fate is Fate.POSTPONED

    def test_a_finish_file_does_not_save_a_status(self, tmp_path: Path) -> None:
        (tmp_path / "boinc_finish_called").write_text("0\n")
        assert judge(tmp_path, status=195, asked=None, outputs=[]).fate is Fate.FAILED

    @fuzzed
    @given(content=st.binary() | st.text().map(str.encode), status=st.integers(-64, 255))
    def test_any_temporary_exit_file_is_judged(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes, status: int
    ) -> None:
        slot = tmp_path_factory.getbasetemp()
        (slot / "boinc_temporary_exit").write_bytes(content)
        ending = judge(slot, status=status, asked=None, outputs=[])
        assert ending.meaning.isprintable()
        assert 0 <= ending.delay_s <= 86400


class TestStatus:
    def test_what_is_missing_is_nothing_or_as_before(self) -> None:
        before = Figures(cpu_time_s=3, checkpoint_cpu_time_s=2, fraction_done=0.5)
        assert read_status("<fraction_done>0</fraction_done>", before) == Figures(fraction_done=0.5)

    @fuzzed
    @given(st.text(st.sampled_from("<>/naif0123456789e+- ")).map(lambda text: f"<current_cpu_time>{text}"))
    def test_no_figure_is_beyond_reason(self, message: str) -> None:
        assert abs(read_status(message, Figures()).cpu_time_s) < float("inf")
