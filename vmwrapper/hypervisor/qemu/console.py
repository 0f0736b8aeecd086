"""What the guest says on its console."""

import asyncio

from vmwrapper.hostile import printable

LIMIT_BYTES = 64 * 1024

_HALTED = b"reboot: System halted"  # Source: kernel_halt in Linux's kernel/reboot.c


class ConsoleTail(asyncio.Protocol):
    """The end of everything that came through a serial port."""

    def __init__(self) -> None:
        self._said = bytearray()
        self.halted = asyncio.Event()
        """Linux has said that it stands still for ever, of which QEMU takes no notice."""

    def data_received(self, data: bytes) -> None:
        if _HALTED in self._said[-len(_HALTED) :] + data:
            self.halted.set()
        self._said += data
        del self._said[:-LIMIT_BYTES]

    def __str__(self) -> str:
        return printable(bytes(self._said), limit=LIMIT_BYTES)
