"""What tells whether the bytes of a large file are still the same."""

import asyncio
import os
import threading
from pathlib import Path

import xxhash

_CHUNK_BYTES = 1 << 20


async def digest_of(file: Path) -> str:
    """Of a file's bytes, in a thread, which stops when we are cancelled. Raises OSError."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(digest, file, stop)
    finally:
        stop.set()


def digest(file: Path, stop: threading.Event) -> str:
    """Of all its bytes, but of fewer once `stop` is set. Raises OSError."""
    found = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while not stop.is_set() and (chunk := opened.read(_CHUNK_BYTES)):
            found.update(chunk)
    return found.hexdigest()


async def digest_from_disk(file: Path) -> str:
    """The same, where the host can do that of what the disk gives back, and not of what its memory has of the file."""
    await asyncio.to_thread(_forget_cached, file)
    return await digest_of(file)


def _forget_cached(file: Path) -> None:
    """Have the next reader get what is on the disk, where the host can do that; and leave its memory to others."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
