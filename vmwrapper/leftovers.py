"""What jobs that are gone have left in hypervisors, and its removal: the story of `vmwrapper gc`."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmwrapper.boinc.slot_lock import is_held, slot_lock
from vmwrapper.checkpoint import read_record
from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import HostDiskFailed, TemporaryFailure
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.interface import Hypervisor, Leftover


class State(StrEnum):
    """What became of something left over."""

    WOULD_REMOVE = "would remove"
    REMOVED = "removed"
    NOT_REMOVED = "not removed"


class Files(StrEnum):
    """What becomes of its files; the values end a sentence."""

    NONE = ""
    REMOVED = ", with its files"
    KEPT = "; its files stay, since its job can go on from a checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing left over."""

    hypervisor: str
    state: State
    what: str
    slot: str | None = None
    files: Files = Files.NONE
    reason: str = ""
    """Why it is not removed, on one line."""

    def __str__(self) -> str:
        return f"{self.state}: {self.what}" + (f": {self.reason}" if self.reason else self.files)


async def clear(hypervisors: Sequence[Hypervisor], *, removes: bool) -> list[Finding]:
    """What no living wrapper needs; `removes` is whether to change anything. What fails does not keep others."""
    findings = []
    for hypervisor in hypervisors:
        name = hypervisor.name
        try:
            leftovers = await hypervisor.leftovers()
        except TemporaryFailure as failed:
            what = f"what {name} may have"
            findings.append(Finding(hypervisor=name, state=State.NOT_REMOVED, what=what, reason=_one_line(failed)))
            continue
        findings += [
            await _cleared(name, leftover, removes=removes)
            for leftover in leftovers
            if not await asyncio.to_thread(is_held, leftover.slot)
        ]
    return findings


async def _cleared(hypervisor: str, leftover: Leftover, *, removes: bool) -> Finding:
    what, slot, files, reason = leftover.what, str(leftover.slot), Files.NONE, ""
    try:
        files = await asyncio.to_thread(_fate, leftover)
        if removes:
            files = await _remove(leftover)
        state = State.REMOVED if removes else State.WOULD_REMOVE
    except TemporaryFailure as failed:
        state, files, reason = State.NOT_REMOVED, Files.NONE, _one_line(failed)
    return Finding(hypervisor=hypervisor, state=state, what=what, slot=slot, files=files, reason=reason)


async def _remove(leftover: Leftover) -> Files:
    """Remove it while no job can begin in its slot."""
    with _locked(leftover.slot):
        files = await asyncio.to_thread(_fate, leftover)  # which a job that ended since our look may have changed
        await leftover.remove()
        if files is Files.REMOVED:
            await to_thread_and_back(_remove_folder, leftover.files)
        return files


def _one_line(failed: TemporaryFailure) -> str:
    return "; ".join(map(one_line, str(failed).splitlines()))


@contextmanager
def _locked(slot: Path) -> Iterator[None]:
    if slot.is_dir():
        with slot_lock(slot):
            yield
    else:
        yield


def _fate(leftover: Leftover) -> Files:
    """What is to become of its files. Raises HostDiskFailed. A link is nobody's folder."""
    if leftover.files.is_symlink() or not leftover.files.is_dir():
        return Files.NONE
    record = read_record(leftover.slot)
    return Files.KEPT if record and record.checkpoints else Files.REMOVED


def _remove_folder(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise HostDiskFailed(f"can't remove {error.filename or folder}: {error.strerror or error}") from error
