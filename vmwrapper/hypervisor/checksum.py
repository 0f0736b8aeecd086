"""The kinds of checksum that a guest may have."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

import xxhash


class Checksum(Protocol):
    """What both hashlib and xxhash have."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


CHECKSUMS: Mapping[str, Callable[[], Checksum]] = {"xxh64": xxhash.xxh64, "sha256": hashlib.sha256}


class AllChecksums:
    """Of all kinds at once, where it is not known yet which of them a guest has."""

    def __init__(self) -> None:
        self._of_kind = {kind: make() for kind, make in CHECKSUMS.items()}

    def update(self, data: bytes, /) -> None:
        for checksum in self._of_kind.values():
            checksum.update(data)

    def hexdigest(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """As guest_files.sh prints them."""
        return [f"{kind} {checksum.hexdigest()}" for kind, checksum in self._of_kind.items()]
