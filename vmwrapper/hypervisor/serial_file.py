"""What the guest says on its serial port, which the hypervisor writes into a file."""

import os
from contextlib import suppress
from pathlib import Path

from vmwrapper.hostile import printable

TAIL_BYTES = 64 * 1024
MOST_BYTES = 1024 * 1024
"""Of the host's disk."""


class SerialFile:
    """The file, of which only the end is kept."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def begin(self) -> None:
        """Let the file be empty. Raises OSError."""
        self.file.write_bytes(b"")

    def bound(self) -> None:
        """Empty the file where it has grown large: the hypervisor writes on behind a hole."""
        with suppress(OSError):
            if _used_bytes(self.file) > MOST_BYTES:
                os.truncate(self.file, 0)

    def __str__(self) -> str:
        with suppress(OSError), self.file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return printable(file.read(TAIL_BYTES).lstrip(b"\0"), limit=TAIL_BYTES)
        return ""


def _used_bytes(file: Path) -> int:
    found = file.stat()
    return getattr(found, "st_blocks", 0) * 512 or found.st_size
