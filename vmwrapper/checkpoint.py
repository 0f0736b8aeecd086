"""The record of what is safe: what the next episode of a job need not do again."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vmwrapper.boinc.api import Operations
from vmwrapper.boinc.init_data import InitData
from vmwrapper.durable import write_durably
from vmwrapper.errors import GivenUp, HostDiskFailed, TemporaryFailure
from vmwrapper.folders import RECORD_FILE
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.job.resolve import ResolvedTask
from vmwrapper.outputs import put_in_place_late

log = logging.getLogger(__name__)

_VERSION = 3
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far a job is while the program of a task runs."""

    cpu_time_s: float
    """Of the whole job, over all episodes."""
    elapsed_s: float
    """The same of the running time."""
    fraction_of_task: float | None
    """As the program had said; None where it is estimated."""
    program_ran_s: float
    """Running time."""
    floating_point_operations: float
    """Of the task."""
    integer_operations: float
    guest_cpu_time_s: float
    """As the guest had said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A snapshot of the machine in which a task's program runs, and how far the job was then."""

    reached: Reached
    snapshot: Snapshot
    backend: str
    """The hypervisor's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One job's. All figures are totals over all episodes, as of the end of the last task that is done."""

    job: str
    """The `fingerprint` of the job that it belongs to; empty where none has been read."""
    tasks_done: int = 0
    """From the first on; their outputs are safe."""
    tasks_in_place: int = 0
    """And in their places: all but the last one's, where an episode was ended when it was about to put them there."""
    cpu_time_s: float = 0.0
    elapsed_s: float = 0.0
    """Running time."""
    floating_point_operations: float = 0.0
    integer_operations: float = 0.0
    failed_tries: int = 0
    """Temporary exits in a row since then, all for the same reason."""
    failed_as: str = ""
    """That reason's kind of error."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Of the task after those that are done, newest first."""

    @property
    def safe_cpu_time_s(self) -> float:
        """As of the last checkpoint, or end of a task."""
        return self.checkpoints[0].reached.cpu_time_s if self.checkpoints else self.cpu_time_s

    @property
    def operations(self) -> Operations:
        return Operations(floating_point=self.floating_point_operations, integer=self.integer_operations)


def fingerprint(job_file: Path, tasks: tuple[ResolvedTask, ...]) -> str:
    """What a job is made of: its file's content, and size and time of what it reads that it does not write itself."""
    digest = hashlib.sha256()
    written = {file for resolved in tasks for file in resolved.outputs.values()}
    for resolved in tasks:
        for file in (resolved.image, *resolved.inputs.values(), *resolved.packages.values()):
            if file.resolve() not in written:
                state = file.stat()
                digest.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
    return f"{_content(job_file)} {digest.hexdigest()}"


def _content(job_file: Path) -> str:
    return hashlib.sha256(job_file.read_bytes()).hexdigest()


def record_of_end(slot: Path, job_file: Path, tasks: int) -> Record | None:
    """The slot's record, if it says that all of so many tasks of this job file are done, and nothing is left to do."""
    record = read_record(slot)
    if record and record.tasks_in_place == tasks and record.job.startswith(_content(job_file)):
        return record
    return None


def read_record(slot: Path) -> Record | None:
    """The slot's record; None where there is none, or none that makes sense, which the log tells.

    Raises HostDiskFailed where it can't be read just now.
    """
    path = slot / RECORD_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostDiskFailed(f"can't read {path}: {error.strerror}") from error
    try:
        return _parsed(content)
    except (ValueError, RecursionError) as error:
        log.warning("The job begins anew, since %s can't be used: %s", path, one_line(str(error)))
        return None


def last_record(slot: Path, job: str, tasks: Sequence[ResolvedTask], client: InitData) -> Record:
    """What is safe of the job with this fingerprint: where no record says that, what the client says.

    Outputs that an earlier episode was about to put in place are put there. Raises HostDiskFailed.
    """
    record = read_record(slot)
    if record and record.job == job:
        return _gone_on(slot, record, tasks)
    if record and (record.tasks_done or record.checkpoints):
        log.warning("The job begins anew: its files are not those of the earlier episode")
    return Record(
        job=job,
        cpu_time_s=client.checkpoint_cpu_time_s,
        elapsed_s=client.starting_elapsed_time_s,
        failed_tries=record.failed_tries if record else 0,
        failed_as=record.failed_as if record else "",
    )


def _gone_on(slot: Path, record: Record, tasks: Sequence[ResolvedTask]) -> Record:
    done = tasks[: record.tasks_done]
    if record.tasks_in_place < record.tasks_done:
        put_in_place_late(done[-1].outputs.values())
        record = replace(record, tasks_in_place=record.tasks_done)
        write_record(slot, record)
    for number, task in enumerate(done):
        if absent := [name for name, file in task.outputs.items() if not file.exists()]:
            log.warning("Going on behind %d task(s) only: the next one's %s is missing", number, one_line(absent[0]))
            return replace(record, tasks_done=number, tasks_in_place=number, checkpoints=())
    if done:
        log.info("Going on behind %d task(s) that an earlier episode did", len(done))
    return record


def count_try(slot: Path, failure: TemporaryFailure, *, ran_s: float) -> None:
    """Let a failure know how many tries in a row have failed like it. Raises GivenUp where these are too many.

    One after a long time, which the episode's `ran_s` tells, is the first.
    """
    kind = type(failure).__name__
    try:
        record = read_record(slot) or Record(job="")
        goes_on = record.failed_as == kind and ran_s <= failure.longest_delay_s
        failure.tries = record.failed_tries + 1 if goes_on else 1
        if failure.tries > failure.most_tries:
            raise GivenUp(failure) from failure
        write_record(slot, replace(record, failed_tries=failure.tries, failed_as=kind))
    except HostDiskFailed as failed:
        log.warning("This try is not counted: %s", failed)


def write_record(slot: Path, record: Record) -> None:
    """Replace the slot's record durably. Raises HostDiskFailed, and then leaves the last one."""
    write_durably(slot / RECORD_FILE, json.dumps({"version": _VERSION, **asdict(record)}, indent=1).encode())


def remove_record(slot: Path) -> None:
    """Let the next run in the slot begin anew."""
    (slot / RECORD_FILE).unlink(missing_ok=True)


def _parsed(content: bytes) -> Record:
    """Raises ValueError for what no record of this version says."""
    found = json.loads(content)
    if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
        raise ValueError(f"it is no record of version {_VERSION}")
    record: Record = _read(Record, found)
    if not record.tasks_done - 1 <= record.tasks_in_place <= record.tasks_done:
        raise ValueError("tasks_in_place makes no sense")
    return record


def _read(kind: type, found: Any) -> Any:
    """A dataclass out of what JSON made of it."""
    kinds: dict[str, Any] = {field.name: field.type for field in fields(kind)}
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        raise ValueError("a figure is missing, or one too many")
    return kind(**{name: _figure(name, value, kinds[name]) for name, value in found.items()})


def _figure(name: str, value: Any, kind: Any) -> Any:
    if kind in (Reached, Snapshot):
        return _read(kind, value)
    if kind == tuple[Checkpoint, ...] and isinstance(value, list):
        return tuple(_read(Checkpoint, one) for one in value)
    if kind == float | None:
        return None if value is None else _figure(name, value, float)
    if type(value) is not kind or (kind is not str and not 0 <= value < math.inf):
        raise ValueError(f"{name} makes no sense")
    return value
