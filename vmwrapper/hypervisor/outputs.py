"""Files of a guest, on their way to the host."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmwrapper.errors import HostDiskFailed, TransferFailed
from vmwrapper.hostile import printable
from vmwrapper.hypervisor.checksum import Checksum
from vmwrapper.hypervisor.interface import FileKind

_EXCERPT = 100
_FACTS = re.compile(r"([0-9a-f]{1,8}):([0-9]{1,20}):-?[0-9]+")
_KINDS = {
    "f": FileKind.REGULAR,
    "d": FileKind.DIRECTORY,
    "l": FileKind.LINK,
    "s": FileKind.SPECIAL,
    "-": FileKind.MISSING,
}


@dataclass(frozen=True, slots=True)
class Output:
    """A file that will arrive, and where it goes to."""

    path: Path
    size: int
    executable: bool


def kinds(names: Iterable[str], letters: str) -> dict[str, FileKind]:
    """What each of the names is, by the letter that the guest said of it."""
    try:
        return {name: _KINDS[letter] for name, letter in zip(names, letters, strict=True)}
    except (KeyError, ValueError) as error:
        said = printable(letters, limit=_EXCERPT)
        raise TransferFailed(f"the guest does not say what each file is: {said!r}") from error


def output(path: Path, line: str) -> Output:
    """By the line that the guest said of it."""
    facts = _FACTS.fullmatch(line)
    if facts is None:
        raise TransferFailed(f"the guest does not say a file's size: {printable(line, limit=_EXCERPT)!r}")
    return Output(path, size=int(facts[2]), executable=bool(int(facts[1], 16) & stat.S_IXUSR))


class Sink:
    """Makes files, one after the other, out of one stream of bytes. Blocks."""

    def __init__(self, files: Iterable[Output], checksum: Checksum) -> None:
        self._files = iter(files)
        self._checksum = checksum
        self._stack = ExitStack()
        self._left = 0

    def close(self) -> None:
        with suppress(OSError):  # what is not whole by now is removed
            self._stack.close()

    def open_next(self) -> None:
        """Go on to the next file that has bytes to come, once this one has all of its own."""
        while self._left == 0 and (file := next(self._files, None)):
            with writing(file.path):
                self._file = self._stack.enter_context(_create(file.path, executable=file.executable))
            self._path, self._left = file.path, file.size
            self._close_whole()

    def write(self, chunk: bytes) -> None:
        """Take as many bytes as are announced, or fewer."""
        self._checksum.update(chunk)
        rest = memoryview(chunk)
        while rest:
            part, rest = rest[: self._left], rest[self._left :]
            with writing(self._path):
                self._file.write(part)
            self._left -= len(part)
            self._close_whole()
            self.open_next()

    def _close_whole(self) -> None:
        if self._left == 0:
            with writing(self._path):  # its last bytes are written only now
                self._stack.close()


@contextmanager
def writing(what: object) -> Iterator[None]:
    """What the host's disk has against a file, as an error of ours."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise HostDiskFailed(f"can't write {what}: {error.strerror}") from error


def _create(path: Path, *, executable: bool) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o755 if executable else 0o644), "wb")
