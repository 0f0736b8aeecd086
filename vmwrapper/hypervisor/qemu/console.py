"""What the guest says on its console."""

import asyncio

from vmwrapper.hostile import printable

LIMIT_BYTES = 64 * 1024


class ConsoleTail(asyncio.Protocol):
    """The end of everything that came through a serial port."""

    def __init__(self) -> None:
        self._said = bytearray()

    def data_received(self, data: bytes) -> None:
        self._said += data
        del self._said[:-LIMIT_BYTES]

    def __str__(self) -> str:
        return printable(bytes(self._said), limit=LIMIT_BYTES)
