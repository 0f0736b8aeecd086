"""What may be on the disk after a power cut, made of a recording: to start programs on it and see what they lost.

    recording = Recording.read(log)
    for cut in sample_cuts(recording, how_many=50, rng=Random(7)):
        materialize(recording, cut, folder)  # `folder` is empty; `cut` prints as what makes it again

The model is stricter than file systems that people use (ext4, XFS, Btrfs), so that a program which passes leans on
nothing but what POSIX promises. At a cut after some operation
- a file's content has all that was done before its last fsync or fdatasync. Of what was done later there is nothing,
  everything, or some: of each write all, nothing or some sectors of 512 bytes, in any order, each size with or without
  its data (then there are zeros). A sector is never older than another part of itself;
- a folder's names are those of its last fsync; of the later changes nothing is there, everything, or what happened up
  to some moment, another one in each folder. A rename is there wholly or not at all, also between folders;
- syncing a file doesn't keep its new name, syncing a folder doesn't keep the content of what is in it, and closing or
  renaming keeps nothing. A file whose name is there without its content is empty, or has zeros.

Not simulated: disks that lie about a flush, sectors torn in themselves or turned bad, garbage where zeros are; names of
one folder out of order; damage to the file system; times and owners (files have the present ones; modes are there at
once); sync() and syncfs(), which count for nothing; the cut in the middle of a fsync, other than as a cut before it.
"""

import argparse
import io
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import BinaryIO

from .content import Content, Fate, survivor
from .operations import (
    ROOT,
    ContentOperation,
    Create,
    Link,
    Mark,
    NameOperation,
    Operation,
    Recording,
    Rename,
    SetMode,
    SyncFile,
    SyncFolder,
    Unlink,
    Write,
)

_PIVOTAL = (Link, Mark, Rename, SyncFile, SyncFolder, Unlink)
_NEAR = 2
_NEAR_SHARE = 0.75
_COPIED_AT_ONCE = 1 << 20

Names = Mapping[int, Mapping[str, int]]
"""Of each folder, what has which name."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Between two operations, and what becomes of those that weren't synced."""

    after: int
    """So many operations."""
    contents: Fate = Fate.NONE
    names: Fate = Fate.NONE
    seed: int = 0
    """For what is random."""


EXTREMES = tuple((contents, names) for contents in (Fate.NONE, Fate.ALL) for names in (Fate.NONE, Fate.ALL))
FATES = tuple((contents, names) for contents in Fate for names in Fate)


def every_cut(recording: Recording, *, random: int = 4) -> Iterator[Cut]:
    """After each operation the four extremes, and so many that are random in all."""
    for after in range(recording.begun, len(recording.operations) + 1):
        for contents, names in EXTREMES:
            yield Cut(after, contents, names)
        for seed in range(random):
            yield Cut(after, Fate.RANDOM, Fate.RANDOM, seed)


def sample_cuts(recording: Recording, *, how_many: int, rng: Random) -> list[Cut]:
    """Different ones, in order, mostly close to what makes a difference; fewer where there aren't so many."""
    first, last = recording.begun, len(recording.operations)
    pivots = [number for number in range(first, last) if isinstance(recording.operations[number], _PIVOTAL)]
    cuts: set[Cut] = set()
    for _ in range(20 * how_many):
        if len(cuts) == how_many:
            break
        if pivots and rng.random() < _NEAR_SHARE:
            after = rng.choice(pivots) + rng.randint(1 - _NEAR, _NEAR)
        else:
            after = rng.randint(first, last)
        contents, names = rng.choice(FATES)
        seed = rng.getrandbits(32) if Fate.RANDOM in {contents, names} else 0
        cuts.add(Cut(min(max(after, first), last), contents, names, seed))
    return sorted(cuts, key=lambda cut: (cut.after, cut.seed))


def materialize(recording: Recording, cut: Cut, into: Path) -> None:
    """Fill an empty folder with what the disk may hold. The same cut gives the same, ever again."""
    operations = recording.operations[: cut.after]
    data = io.BytesIO(recording.data) if isinstance(recording.data, bytes) else recording.data.open("rb")
    with data:
        disk = _Disk(_inodes(operations), _surviving_contents(operations, cut), data)
        disk.fill(into, _surviving_names(operations, cut.names, Random(cut.seed)), ROOT)


class _Disk:
    """Makes files and folders, each inode once."""

    def __init__(self, inodes: Mapping[int, Create], contents: Mapping[int, Content], data: BinaryIO) -> None:
        self._inodes = inodes
        self._contents = contents
        self._data = data
        self._made: dict[int, Path] = {}

    def fill(self, folder: Path, names: Names, number: int) -> None:
        for name, inode in names.get(number, {}).items():
            path = folder / name
            if inode in self._made:
                os.link(self._made[inode], path, follow_symlinks=False)
                continue
            self._made[inode] = path
            mode = self._inodes[inode].mode
            if stat.S_ISDIR(mode):
                path.mkdir()
                self.fill(path, names, inode)
            elif stat.S_ISLNK(mode):
                path.symlink_to(self._inodes[inode].target)
                continue
            elif stat.S_ISREG(mode):
                self._write(path, self._contents.get(inode, Content()))
            else:
                os.mknod(path, mode)
            path.chmod(stat.S_IMODE(mode))

    def _write(self, path: Path, content: Content) -> None:
        with path.open("xb", buffering=0) as file:
            for start, end, position in content.extents:
                if position is None or start >= content.size:
                    continue
                file.seek(start)
                self._data.seek(position)
                left = min(end, content.size) - start
                while left:
                    left -= file.write(self._data.read(min(left, _COPIED_AT_ONCE)))
            file.truncate(content.size)


def _inodes(operations: Sequence[Operation]) -> dict[int, Create]:
    """With the modes that they have in the end."""
    inodes: dict[int, Create] = {}
    for operation in operations:
        if isinstance(operation, Create):
            inodes[operation.inode] = operation
        elif isinstance(operation, SetMode) and operation.inode in inodes:
            was = inodes[operation.inode]
            inodes[operation.inode] = replace(was, mode=stat.S_IFMT(was.mode) | operation.mode)
    return inodes


def _surviving_contents(operations: Sequence[Operation], cut: Cut) -> dict[int, Content]:
    changes: defaultdict[int, list[ContentOperation]] = defaultdict(list)
    synced: dict[int, int] = {}
    for operation in operations:
        if isinstance(operation, ContentOperation):
            changes[operation.inode].append(operation)
        elif isinstance(operation, SyncFile):
            synced[operation.inode] = len(changes[operation.inode])
    return {
        inode: survivor(done, synced=synced.get(inode, 0), fate=cut.contents, rng=Random(f"{cut.seed} {inode}"))
        for inode, done in changes.items()
    }


def _surviving_names(operations: Sequence[Operation], fate: Fate, rng: Random) -> Names:
    journals: defaultdict[int, list[int]] = defaultdict(list)  # of each folder, the numbers of its changes
    synced: dict[int, int] = {}  # of each folder, before which number all changes are on the disk
    for number, operation in enumerate(operations):
        if isinstance(operation, SyncFolder):
            synced[operation.folder] = number
        elif isinstance(operation, NameOperation):
            for folder in _folders(operation):
                journals[folder].append(number)
    between = [number for number, operation in enumerate(operations) if len(_folders(operation)) == 2]
    _agree(synced, operations, between, later=True)
    moments = {folder: synced.get(folder, 0) for folder in journals}
    if fate is Fate.ALL:
        moments = dict.fromkeys(journals, len(operations))
    elif fate is Fate.RANDOM:
        for folder, journal in journals.items():
            possible = [moments[folder], *(one + 1 for one in journal if one >= moments[folder])]
            moments[folder] = rng.choice((possible[0], possible[-1], rng.choice(possible)))
        _agree(moments, operations, between, later=False)
    names: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for number, operation in enumerate(operations):
        folders = _folders(operation)
        if folders and all(number < moments[folder] for folder in folders):
            _apply(operation, names)
    return names


def _folders(operation: Operation) -> set[int]:
    if isinstance(operation, Rename):
        return {operation.folder, operation.new_folder}
    return {operation.folder} if isinstance(operation, NameOperation) else set()


def _agree(moments: dict[int, int], operations: Sequence[Operation], between: Sequence[int], *, later: bool) -> None:
    """What moves between two folders has done so in both: put the moment of one of them later or earlier."""
    changed = True
    while changed:
        changed = False
        for number in between:
            folders = _folders(operations[number])
            there = {folder for folder in folders if number < moments.get(folder, 0)}
            if len(there) == 1:
                changed = True
                if later:
                    moments.update(dict.fromkeys(folders - there, number + 1))
                else:
                    moments.update(dict.fromkeys(there, number))


def _apply(operation: Operation, names: Mapping[int, dict[str, int]]) -> None:
    match operation:
        case Create(folder, name, inode) | Link(folder, name, inode):
            names[folder][name] = inode
        case Unlink(folder, name):
            del names[folder][name]
        case Rename(folder, name, new_folder, new_name):
            if names[folder][name] != names[new_folder].get(new_name):  # else POSIX has both names stay
                names[new_folder][new_name] = names[folder].pop(name)


def _listed(recording: Recording) -> Iterator[str]:
    """One line an operation, but only one for the writes to a file that follow each other."""
    since, length = 0, 0
    for number, operation in enumerate(recording.operations):
        following = recording.operations[number + 1] if number + 1 < len(recording.operations) else None
        if isinstance(operation, Write):
            length += operation.length
            if isinstance(following, Write) and following.inode == operation.inode:
                continue
            yield f"{number + 1}\tWrite(inode={operation.inode}), {number + 1 - since} times, {length} bytes"
        else:
            yield f"{number + 1}\t{operation}"
        since, length = number + 1, 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Lists a recording, samples cuts of it, or makes one.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--sample", type=int, metavar="HOW_MANY", help="print so many cuts; --seed says which")
    parser.add_argument("--after", type=int, help="make the cut after so many operations")
    parser.add_argument("--contents", type=Fate, default=Fate.NONE, metavar="none|all|random")
    parser.add_argument("--names", type=Fate, default=Fate.NONE, metavar="none|all|random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, help="an empty folder for it")
    asked = parser.parse_args()
    recording = Recording.read(asked.log)
    if asked.after is not None and asked.into is not None:
        materialize(recording, Cut(asked.after, asked.contents, asked.names, asked.seed), asked.into)
    elif asked.sample:
        for cut in sample_cuts(recording, how_many=asked.sample, rng=Random(asked.seed)):
            print(f"--after {cut.after} --contents {cut.contents.value} --names {cut.names.value} --seed {cut.seed}")
    else:
        print(*_listed(recording), sep="\n")


if __name__ == "__main__":
    main()
