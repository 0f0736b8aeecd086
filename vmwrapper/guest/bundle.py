"""A direct-boot guest in one file: a kernel, an initramfs and perhaps a disk, behind a manifest that names them.

The file is an uncompressed ustar archive whose members are, in this order, `manifest.json`, `kernel`, `initramfs` and
optionally `disk`; so it can be looked into with tar, and QEMU's parts can be copied out by offset. The manifest:

    {"format": "vmwrapper guest 1",
     "kernel": {"size": 1, "sha256": "…"}, "initramfs": {…}, "disk": {…, "format": "raw"},
     "command_line": "console=ttyS0", "built_from": {"package": "version"}, "recipe": "…"}

Source: POSIX.1-1988 ustar, as read by tarfile.TarInfo.frombuf.
"""

import hashlib
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, TypeVar

from vmwrapper.errors import JobError

SUFFIX = ".vmguest"
FORMAT = "vmwrapper guest 1"

_MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 64 * 1024
_USTAR_SIZE_LIMIT = 8**11  # bytes: eleven octal digits
_COMMAND_LINE_LIMIT = 2047  # characters. Source: COMMAND_LINE_SIZE of Linux on x86, less its NUL
_CHUNK = 1024 * 1024
_Kind = TypeVar("_Kind")


class DiskFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True)
class Section:
    """A member of the archive: where its bytes lie in the file, and their SHA-256 in lower-case hexadecimal."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DiskSection(Section):
    format: DiskFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What an opened bundle says of itself; the sections' digests are checked only by `extract`."""

    path: Path
    kernel: Section
    initramfs: Section
    disk: DiskSection | None
    command_line: str
    """The kernel's, in printable ASCII."""
    built_from: dict[str, str]
    """Package → version of all that is inside."""
    recipe: str
    """Digest of how it was built; empty where the builder keeps none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What to make a bundle of; the files are seekable and read whole, from their beginning."""

    kernel: BinaryIO
    initramfs: BinaryIO
    disk: BinaryIO | None = None
    disk_format: DiskFormat = DiskFormat.RAW
    command_line: str
    built_from: Mapping[str, str]
    recipe: str = ""


def write_bundle(path: Path, contents: Contents) -> None:
    """Write a bundle; equal contents give equal bytes.

    Written to `path` with `.part` appended, and renamed when it is whole and on the disk. Raises JobError for a part
    beyond the 8 GiB of the format, OSError as writing does.
    """
    parts = {"kernel": contents.kernel, "initramfs": contents.initramfs}
    manifest: dict[str, object] = {
        "format": FORMAT,
        "command_line": contents.command_line,
        "built_from": dict(contents.built_from),
        "recipe": contents.recipe,
    }
    manifest |= {name: _measured(name, part) for name, part in parts.items()}
    if contents.disk:
        parts["disk"] = contents.disk
        manifest["disk"] = {**_measured("disk", contents.disk), "format": contents.disk_format}
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    with _replacing(path) as file:
        _append(file, _MANIFEST, len(text), [text])
        for name, part in parts.items():
            _append(file, name, part.seek(0, os.SEEK_END), _chunks(part))
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def is_bundle(path: Path) -> bool:
    """Whether the file begins like a bundle. Raises JobError where it can't be read."""
    with _examined(path) as file:
        try:
            return _header(file).name == _MANIFEST
        except _Defect:
            return False


def open_bundle(path: Path) -> Bundle:
    """Read and validate what a bundle says of itself, which may be written by a stranger.

    Raises JobError, naming the file, for every defect.
    """
    with _examined(path) as file:
        return _read(path, file)


def extract(bundle: Bundle, section: Section, destination: BinaryIO) -> None:
    """Copy a section's bytes, which `verify` knows to be right. Raises OSError as reading and writing do."""
    destination.writelines(_chunks_of(bundle, section))


def verify(bundle: Bundle, *, stop: threading.Event | None = None) -> None:
    """Raise JobError where a section's bytes are not those that the manifest names, or can't be read.

    Returns early once `stop` is set.
    """
    for section in filter(None, (bundle.kernel, bundle.initramfs, bundle.disk)):
        digest = hashlib.sha256()
        try:
            for chunk in _chunks_of(bundle, section):
                if stop and stop.is_set():
                    return
                digest.update(chunk)
        except OSError as error:
            raise JobError(f"can't read {bundle.path}: {error.strerror}") from error
        if digest.hexdigest() != section.sha256:
            what = f"bytes from {section.offset} on have another SHA-256 than expected"
            raise JobError(f"{bundle.path} is damaged, {what}: make it again (vmwrapper image build) or fetch it again")


def _chunks_of(bundle: Bundle, section: Section) -> Iterator[bytes]:
    with bundle.path.open("rb") as file:
        file.seek(section.offset)
        missing = section.size
        while missing and (chunk := file.read(min(_CHUNK, missing))):
            yield chunk
            missing -= len(chunk)


class _Defect(Exception):
    """What is wrong with a file, as the end of a sentence."""


def _read(path: Path, file: BinaryIO) -> Bundle:
    if not (end := os.fstat(file.fileno()).st_size):
        raise _Defect("the file is empty")
    name, size = _member(file, end)
    if name != _MANIFEST:
        raise _Defect(f"not a guest bundle: it begins with {name!r} instead of {_MANIFEST}")
    if size > _MANIFEST_LIMIT:
        raise _Defect(f"its manifest has {size} bytes; at most {_MANIFEST_LIMIT} are read")
    manifest = _manifest(file.read(size))
    sections = dict(_sections(file, end, manifest))
    versions = _entry(manifest, "built_from", dict)
    return Bundle(
        path=path,
        kernel=sections["kernel"],
        initramfs=sections["initramfs"],
        disk=_disk(sections["disk"], manifest) if "disk" in sections else None,
        command_line=_command_line(manifest),
        built_from={package: _entry(versions, package, str) for package in versions},
        recipe=_entry(manifest, "recipe", str),
    )


def _sections(file: BinaryIO, end: int, manifest: dict[str, object]) -> Iterator[tuple[str, Section]]:
    names = ["kernel", "initramfs"] + ["disk"] * ("disk" in manifest)
    for expected in names:
        name, size = _member(file, end)
        if name != expected:
            raise _Defect(f"the member {name!r} lies where {expected} is expected")
        said = _entry(manifest, name, dict)
        sha256 = said.get("sha256")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise _Defect(f"its manifest has no SHA-256 of the {name}")
        if type(said.get("size")) is not int or said["size"] != size:
            raise _Defect(f"its manifest gives the {name} another size than the {size} bytes that are there")
        yield name, Section(file.tell(), size, sha256)
        file.seek(size, os.SEEK_CUR)
    if _block(file) != bytes(tarfile.BLOCKSIZE):
        raise _Defect(f"truncated, or something follows the {names[-1]}")


def _member(file: BinaryIO, end: int) -> tuple[str, int]:
    """Name and size of the member whose header is next; the file then stands at its first byte."""
    header = _header(file)
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise _Defect(f"the member {header.name!r} is no regular file")
    if not 0 <= header.size <= end - file.tell():
        raise _Defect(f"truncated: the member {header.name!r} goes on behind the end of the file")
    return header.name, header.size


def _header(file: BinaryIO) -> tarfile.TarInfo:
    block = _block(file)
    if len(block) < tarfile.BLOCKSIZE:
        raise _Defect("truncated, or not a guest bundle")
    try:
        return tarfile.TarInfo.frombuf(block, encoding="utf-8", errors="replace")
    except tarfile.HeaderError as error:
        raise _Defect("not a guest bundle, or damaged: no archive header where one is expected") from error


def _block(file: BinaryIO) -> bytes:
    file.seek(-file.tell() % tarfile.BLOCKSIZE, os.SEEK_CUR)
    return file.read(tarfile.BLOCKSIZE)


def _manifest(text: bytes) -> dict[str, object]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Defect("its manifest is not JSON") from error
    if not isinstance(manifest, dict):
        raise _Defect("its manifest is not a JSON object")
    if manifest.get("format") != FORMAT:
        raise _Defect(f"its manifest has the format {manifest.get('format')!r:.80}; this vmwrapper reads {FORMAT!r}")
    return manifest


def _disk(section: Section, manifest: dict[str, object]) -> DiskSection:
    name = _entry(manifest, "disk", dict).get("format")
    if name not in list(DiskFormat):
        raise _Defect(f"its disk has the format {name!r:.80} instead of raw or qcow2")
    return DiskSection(section.offset, section.size, section.sha256, DiskFormat(str(name)))


def _command_line(manifest: dict[str, object]) -> str:
    text = _entry(manifest, "command_line", str)
    if not (text.isascii() and text.isprintable() and len(text) <= _COMMAND_LINE_LIMIT):
        raise _Defect(f"its command line is not up to {_COMMAND_LINE_LIMIT} characters of printable ASCII")
    return text


def _entry(manifest: dict[str, object], key: str, kind: type[_Kind]) -> _Kind:
    value = manifest.get(key)
    if not isinstance(value, kind):
        raise _Defect(f"its manifest has no {key!r:.80} of the right type")
    return value


def _regular(path: Path) -> Path:
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise _Defect("not a regular file")
    return path


@contextmanager
def _examined(path: Path) -> Iterator[BinaryIO]:
    """The opened file; a defect found in the block becomes a JobError that names it, and so does failing to read."""
    try:
        with _regular(path).open("rb") as file:
            yield file
    except _Defect as defect:
        raise JobError(f"{path}: {defect}") from defect
    except OSError as error:
        raise JobError(f"can't read {path}: {error.strerror}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    scratch = path.with_name(path.name + ".part")
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _measured(name: str, part: BinaryIO) -> dict[str, object]:
    size = part.seek(0, os.SEEK_END)
    if size >= _USTAR_SIZE_LIMIT:
        raise JobError(f"the {name} has {size} bytes; a bundle holds less than {_USTAR_SIZE_LIMIT}")
    digest = hashlib.sha256()
    for chunk in _chunks(part):
        digest.update(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _chunks(part: BinaryIO) -> Iterator[bytes]:
    part.seek(0)
    while chunk := part.read(_CHUNK):
        yield chunk


def _append(file: BinaryIO, name: str, size: int, chunks: Iterable[bytes]) -> None:
    header = tarfile.TarInfo(name)
    header.size = size
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    file.writelines(chunks)
    file.write(bytes(-size % tarfile.BLOCKSIZE))
