"""The guest's side of the window, as transfer.sh has it."""

import os
import tempfile
import weakref
from collections.abc import Callable, MutableMapping, Sequence

from vmwrapper.hypervisor.qemu.window import WINDOW_BYTES


class GuestWindow:
    """Does what one line after the other asks for, until a test has something else in mind."""

    def __init__(self, files: MutableMapping[str, bytes], answer: Callable[[bytes], None]) -> None:
        with tempfile.TemporaryFile() as disk:
            disk.truncate(WINDOW_BYTES)
            self.fd = os.dup(disk.fileno())
        weakref.finalize(self, os.close, self.fd)
        self.asked: list[str] = []
        self.skipped: set[int] = set()
        """Which of the copies, counted from 0, are not made."""
        self._files = files
        self._answer = answer
        self._copies = 0

    def serve(self, line: str, names: Sequence[str]) -> bool:
        """Whether it is not the last."""
        self.asked.append(line)
        nonce, verb, *words = line.split()
        numbers = [int(word) for word in words]
        if verb == "end":
            return False
        name = names[numbers[0] - 1]
        if verb == "cut":
            self._files[name] = self._files[name][: numbers[1]].ljust(numbers[1], b"\0")
            return True
        if self._copies not in self.skipped:
            self._copy(verb, name, numbers[1:])
        self._copies += 1
        self._answer(f"{nonce}\n".encode())
        return True

    def _copy(self, verb: str, name: str, numbers: Sequence[int]) -> None:
        block_bytes, blocks, in_window, in_file = numbers
        size, place, start = blocks * block_bytes, in_window * block_bytes, in_file * block_bytes
        assert 0 <= place < place + size <= WINDOW_BYTES
        content = self._files[name]
        if verb == "in":
            before = content[:start].ljust(start, b"\0")
            self._files[name] = before + os.pread(self.fd, size, place) + content[start + size :]
        else:
            blocks_there = content[start : start + size]
            padded = len(blocks_there) + -len(blocks_there) % block_bytes
            os.pwrite(self.fd, blocks_there.ljust(padded, b"\0"), place)
