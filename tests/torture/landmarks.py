"""What a recording of a job says of itself: where its checkpoints and outputs became safe, and what was done where."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import NamedTuple

from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE

from .content import Content, Fate
from .operations import (
    ROOT,
    Allocate,
    ContentOperation,
    Create,
    Link,
    Mark,
    Operation,
    Recording,
    Rename,
    Resize,
    SyncFile,
    SyncFolder,
    Unlink,
    Write,
)
from .power_cut import Cut

_FATES = (
    *((contents, names) for contents in (Fate.NONE, Fate.ALL) for names in (Fate.NONE, Fate.ALL)),
    *[(Fate.RANDOM, Fate.RANDOM)] * 3,
    *[(Fate.RANDOM, Fate.ALL)] * 2,
    (Fate.ALL, Fate.RANDOM),
)


_MOST_TABLES = 3
"""Writes of a layer's tables in a row."""


class Reached(NamedTuple):
    """How far the job is. More is larger."""

    tasks_done: int
    checkpoint: int
    """The number of the task's newest one; 0 for none."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a record names."""

    reached: Reached
    in_place: int
    """So many tasks' outputs."""
    layers: frozenset[str]
    """Of all its checkpoints."""
    states: Mapping[str, str]
    """The digests of their states, by file name."""


class Place(Enum):
    """Where in the job's story a cut is."""

    RECORD = "record"
    """A record is written, synced, renamed, its folder is synced, or it is removed."""
    MERGE = "merge"
    """A layer changes that a checkpoint needs, or is synced."""
    TABLES = "tables"
    """A layer that a checkpoint needs has changed a little, as by its tables, and is not synced yet."""
    UNLINK = "unlink"
    """A file of the machine is removed."""
    CHECKPOINT = "checkpoint"
    """A state is written or synced, or a layer is made."""
    OUTPUT = "output"
    """An output arrives and is put in its place."""
    ELSEWHERE = "elsewhere"


_SHARES = {
    Place.RECORD: 6,
    Place.MERGE: 4,
    Place.TABLES: 4,
    Place.UNLINK: 2,
    Place.CHECKPOINT: 3,
    Place.OUTPUT: 2,
    Place.ELSEWHERE: 1,
}
"""Of all cuts."""


def named(record: bytes) -> Named:
    """What a record names, which is valid."""
    found = json.loads(record)
    checkpoints = [one["snapshot"] for one in found["checkpoints"]]
    described = {one["number"]: json.loads(one["description"]) for one in checkpoints}
    layers = [one["layers"].values() for one in described.values()]
    return Named(
        Reached(found["tasks_done"], max((one["number"] for one in checkpoints), default=0)),
        found["tasks_in_place"],
        frozenset(name for disks in layers for names in disks for name in names),
        {f"state-{number}": one["state_digest"] for number, one in described.items()},
    )


class Landmarks:
    """Of one recording, in which the job's log was marked line for line."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.records: list[Named] = []
        """Each that came into its place."""
        self.places: dict[Place, list[int]] = defaultdict(list)
        """Operations by where they are in the story."""
        self._safe: list[tuple[int, Reached]] = []
        self._read()

    def safe(self, after: int) -> Reached:
        """What a cut after so many operations must not undo."""
        return max((reached for known, reached in self._safe if known <= after), default=Reached(0, 0))

    def _read(self) -> None:
        names = _Names()
        told = _Told()
        frozen: frozenset[str] = frozenset()
        unsynced = False
        unsynced_writes: dict[int, list[int]] = defaultdict(list)
        for number, operation in enumerate(self.recording.operations):
            if number >= self.recording.begun:
                self.places[_place(operation, names, frozen)].append(number)
            names.apply(operation)
            if isinstance(operation, ContentOperation) and names.called[operation.inode] in frozen:
                unsynced_writes[operation.inode].append(number)
            elif isinstance(operation, SyncFile):
                writes = unsynced_writes.pop(operation.inode, [])
                self.places[Place.TABLES] += [] if len(writes) > _MOST_TABLES else writes[-1:]
            if isinstance(operation, Rename) and operation.new_name == RECORD_FILE:
                record = named(self._content(names.changes[names.root[RECORD_FILE]]))
                self.records.append(record)
                told.written(record)
                frozen = record.layers
                unsynced = True
            elif operation == SyncFolder(ROOT) and unsynced:
                unsynced = False
                self._safe.append((number + 1, self.records[-1].reached))
            elif isinstance(operation, Mark):
                self._safe.extend((number + 1, reached) for reached in told.safe_by(operation.text))

    def _content(self, changes: Sequence[ContentOperation]) -> bytes:
        content = Content()
        for change in changes:
            content.apply(change)
        whole = bytearray(content.size)
        assert not isinstance(self.recording.data, bytes)
        with self.recording.data.open("rb") as data:
            for start, end, position in content.extents:
                if position is not None:
                    data.seek(position)
                    whole[start : min(end, content.size)] = data.read(min(end, content.size) - start)
        return bytes(whole)

    def cuts(self, *, how_many: int, rng: Random) -> list[tuple[Cut, Place]]:
        """Different ones, in order, as their places have shares, all over each place."""
        found: dict[Cut, Place] = {}
        for place, share in _SHARES.items():
            wanted = max(1, round(how_many * share / sum(_SHARES.values())))
            for one in _spread(self.places[place], wanted, rng):
                contents, names = (Fate.RANDOM, Fate.ALL) if place is Place.TABLES else rng.choice(_FATES)
                seed = rng.getrandbits(32) if Fate.RANDOM in {contents, names} else 0
                behind = 1 if place is Place.TABLES else rng.randint(0, 1)
                found.setdefault(Cut(one + behind, contents, names, seed), place)
        chosen = rng.sample(sorted(found, key=lambda cut: (cut.after, cut.seed)), min(how_many, len(found)))
        return sorted(((cut, found[cut]) for cut in chosen), key=lambda pair: (pair[0].after, pair[0].seed))


class _Names:
    """What is called how, as operations change it."""

    def __init__(self) -> None:
        self.root: dict[str, int] = {}
        """What is in the recorded folder itself."""
        self.called: dict[int, str] = {}
        """The first name of each inode."""
        self.machine = -1
        """The machine's folder."""
        self.changes: dict[int, list[ContentOperation]] = defaultdict(list)
        """To each inode's content."""

    def apply(self, operation: Operation) -> None:
        match operation:
            case Create(folder, name, inode):
                self.called[inode] = name
                if folder == ROOT:
                    self.root[name] = inode
                if (folder, name) == (ROOT, MACHINE_FOLDER):
                    self.machine = inode
            case Unlink(1, name):
                self.root.pop(name)
            case Rename(1, name, 1, new_name):
                self.root[new_name] = self.root.pop(name)
            case Write(inode) | Resize(inode) | Allocate(inode):
                self.changes[inode].append(operation)


class _Told:
    """What the job's log says to be safe, which nobody may have to look up in a record."""

    def __init__(self) -> None:
        self._checkpoints: list[Reached] = []
        self._told = 0

    def written(self, record: Named) -> None:
        if record.reached.checkpoint and record.reached not in self._checkpoints:
            self._checkpoints.append(record.reached)

    def safe_by(self, line: str) -> Iterator[Reached]:
        if "Checkpoint taken" in line:
            yield self._checkpoints[self._told]
            self._told += 1
        elif "Processing task 2" in line:
            yield Reached(1, 0)
        elif "Finish called" in line:
            yield Reached(2, 0)


def _spread(places: Sequence[int], how_many: int, rng: Random) -> Iterator[int]:
    """One at random out of each of so many equal parts."""
    for number in range(how_many if places else 0):
        first, last = len(places) * number // how_many, len(places) * (number + 1) // how_many
        yield places[rng.randrange(first, max(last, first + 1))]


def _place(operation: Operation, names: _Names, frozen: frozenset[str]) -> Place:
    name = _name(operation, names.called)
    folder = getattr(operation, "folder", None)
    if RECORD_FILE in name or operation == SyncFolder(ROOT):
        return Place.RECORD
    if isinstance(operation, Unlink) and folder == names.machine:
        return Place.UNLINK
    if isinstance(operation, ContentOperation | SyncFile) and name in frozen:
        return Place.MERGE
    if name.startswith("state-") or name.endswith(".qcow2"):
        return Place.CHECKPOINT if not isinstance(operation, ContentOperation) or name[0] == "s" else Place.ELSEWHERE
    if folder == ROOT or name.startswith(".vmwrapper-"):
        return Place.OUTPUT
    return Place.ELSEWHERE


def _name(operation: Operation, called: dict[int, str]) -> str:
    match operation:
        case Rename():
            return operation.new_name
        case Create() | Unlink() | Link():
            return operation.name
        case Write() | Resize() | Allocate() | SyncFile():
            return called[operation.inode]
    return ""
