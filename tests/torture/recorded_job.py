"""Records the job from its start to its end, and plays back what a power cut at some moment would have left of it."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from vmwrapper.digest import digest
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE

from . import job
from .landmarks import Landmarks, Named, Reached, named
from .operations import Recording
from .power_cut import Cut, materialize
from .recorded_folder import recorded_folder

REPOSITORY = Path(__file__).parents[2]
VMWRAPPER = Path(sys.executable).with_name("vmwrapper")
LIMIT_S = 300
BOOT_LIMIT_S = 40
"""As slow as this machine may be."""
_LEAKS_ONLY = 3  # source: QEMU's docs/tools/qemu-img.rst
_TROUBLE = re.compile("No checkpoint|can't be|anew|is missing|WARNING|Traceback")


class NotRecorded(Exception):
    """The job did not go as it has to even without a power cut; the message has its log."""


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of one recording. Where the job is recorded it is played back, too, since it knows absolute paths."""

    folder: Path

    @property
    def slot(self) -> Path:
        return self.folder / "slot"

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def landmarks(self) -> Landmarks:
        return Landmarks(Recording.read(self.log))


def record(folder: Path, *, quits_after: int | None = None) -> Place:
    """Run the job, which stops upon request after so many checkpoints and is started again. Raises NotRecorded."""
    place = Place(folder)
    backing = folder / "backing"
    for each in (backing, place.inputs):
        each.mkdir(parents=True)
    job.write_job(backing, place.inputs)
    with recorded_folder(place.slot, backing=backing, log=place.log) as recorded:
        if quits_after is not None and _run_recorded(place, recorded.mark, quits_after) == 0:
            raise NotRecorded("the job did not stop upon request")
        if status := _run_recorded(place, recorded.mark, None):
            raise NotRecorded(f"the job ended with {status}")
        if wrong := _wrong_outputs(place.slot):
            raise NotRecorded(f"wrong outputs: {wrong}")
    shutil.rmtree(backing)
    return place


def _run_recorded(place: Place, mark: Callable[[str], None], quits_after: int | None) -> int:
    """Write each line of the wrapper's log into the recording; its exit status."""
    taken = 0
    said = []
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.often", "run", place.slot / "job.xml"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            mark(line.rstrip("\n"))
            said.append(line)
            taken += "Checkpoint taken" in line
            if taken == quits_after and "Checkpoint taken" in line:
                process.send_signal(signal.SIGTERM)
    with (place.folder / "wrapper.err").open("a") as file:
        file.writelines(said)
    if trouble := [line for line in said if _TROUBLE.search(line)]:
        raise NotRecorded("".join(["trouble in the log: ", *trouble, *said]))
    return process.returncode


@dataclass(slots=True)
class Outcome:
    """Of one cut."""

    safe: Reached
    went_on_from: Reached | None = None
    problems: list[str] = field(default_factory=list)
    log: str = ""


def look(place: Place, landmarks: Landmarks, cut: Cut) -> Outcome:
    """Have the power cut there, and look at what is left, which is quick, but doesn't see what a guest would."""
    empty(place.slot)
    materialize(landmarks.recording, cut, place.slot)
    outcome = Outcome(landmarks.safe(cut.after))
    outcome.problems.extend(_before(place.slot, outcome.safe))
    return outcome


def play_back(place: Place, landmarks: Landmarks, cut: Cut) -> Outcome:
    """Have the power cut there, and the job go on until its end."""
    outcome = look(place, landmarks, cut)
    process = subprocess.run(
        [VMWRAPPER, "run", "--boot-limit", str(BOOT_LIMIT_S), place.slot / "job.xml"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        start_new_session=True,
    )
    outcome.log = process.stderr
    outcome.went_on_from = _went_on_from(process.stderr)
    outcome.problems.extend(_after(place, process.returncode, outcome))
    return outcome


def _before(slot: Path, safe: Reached) -> Iterator[str]:
    """What is wrong with the files that are left."""
    record = _named(slot)
    if isinstance(record, str):
        yield record
    elif record:
        if record.reached < safe:
            yield f"the record tells of {record.reached} only, where {safe} was safe"
        for layer in sorted(record.layers):
            yield from _wrong_layer(slot / MACHINE_FOLDER / layer)
        for state, of_bytes in record.states.items():
            yield from _wrong_state(slot / MACHINE_FOLDER / state, of_bytes)
    elif (0, 0) < safe < (2, 0):
        yield f"there is no record, where {safe} was safe"
    is_late = isinstance(record, Named) and record.in_place < record.reached.tasks_done
    if safe >= (2, 0) and not is_late:
        yield from _wrong_outputs(slot)


def _named(slot: Path) -> Named | str | None:
    try:
        return named((slot / RECORD_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        return f"the record makes no sense: {error}"


def _wrong_layer(layer: Path) -> Iterator[str]:
    node = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(layer)}}
    argv = ["qemu-img", "check", f"json:{json.dumps(node)}"]
    check = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if check.returncode not in {0, _LEAKS_ONLY}:
        yield f"{layer.name}: {(check.stdout + check.stderr).strip()[:300]}"


def _wrong_state(state: Path, of_bytes: str) -> Iterator[str]:
    if not state.is_file():
        yield f"there is no {state.name}"
    elif digest(state, Event()) != of_bytes:
        yield f"{state.name} is damaged"


def _after(place: Place, status: int, outcome: Outcome) -> Iterator[str]:
    if status != 0:
        yield f"exit status {status}"
    # By hand, a job that is done is begun anew by whoever starts it once more.
    if outcome.safe < (2, 0) and (outcome.went_on_from or Reached(0, 0)) < outcome.safe:
        yield f"went on from {outcome.went_on_from}, where {outcome.safe} was safe"
    yield from _wrong_outputs(place.slot)
    expected = {"job.xml", *job.OUTPUTS, *(path.name for path in place.inputs.iterdir())}
    if left := {path.name for path in place.slot.iterdir()} ^ expected:
        yield f"left behind, or missing: {sorted(left)}"
    for line in outcome.log.splitlines():
        if _TROUBLE.search(line):
            yield f"in the log: {line}"


def _went_on_from(log: str) -> Reached | None:
    """None where the job was begun anew."""
    tasks = re.search(r"Going on behind (\d+) task", log)
    [checkpoint] = re.findall(r"as it was at checkpoint (\d+)(?=.*Going on with the program)", log, re.DOTALL) or [0]
    reached = Reached(int(tasks[1]) if tasks else 0, int(checkpoint))
    return reached if reached > (0, 0) else None


def _wrong_outputs(slot: Path) -> Collection[str]:
    wrong = []
    for name, content in job.right_outputs().items():
        path = slot / name
        if not path.is_file():
            wrong.append(f"there is no {name}")
        elif path.read_bytes() != content:
            wrong.append(f"{name} has not the right content")
    return wrong


def empty(folder: Path) -> None:
    """Remove what is in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
