"""The client's memory that it shares with an app: eight channels, each with room for one message.

Source: BOINC's lib/app_ipc.h, SHARED_MEM and MSG_CHANNEL; api/boinc_api.cpp, setup_shared_mem.
"""

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from vmwrapper.boinc.init_data import SHARED_BY_FILE, InitData
from vmwrapper.errors import ClientUnreachable

MMAP_FILE = "boinc_mmap_file"
LONGEST_TEXT = 1022
"""A channel's bytes without the flag before the text and the NUL behind it."""

_CHANNEL_BYTES = LONGEST_TEXT + 2


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


MEMORY_BYTES = len(Channel) * _CHANNEL_BYTES

_CONTROL = Channel.PROCESS_CONTROL_REQUEST * _CHANNEL_BYTES
_HEARTBEAT = Channel.HEARTBEAT * _CHANNEL_BYTES
_TRICKLE_DOWN = Channel.TRICKLE_DOWN * _CHANNEL_BYTES


class Channels:
    """Messages cross it in both directions. A channel's first byte is not 0 while its message waits to be read."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def send(self, channel: Channel, text: bytes) -> bool:
        """Leave a message of at most 1022 bytes there; False where the last one has not been read yet."""
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{len(text)} bytes are too long for a channel")
        flag = channel * _CHANNEL_BYTES
        if self._memory[flag]:
            return False
        self._memory[flag + 1 : flag + len(text) + 2] = text + b"\0"
        self._memory[flag] = 1  # last: then the other side reads
        return True

    @property
    def are_unread(self) -> bool:
        """Whether there may be something to receive. To be asked very often."""
        memory = self._memory
        return bool(memory[_CONTROL] or memory[_HEARTBEAT] or memory[_TRICKLE_DOWN])

    def receive(self, channel: Channel) -> bytes | None:
        """Take the message that waits there, if one does."""
        flag = channel * _CHANNEL_BYTES
        if not self._memory[flag]:
            return None
        text = self._memory[flag + 1 : flag + _CHANNEL_BYTES]
        self._memory[flag] = 0  # last: then the other side writes
        return text.split(b"\0", 1)[0]


def shared_memory(slot: Path, init_data: InitData, *, platform: str) -> Path | str:
    """What has been shared for this app: a file, or on Windows (`platform` is win32) the name of a piece of memory.

    Raises ClientUnreachable where it is neither.
    """
    if platform == "win32":
        if init_data.comm_obj_name is None:
            raise ClientUnreachable("the client does not name the memory that it shares with us")
        return f"shm_{init_data.comm_obj_name}"
    if init_data.shm_key != SHARED_BY_FILE:
        raise ClientUnreachable("the client shares no file with us: the app version's <api_version> is below 6.0")
    return slot / MMAP_FILE


@contextmanager
def open_channels(slot: Path, init_data: InitData) -> Iterator[Channels]:
    """The channels to the client of this slot. Raises ClientUnreachable where it has made none.

    On Windows that can't be seen: nobody is heard there.
    """
    shared = shared_memory(slot, init_data, platform=sys.platform)
    try:
        memory = _mapped(shared, MEMORY_BYTES)
    except (OSError, ValueError) as error:
        raise ClientUnreachable(f"can't share memory with the client by {shared}: {error}") from error
    with memory:
        yield Channels(memory)


if sys.platform == "win32":

    def _mapped(shared: Path | str, size: int) -> mmap.mmap:
        return mmap.mmap(-1, size, tagname=str(shared))

else:

    def _mapped(shared: Path | str, size: int) -> mmap.mmap:
        with Path(shared).open("r+b") as file:
            return mmap.mmap(file.fileno(), size)
