"""Trickle messages: between an app and its project's server while the job runs, by way of the client.

Source: BOINC's client/cs_trickle.cpp; client/app.cpp, move_trickle_file; api/boinc_api.cpp, boinc_send_trickle_up.
"""

import asyncio
import logging
import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.durable import write_durably

log = logging.getLogger(__name__)

TRICKLE_UP_FILE = "trickle_up.xml"
TAKEN_LIMIT_S = 60.0
"""How long the client may leave a trickle-up where it is."""

_LOOK_S = 0.5
_LARGEST_BYTES = 1 << 20
_VARIETY = re.compile(r"[\w.-]{1,255}", re.ASCII)
_END_OF_MESSAGE = "</msg_from_host"
_DOWN = re.compile(r"trickle_down_(-?\d{1,20})")


@dataclass(frozen=True, slots=True)
class TrickleDown:
    """A message of the project's server, as it came: nobody has looked at it yet."""

    sent_at: int
    """In seconds since 1970, by the server's clock."""
    content: bytes


class Trickles:
    """Those of one slot. The client must be told of the file of a trickle-up by `is_untold`'s user, who resets it."""

    def __init__(self, slot: Path) -> None:
        self._slot = slot
        self._one_at_a_time = asyncio.Lock()
        self._came = asyncio.Event()
        self.is_untold = False

    def begin(self) -> None:
        """Look for what an earlier episode left: the client forgets what it was told, and not read, at each start."""
        self.is_untold = self._up.exists()
        self._came.set()

    def have_come(self) -> None:
        """The client says that there are trickle-downs."""
        self._came.set()

    async def send_up(self, variety: str, text: str) -> None:
        """Have a message sent to the project's server, durably, behind those that the client has not taken yet.

        `variety` (letters, digits, `_.-`) chooses who handles it there. The server finds `text` inside an XML element:
        whoever takes it from a stranger escapes it. Raises ValueError where either can't be sent, HostDiskFailed where
        it can't be written, and TimeoutError where the client has not taken the last one within 60 s: then nothing is
        sent, and it may be tried again.
        """
        content = _trickle_up(variety, text)
        async with self._one_at_a_time:
            async with asyncio.timeout(TAKEN_LIMIT_S):
                while self._up.exists():  # noqa: ASYNC110  (the client sets no Event of ours)
                    await asyncio.sleep(_LOOK_S)
            await to_thread_and_back(write_durably, self._up, content)
            self.is_untold = True

    async def downs(self) -> AsyncIterator[TrickleDown]:
        """The messages of the project's server, the oldest first, as they come, without end.

        Each is deleted when the next is asked for: one that was being worked on when the episode ended comes again.
        What is larger than 1 MiB, or no regular file, is deleted with a warning.
        """
        while True:
            await self._came.wait()
            self._came.clear()
            for sent_at, path in sorted(self._down_files()):
                try:
                    content = _content(path)
                except (OSError, ValueError) as error:
                    log.warning("A trickle-down can't be read: %s: %s", path.name, error)
                else:
                    yield TrickleDown(sent_at, content)
                with suppress(OSError):  # then it comes again
                    path.unlink()

    @property
    def _up(self) -> Path:
        return self._slot / TRICKLE_UP_FILE

    def _down_files(self) -> list[tuple[int, Path]]:
        names = ((_DOWN.fullmatch(path.name), path) for path in self._slot.iterdir())
        return [(int(name[1]), path) for name, path in names if name and not path.is_dir()]


def _trickle_up(variety: str, text: str) -> bytes:
    if not _VARIETY.fullmatch(variety):
        raise ValueError(f"{variety[:255]!r} is no variety of a trickle")
    content = f"<variety>{variety}</variety>\n{text}".encode()
    if len(content) > _LARGEST_BYTES or "\0" in text or _END_OF_MESSAGE in text:
        raise ValueError("the text can't be part of a trickle")
    return content


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:  # noqa: PTH123  (a Path opens by name)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        content = file.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES:
        raise ValueError("it is too large")
    return content
