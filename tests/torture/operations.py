"""What programs did to a folder, in order: the operations, and the files that hold them.

A recording is a folder with `operations`, one JSON array a line (when, by the monotonic clock; kind; fields), and
`data`, the bytes that were written, one after another. An inode's number is the recorder's own: names and open
descriptors of a file share it, and it is never given again.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = 1
"""The inode of the recorded folder itself."""

BEGUN = "begun"
"""The text of the mark behind what was in the folder before anything was recorded."""


@dataclass(frozen=True, slots=True)
class Write:
    inode: int
    offset: int
    length: int
    position: int
    """Of its bytes in the recording's data."""


@dataclass(frozen=True, slots=True)
class Resize:
    """A truncation, to more or to less."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Allocate:
    """A fallocate: `grows` the file where it ends before the range, `zeroes` what was there."""

    inode: int
    offset: int
    length: int
    grows: bool
    zeroes: bool


@dataclass(frozen=True, slots=True)
class Create:
    """A new inode of any kind and its first name."""

    folder: int
    name: str
    inode: int
    mode: int
    """With the kind, as in st_mode."""
    target: str = ""
    """Of a symbolic link."""


@dataclass(frozen=True, slots=True)
class SetMode:
    inode: int
    mode: int


@dataclass(frozen=True, slots=True)
class Link:
    folder: int
    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class Unlink:
    """Or rmdir."""

    folder: int
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """Replaces what has the new name."""

    folder: int
    name: str
    new_folder: int
    new_name: str


@dataclass(frozen=True, slots=True)
class SyncFile:
    """fsync or fdatasync, which here promise the same."""

    inode: int


@dataclass(frozen=True, slots=True)
class SyncFolder:
    folder: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Changes nothing: says how far the recorded program was."""

    text: str


ContentOperation = Write | Resize | Allocate
NameOperation = Create | Link | Unlink | Rename
Operation = ContentOperation | NameOperation | SetMode | SyncFile | SyncFolder | Mark

_KINDS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in (Write, Resize, Allocate, Create, SetMode, Link, Unlink, Rename, SyncFile, SyncFolder, Mark)
}


class Log:
    """Writes a recording. What a program sees as done is in it: it is never behind, unless this machine fails."""

    def __init__(self, folder: Path) -> None:
        self._operations = os.open(folder / "operations", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._data = os.open(folder / "data", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._operations)
        os.close(self._data)

    def add(self, operation: Operation) -> None:
        line = json.dumps([time.monotonic(), type(operation).__name__, *astuple(operation)])
        os.write(self._operations, line.encode() + b"\n")

    def add_write(self, inode: int, offset: int, data: bytes | memoryview) -> None:
        position = self._position
        while self._position < position + len(data):
            self._position += os.write(self._data, data[self._position - position :])
        self.add(Write(inode, offset, len(data), position))


@dataclass(frozen=True)
class Recording:
    """What was recorded, for `power_cut`."""

    operations: Sequence[Operation]
    times: Sequence[float]
    """When each was done, as time.monotonic of any process."""
    data: Path | bytes
    """The bytes of the writes: a file, or themselves."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Also while it is being recorded."""
        operations: list[Operation] = []
        times = []
        with (folder / "operations").open() as lines:
            for line in lines:
                if line.endswith("\n"):
                    when, kind, *fields = json.loads(line)
                    operations.append(_KINDS[kind](*fields))
                    times.append(when)
        return cls(operations, times, folder / "data")

    @classmethod
    def of(cls, operations: Iterable[Operation], data: bytes = b"") -> Self:
        """Made by hand."""
        made = list(operations)
        return cls(made, [float(number) for number in range(len(made))], data)

    @property
    def begun(self) -> int:
        """How many of the operations only make what was in the folder before."""
        return self.operations.index(Mark(BEGUN)) + 1 if Mark(BEGUN) in self.operations else 0

    def marks(self, after: int) -> list[str]:
        """What was marked in the first `after` operations."""
        return [mark.text for mark in self.operations[self.begun : after] if isinstance(mark, Mark)]
