"""One round: a job is run, harmed, started again until it ends by itself, and then all must be as if nothing had been.

After each episode the record is read as the next one will, with the files that it names; the log of the next one then
must tell that it went on from there.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import psutil

from vmwrapper.checkpoint import Record, read_record
from vmwrapper.digest import digest
from vmwrapper.errors import VmwrapperError
from vmwrapper.folders import RECORD_FILE
from vmwrapper.hypervisor.interface import MIB
from vmwrapper.hypervisor.qemu.saved import saved
from vmwrapper.twin.slot import SLOT_FOLDER

from . import program
from .harms import Harm, Plan, Way
from .points import STATES_BACK

ROOT = Path(__file__).parents[2]
_EPISODE_LIMIT_S = 400.0
_END_LIMIT_S = 75.0
_LOOK_S = 0.02
_SMALL_DISK_MIB = 900
_MOST_LAYERS = 4
_STATUSES = {0, 75, 130, -signal.SIGKILL, -signal.SIGTERM}
"""With which an episode may end that was harmed."""
_CLIENT_STATUSES = {0, 2, 130, -signal.SIGKILL, -signal.SIGTERM}
"""The same of a client and its app: see client.py."""
_NEVER = ("Traceback", "never retrieved", "never awaited", "error of vmwrapper itself", "was destroyed but")
_CHAPTERS = (
    "VM image",
    "Machine created",
    "Machine is on",
    "Guest is ready",
    "Copying in",
    "Running the program",
    "Going on with the program",
    "before checkpoint",
    "Checkpoint taken",
    "No checkpoint",
    "Program done",
    "Copying out",
    "Sanitizing",
    "Finish called",
)
"""Of the log: where harm hit."""


class Loss(AssertionError):
    """What must never be."""


@dataclass(slots=True)
class Outcome:
    """How a round went."""

    plan: Plan
    hits: list[tuple[Harm, str]] = field(default_factory=list)
    """The harm that was really done, and the chapter that it hit."""
    missed: list[Harm] = field(default_factory=list)
    """That for which the episode was over too soon, or never came to the point."""
    went_on: Counter[str] = field(default_factory=Counter)
    """From what each further episode did."""
    loss: str = ""
    place: str = ""
    """The folder, where it is kept."""
    lasted_s: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether the harm that the round is of was done."""
        return any(harm is self.plan.harms[self.plan.main] for harm, _ in self.hits)


def run_round(plan: Plan, *, keep_losses: bool = True) -> Outcome:
    """Do it all. A round with a loss says so in its outcome, and its folder stays where that is wanted."""
    outcome = Outcome(plan)
    began_s = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="vmwrapper-torture-"))
    try:
        with _small_disk(place) if plan.way is Way.FULL_DISK else _folder(place) as folder:
            try:
                _Round(plan, folder, outcome).run()
            except Loss as loss:
                outcome.loss = str(loss)
            finally:
                _end_all(place)
            if outcome.loss and keep_losses and plan.way is Way.FULL_DISK:
                shutil.copytree(folder, place / "kept", ignore=shutil.ignore_patterns("filling"))
    finally:
        outcome.lasted_s = time.monotonic() - began_s
        if outcome.loss and keep_losses:
            outcome.place = str(place)
        else:
            shutil.rmtree(place, ignore_errors=True)
    return outcome


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    (place / "job").mkdir()
    yield place / "job"


@contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK_MIB}m", "tmpfs", disk], check=True)
    try:
        (disk / "job").mkdir()
        yield disk / "job"
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _processes_of(place: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(place) in word for word in process.cmdline()):
                yield process


def _end_all(place: Path) -> None:
    for process in _processes_of(place):
        with suppress(psutil.Error):
            process.kill()


class _Episode:
    """One run of vmwrapper, or of a client and its app."""

    def __init__(self, folder: Path, harm: Harm | None, number: int, *, under_client: bool) -> None:
        self.folder = folder
        self.harm = harm
        self.under_client = under_client
        self.log_file = folder.parent / f"log-{number}"
        self.mark = folder.parent / f"mark-{number}"
        fault = ["none", "WRAPPER", "1", str(self.mark)]
        if harm:
            fault = [harm.point, harm.kind.name, str(harm.nth), str(self.mark)]
        job_file = str(folder / "job.xml")
        python = [sys.executable, "-P", "-m"]
        if under_client:
            argv = [*python, "tests.torture.client", job_file, str(harm.suspend_s if harm else 0.0), *fault]
        else:
            argv = [*python, "tests.torture.faulty", *fault, "run", job_file]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                argv, stderr=log, stdout=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=_env()
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wrapper(self) -> psutil.Process | None:
        """The process of vmwrapper, if it runs."""
        pid = self.process.pid
        if self.under_client:
            found = re.findall(r"started the app, pid (\d+)", self.log)
            if not found:
                return None
            pid = int(found[-1])
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and "tests.torture.faulty" in process.cmdline():
                return process
        return None

    def machines(self) -> list[psutil.Process]:
        found = []
        for process in _processes_of(self.folder):
            with suppress(psutil.Error):
                if any(word.startswith("guest=vmwrapper ") for word in process.cmdline()):
                    found.append(process)
        return found

    def chapter(self) -> str:
        """What the log told last."""
        found = [(self.log.rfind(text), text) for text in _CHAPTERS]
        position, text = max(found)
        task = "task 2: " if "Processing task 2" in self.log else ""
        return task + (text if position >= 0 else "start")

    def wait(self, limit_s: float) -> None:
        """For its end, with that of all its processes."""
        ends_s = time.monotonic() + limit_s
        while time.monotonic() < ends_s:
            if self.ended() and not self.wrapper() and not self.machines():
                return
            time.sleep(_LOOK_S)
        raise Loss(f"it has not ended after {limit_s:.0f} s: {self.chapter()}")


def _env() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


class _Round:
    def __init__(self, plan: Plan, folder: Path, outcome: Outcome) -> None:
        self._plan = plan
        self._folder = folder
        self._outcome = outcome
        self._slot = folder / SLOT_FOLDER if plan.way.needs_client else folder
        self._before: Record | None = None
        self._is_first = True
        self._floors: dict[int, int] = {}
        self._is_over = False
        self._may_go_back = False

    def run(self) -> None:
        program.write_job(self._folder, seed=self._plan.number, steps=self._plan.steps)
        given = {path.name for path in self._folder.iterdir()}
        for number, harm in enumerate([*self._plan.harms, None]):
            episode = _Episode(self._folder, harm, number, under_client=self._plan.way.needs_client)
            if harm:
                self._harm(episode, harm)
            episode.wait(_END_LIMIT_S if harm and episode.ended() else _EPISODE_LIMIT_S)
            self._judge(episode)
            if self._is_over:
                break
        if not self._is_over:
            raise Loss("the last episode, which was not harmed, did not end well")
        self._check_outputs(given)

    # The harm

    def _harm(self, episode: _Episode, harm: Harm) -> None:
        if harm.way.at_point:
            episode.wait(_EPISODE_LIMIT_S)
            done = episode.mark.exists()
            where = harm.point
        else:
            done = self._come_to_moment(episode, harm)
            where = episode.chapter()
            done = done and self._do(episode, harm)
        if done:
            self._outcome.hits.append((harm, where))
        else:
            self._outcome.missed.append(harm)

    def _come_to_moment(self, episode: _Episode, harm: Harm) -> bool:
        while harm.chapter and episode.log.count(harm.chapter) < harm.chapter_nth:
            if episode.ended():
                return False
            time.sleep(_LOOK_S)
        ends_s = time.monotonic() + harm.delay_s
        while (left_s := ends_s - time.monotonic()) > 0:
            if episode.ended():
                return False
            time.sleep(min(left_s, _LOOK_S))
        return not episode.ended()

    def _do(self, episode: _Episode, harm: Harm) -> bool:  # noqa: C901, PLR0911  (a table)
        wrapper, machines = episode.wrapper(), episode.machines()
        if wrapper is None and harm.way not in (Way.CLIENT, Way.CLIENT_BOTH, Way.CLIENT_QUIT, Way.FULL_DISK):
            return False
        match harm.way:
            case Way.WRAPPER | Way.CLIENT_WRAPPER:
                return _kill(wrapper)
            case Way.QEMU:
                return _kill(*machines)
            case Way.BOTH:
                return bool(machines) and _kill(*machines, wrapper)
            case Way.TERM:
                return _kill(wrapper, number=signal.SIGTERM)
            case Way.TERM_THEN_KILL:
                _kill(wrapper, number=signal.SIGTERM)
                time.sleep(harm.then_s)
                return not episode.ended() and _kill(wrapper)
            case Way.CLIENT:
                episode.process.kill()
            case Way.CLIENT_BOTH:
                episode.process.kill()
                _kill(wrapper)
            case Way.CLIENT_QUIT:
                episode.process.terminate()
            case Way.FULL_DISK:
                return self._fill(episode, harm)
        return True

    def _fill(self, episode: _Episode, harm: Harm) -> bool:
        filling = self._folder.parent / "filling"
        with filling.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(MIB))
        ends_s = time.monotonic() + harm.then_s
        while time.monotonic() < ends_s and not episode.ended():
            time.sleep(_LOOK_S)
        filling.unlink()
        return True

    # What must be so

    def _judge(self, episode: _Episode) -> None:
        log = episode.log
        self._may_go_back = episode.harm is not None and episode.harm.point in STATES_BACK and episode.mark.exists()
        if said := [text for text in _NEVER if text in log]:
            raise Loss(f"{episode.log_file.name} has {said[0]!r}")
        self._judge_end(episode, log)
        self._judge_start(log)
        for step, number in re.findall(r"torture: step (\d+) before checkpoint (\d+)", log):
            self._floors[int(number)] = int(step)
        self._judge_record()

    def _judge_end(self, episode: _Episode, log: str) -> None:
        status = episode.process.returncode
        allowed = _CLIENT_STATUSES if self._plan.way.needs_client else _STATUSES
        if status not in allowed or (status != 0 and episode.harm is None):
            raise Loss(f"{episode.log_file.name} ended with status {status}")
        ended = re.findall(r"torture: (\d+) descriptors and (\d+) processes left", log)
        if ended and ended[-1] != ("0", "0"):
            raise Loss(f"at the end of {episode.log_file.name} there were {ended[-1]} descriptors, processes too many")
        self._is_over = status == 0

    def _judge_start(self, log: str) -> None:
        """Whether the episode did what the record said that it need not do again."""
        tasks = re.findall(r"Processing task (\d)", log)
        if self._is_first or not tasks:
            self._is_first = False
            return
        record = self._before or Record(job="")
        if not self._plan.way.needs_client and record.tasks_in_place == 2:
            self._outcome.went_on["anew, as the job was done"] += 1  # as by hand it should
            return
        if int(tasks[0]) != record.tasks_done + 1:
            raise Loss(f"it began with task {tasks[0]}, and {record.tasks_done} had been done")
        for text in ("The task begins anew", "The job begins anew", "can't be used"):
            if text in log and not self._may_go_back:
                raise Loss(f"a good checkpoint was not used: {text!r}")
        starts = re.findall(r"as it was at checkpoint (\d+)|(Running) the program", log)
        if not starts:
            return
        if record.checkpoints:
            self._judge_going_on(record.checkpoints[0].snapshot.number, starts[0], log)
        elif starts[0][0]:
            raise Loss("it went on from a checkpoint that the record does not have")
        else:
            self._outcome.went_on["with the next task" if record.tasks_done else "anew, before any checkpoint"] += 1

    def _judge_going_on(self, newest: int, start: tuple[str, str], log: str) -> None:
        number, is_anew = start
        if number and int(number) == newest:
            self._outcome.went_on["from the newest checkpoint"] += 1
        elif self._may_go_back:
            self._outcome.went_on["anew, as none could be read" if is_anew else "from an older checkpoint"] += 1
            return
        elif is_anew:
            raise Loss("the program was started anew, and there were checkpoints")
        else:
            raise Loss(f"it went on from checkpoint {number}, and {newest} was the newest")
        floor = self._floors.get(newest, 0)
        step = re.search(r"goes on at step (\d+)", log)
        if step and int(step[1]) < floor:
            raise Loss(f"it went on at step {step[1]}; checkpoint {newest} was taken after {floor}")

    def _judge_record(self) -> None:
        """Whether all that the next episode needs is there."""
        try:
            record = read_record(self._slot)
        except VmwrapperError as error:
            raise Loss(f"the record can't be read: {error}") from error
        before, self._before = self._before, record
        if self._is_over:
            return
        if record is None and (self._slot / RECORD_FILE).exists():
            raise Loss("the record makes no sense")
        # By hand it is removed when the job is done, and begun with when that is done once more.
        may_go = self._may_go_back or (not self._plan.way.needs_client and (self._folder / "short.txt").exists())
        if before and not may_go and (record is None or _position(record) < _position(before)):
            raise Loss(f"the record went back from {_position(before)} to {_position(record) if record else 'nothing'}")
        if record:
            self._judge_files(record)

    def _judge_files(self, record: Record) -> None:
        folder = self._slot / ".vmwrapper"
        for checkpoint in record.checkpoints:
            one = saved(checkpoint.snapshot)
            if absent := [name for name in one.files if not (folder / name).is_file()]:
                raise Loss(f"checkpoint {one.number} lacks {absent[0]}")
            if digest(folder / one.state_file, Event()) != one.state_digest:
                raise Loss(f"the state of checkpoint {one.number} is damaged")
            for names in one.layers.values():
                if len(names) > _MOST_LAYERS + len(self._outcome.hits):  # a kill before a merge leaves one more
                    raise Loss(f"checkpoint {one.number} has {len(names)} layers")

    def _check_outputs(self, given: set[str]) -> None:
        wanted = program.expected(seed=self._plan.number, steps=self._plan.steps)
        for name, content in wanted.items():
            if not (self._folder / name).is_file() or (self._folder / name).read_bytes() != content:
                raise Loss(f"the output {name} is wrong")
        here = {path.name for path in self._folder.iterdir()} - given - wanted.keys() - {SLOT_FOLDER}
        if here:
            raise Loss(f"left behind: {', '.join(sorted(here))}")
        if self._plan.way.needs_client:
            log = max(self._folder.parent.glob("log-*")).read_text(errors="replace")
            if "left in the slot: nothing" not in log:
                raise Loss("something was left in the slot: see the end of the log")
        if left := [process.cmdline() for process in _processes_of(self._folder)]:
            raise Loss(f"left running: {left[0]}")


def _position(record: Record) -> tuple[int, int]:
    return record.tasks_done, record.checkpoints[0].snapshot.number if record.checkpoints else 0


def _kill(*processes: psutil.Process | None, number: int = signal.SIGKILL) -> bool:
    """Whether one of them was there."""
    found = 0
    for process in filter(None, processes):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            found += 1
    return found > 0
