"""The client's memory that it shares with an app: eight channels, each with room for one message.

Source: BOINC's lib/app_ipc.h, SHARED_MEM and MSG_CHANNEL.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from vmwrapper.errors import ClientUnreachable

MMAP_FILE = "boinc_mmap_file"

_CHANNEL_BYTES = 1024
_LONGEST_TEXT = _CHANNEL_BYTES - 2  # without the flag before it and the NUL behind it


class Channel(IntEnum):
    """By its place."""

    PROCESS_CONTROL_REQUEST = 0
    PROCESS_CONTROL_REPLY = 1
    GRAPHICS_REQUEST = 2
    GRAPHICS_REPLY = 3
    HEARTBEAT = 4
    APP_STATUS = 5
    TRICKLE_UP = 6
    TRICKLE_DOWN = 7


class Channels:
    """Messages cross it in both directions. A channel's first byte is not 0 while its message waits to be read."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def send(self, channel: Channel, text: bytes) -> bool:
        """Leave a message of at most 1022 bytes there; False where the last one has not been read yet."""
        if len(text) > _LONGEST_TEXT:
            raise ValueError(f"{len(text)} bytes are too long for a channel")
        flag = channel * _CHANNEL_BYTES
        if self._memory[flag]:
            return False
        self._memory[flag + 1 : flag + len(text) + 2] = text + b"\0"
        self._memory[flag] = 1  # last: then the other side reads
        return True

    def receive(self, channel: Channel) -> bytes | None:
        """Take the message that waits there, if one does."""
        flag = channel * _CHANNEL_BYTES
        if not self._memory[flag]:
            return None
        text = self._memory[flag + 1 : flag + _CHANNEL_BYTES]
        self._memory[flag] = 0  # last: then the other side writes
        return text.split(b"\0", 1)[0]


@contextmanager
def open_channels(slot: Path) -> Iterator[Channels]:
    """The channels to the client of this slot. Raises ClientUnreachable where it has made none."""
    path = slot / MMAP_FILE
    try:
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), len(Channel) * _CHANNEL_BYTES)
    except (OSError, ValueError) as error:
        raise ClientUnreachable(f"can't share memory with the client by {path}: {error}") from error
    with memory:
        yield Channels(memory)
