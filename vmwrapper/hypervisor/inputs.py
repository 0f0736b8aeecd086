"""Files of the host, on their way into a guest."""

import stat
import tarfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.errors import JobError, TransferFailed
from vmwrapper.hypervisor.checksum import Checksum

CHUNK_BYTES = 256 * 1024
_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class Input:
    """A file to copy, as it was when it was looked at."""

    name: str
    path: Path
    size: int
    executable: bool

    def header(self) -> bytes:
        """Of its member of a tar."""
        member = tarfile.TarInfo(in_guest(self.name))
        member.size = self.size
        member.mode = 0o755 if self.executable else 0o644
        return member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def in_guest(name: str) -> str:
    """The name as the guest gets to see it: no command takes it for an option."""
    return f"./{name}"


def inputs(files: Mapping[str, Path]) -> list[Input]:
    """Look at the files. Raises JobError for what can't be copied."""
    return [_input(name, path) for name, path in files.items()]


def _input(name: str, path: Path) -> Input:
    try:
        status = path.stat()
    except OSError as error:
        raise JobError(f"can't read the input {name}: {error.strerror} ({path})") from error
    if not stat.S_ISREG(status.st_mode):
        raise JobError(f"the input {name} is not a file: {path}")
    return Input(name, path, status.st_size, executable=bool(status.st_mode & stat.S_IXUSR))


def archive_bytes(files: Iterable[Input]) -> int:
    """How long a tar of them is at least."""
    return sum(len(file.header()) + _padded(file.size) for file in files) + len(_END_OF_ARCHIVE)


def archive(files: Iterable[Input], checksum: Checksum) -> Generator[bytes, None, None]:
    """A tar in chunks, without the zero bytes at its end; the checksum gets the files' contents. Blocks."""
    chunk = bytearray()
    for part in _parts(files, checksum):
        chunk += part
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def _parts(files: Iterable[Input], checksum: Checksum) -> Iterator[bytes]:
    for file in files:
        yield file.header()
        yield from contents([file], checksum)
        yield bytes(_padded(file.size) - file.size)


def contents(files: Iterable[Input], checksum: Checksum) -> Generator[bytes, None, None]:
    """The files' bytes, in chunks of CHUNK_BYTES but for each file's last. Blocks."""
    for file in files:
        left = file.size
        try:
            with file.path.open("rb") as opened:
                while left > 0 and (chunk := opened.read(min(left, CHUNK_BYTES))):
                    left -= len(chunk)
                    checksum.update(chunk)
                    yield chunk
        except OSError as error:
            raise JobError(f"can't read the input {file.name}: {error.strerror} ({file.path})") from error
        if left > 0:
            raise TransferFailed(f"the input {file.name} became shorter while it was copied")


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
