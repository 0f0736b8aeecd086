"""A file's content as pieces of a recording's data, and which pieces survive when its later changes weren't synced."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from enum import Enum
from random import Random

from .operations import Allocate, ContentOperation, Resize, Write

SECTOR = 512
_END = 1 << 62
_MOST_TEARS = 8

Range = tuple[int, int]
"""From, and up to without."""


class Fate(Enum):
    """Of what wasn't synced."""

    NONE = "none"
    ALL = "all"
    RANDOM = "random"


class Extents:
    """What ranges hold: a position in the data, or None for zeros. What was never put holds zeros, too."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[tuple[int, int, int | None]] = []

    def __iter__(self) -> Iterator[tuple[int, int, int | None]]:
        return iter(self._pieces)

    def put(self, start: int, end: int, position: int | None) -> None:
        if start >= end:
            return
        first, last = self._touched(start, end)
        left, right = [], []
        for old_start, old_end, old_position in self._pieces[first:last]:
            if old_start < start:
                left = [(old_start, start, old_position)]
            if old_end > end:
                right = [(end, old_end, None if old_position is None else old_position + end - old_start)]
        new = [*left, (start, end, position), *right]
        self._pieces[first:last] = new
        self._starts[first:last] = [piece[0] for piece in new]

    def within(self, start: int, end: int) -> list[Range]:
        """What was put of a range, in order; neighbours are joined."""
        found: list[Range] = []
        first, last = self._touched(start, end)
        for old_start, old_end, _ in self._pieces[first:last]:
            one = (max(start, old_start), min(end, old_end))
            if found and found[-1][1] == one[0]:
                one = (found.pop()[0], one[1])
            found.append(one)
        return found

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        first = bisect_right(self._starts, start)
        if first and self._pieces[first - 1][1] > start:
            first -= 1
        return first, bisect_left(self._starts, end)


class Content:
    """Of one file, as operations change it."""

    def __init__(self) -> None:
        self.size = 0
        self.extents = Extents()

    def apply(self, operation: ContentOperation) -> None:
        self.change(operation, [_range(operation)])
        self.resize(operation)

    def change(self, operation: ContentOperation, ranges: Sequence[Range]) -> None:
        """In some ranges of the operation's only, and the size stays."""
        for start, end in ranges:
            position = operation.position + start - operation.offset if isinstance(operation, Write) else None
            self.extents.put(start, end, position)

    def resize(self, operation: ContentOperation) -> None:
        match operation:
            case Resize(_, size):
                self.size = size
            case Write(_, offset, length, _) | Allocate(_, offset, length, True, _) if length:
                self.size = max(self.size, offset + length)


def survivor(operations: Sequence[ContentOperation], *, synced: int, fate: Fate, rng: Random) -> Content:
    """What is on the disk of a file, the first `synced` of whose changes certainly are."""
    content = Content()
    for operation in operations[: synced if fate is not Fate.ALL else None]:
        content.apply(operation)
    if fate is Fate.RANDOM:
        _apply_some(content, operations[synced:], rng)
    return content


def _apply_some(content: Content, operations: Sequence[ContentOperation], rng: Random) -> None:
    """Where something of a sector survived, so did all that the sector had been told before: memory has one copy."""
    density = rng.choice((0.1, 0.5, 0.9))
    grows_without_data = rng.random() < 0.5
    chosen = [_some_of(operation, density, rng) for operation in operations]
    later = Extents()
    surviving = []
    for operation, ranges in zip(reversed(operations), reversed(chosen), strict=True):
        for start, end in ranges:
            later.put(start - start % SECTOR, end + -end % SECTOR, None)
        surviving.append(later.within(*_range(operation)))
    for operation, ranges, kept in zip(operations, chosen, reversed(surviving), strict=True):
        content.change(operation, kept)
        if isinstance(operation, Write):
            if grows_without_data:
                content.resize(operation)
            elif kept:
                content.size = max(content.size, kept[-1][1])
        elif ranges:
            content.resize(operation)


def _range(operation: ContentOperation) -> Range:
    match operation:
        case Resize(_, size):
            return size, _END
        case Allocate(_, offset, _, _, False):
            return offset, offset
        case Write(_, offset, length, _) | Allocate(_, offset, length, _, _):
            return offset, offset + length


def _some_of(operation: ContentOperation, density: float, rng: Random) -> list[Range]:
    """All of it, nothing, or a write torn between sectors."""
    start, end = _range(operation)
    if rng.random() < density:
        return [(start, end)]
    if not isinstance(operation, Write) or rng.random() < 0.5:
        return []
    tears = range(start + SECTOR - start % SECTOR, end, SECTOR)
    places = sorted(rng.sample(tears, rng.randint(min(1, len(tears)), min(len(tears), _MOST_TEARS))))
    pieces = list(zip([start, *places], [*places, end], strict=True))
    return pieces[rng.randrange(2) :: 2]
