"""Files that are there whole or not at all, whenever the power goes."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vmwrapper.errors import HostDiskFailed

_SYNCS_NO_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What some file systems, of networks above all, say to the wish."""


def write_durably(path: Path, content: bytes) -> None:
    """Make or replace a file.

    Raises HostDiskFailed, and then leaves what was there; or already has the new content in its place, where only the
    names in its folder could not be brought to the disk.
    """
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


def sync(path: Path, *, fsync: Callable[[int], None] = os.fsync) -> None:
    """Bring a file, or the names in a folder where its file system knows how to, to the disk. Raises OSError."""
    is_folder = path.is_dir()
    if sys.platform == "win32" and is_folder:  # which opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _SYNCS_NO_FOLDERS:
            raise
    finally:
        os.close(descriptor)
