"""Outputs on the host: each arrives under a name beside its place, and is there whole or not at all."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vmwrapper.durable import sync
from vmwrapper.errors import HostDiskFailed


def arriving(place: Path, leaving: ExitStack) -> Path:
    """The name beside `place` for a file that is to become it; what has it before or, at the end, still, is removed.

    That end is the stack's. Raises HostDiskFailed.
    """
    name = _arrival(place)
    with _writing(place):
        name.unlink(missing_ok=True)
    leaving.callback(_discard, name)
    return name


def _discard(name: Path) -> None:
    with suppress(OSError):  # the next episode tries again
        name.unlink(missing_ok=True)


def bring_to_disk(arrived: Path) -> None:
    """Have a file's bytes on the disk, which may take long. Raises HostDiskFailed."""
    with _writing(arrived):
        sync(arrived)


def put_in_place(arrived: Mapping[Path, Path]) -> None:
    """Rename files that are on the disk onto their places. Raises HostDiskFailed."""
    for file, place in arrived.items():
        with _writing(place):
            file.replace(place)
    for folder in {place.parent for place in arrived.values()}:
        with _writing(folder):
            sync(folder)


def put_in_place_late(places: Iterable[Path]) -> None:
    """Go on where an earlier episode was ended that had begun to put all of these in place. Raises HostDiskFailed."""
    put_in_place({name: place for place in places if (name := _arrival(place)).exists()})


def _arrival(place: Path) -> Path:
    """It depends on the place only, so that what a killed episode left there is found by the next."""
    return place.with_name(f".vmwrapper-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}")


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostDiskFailed(f"can't write the output {place}: {error.strerror}") from error
