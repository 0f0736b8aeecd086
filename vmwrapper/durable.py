"""Files that are there whole or not at all, whenever the power goes."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from vmwrapper.errors import HostDiskFailed


def write_durably(path: Path, content: bytes) -> None:
    """Make or replace a file. Raises HostDiskFailed, and then leaves what was there."""
    scratch = path.with_name(f".vmwrapper-{path.name}.new")
    try:
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except OSError:
            with suppress(OSError):
                scratch.unlink()
            raise
        sync(path.parent)
    except OSError as error:
        raise HostDiskFailed(f"can't write {path}: {error.strerror}") from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    if sys.platform == "win32" and path.is_dir():  # which opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
