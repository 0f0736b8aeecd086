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
