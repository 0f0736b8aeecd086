"""What snapshots of all hypervisors have in common: what made them, and files whose digests are known."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmwrapper.digest import digest_from_disk
from vmwrapper.errors import SnapshotUnusable
from vmwrapper.hypervisor.interface import Snapshot

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DIGEST = re.compile(r"[0-9a-f]{32}")
"""As `digest_of` makes it."""


def described(number: int, saved: "DataclassInstance") -> Snapshot:
    """A snapshot by all that a backend knows of it, of which its `number` is one."""
    facts = asdict(saved)
    del facts["number"]
    return Snapshot(number, json.dumps(facts))


def fits(value: Any, pattern: re.Pattern[str]) -> bool:
    """Whether a value of a description is a text like that."""
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def check_made_by(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise SnapshotUnusable where a snapshot's machine was another one than ours, by what each was made by."""
    for what, our in ours.items():
        if (their := theirs.get(what)) != our:
            raise SnapshotUnusable(f"its machine had the {what} {their}, where this one has {our}")


async def check_state(folder: Path, name: str, digest: str) -> None:
    """Read a file back from the host's disk. Raises SnapshotUnusable where it is not what was written."""
    try:
        found = await digest_from_disk(folder / name)
    except OSError as error:
        raise SnapshotUnusable(f"its file {name} can't be read: {error.strerror}") from error
    if found != digest:
        raise SnapshotUnusable(f"its file {name} is damaged")
