"""What a snapshot consists of: a file with the guest's memory and devices, the frozen layers, and what made them."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmwrapper.errors import SnapshotUnusable
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.hypervisor.saved_state import DIGEST, check_made_by, described

_FILE_NAME = re.compile(r"[a-z]+-[0-9]{1,9}\.qcow2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One snapshot. Its files are in the machine's directory."""

    number: int
    state_bytes: int
    state_digest: str
    """As `digest_of` makes it."""
    layers: Mapping[str, Sequence[str]]
    """The file names of each disk's layers, from the lowest on."""
    layer_bytes: Mapping[str, int]
    """How large these are at least."""
    made_by: Mapping[str, str]
    """What a machine must have in common with the one that it was taken of, by what that is called."""

    @property
    def state_file(self) -> str:
        return f"state-{self.number}"

    @property
    def files(self) -> set[str]:
        """All that it needs."""
        return {self.state_file, *(name for names in self.layers.values() for name in names)}

    @property
    def frozen(self) -> set[str]:
        """The top layers, which stand for the disks as they were."""
        return {names[-1] for names in self.layers.values()}

    def snapshot(self) -> Snapshot:
        return described(self.number, self)

    def without(self, layers: Collection[str]) -> "Saved":
        """The same when these have been merged into those below."""
        kept = {disk: [name for name in names if name not in layers] for disk, names in self.layers.items()}
        sizes = {name: size for name, size in self.layer_bytes.items() if name not in layers}
        return replace(self, layers=kept, layer_bytes=sizes)

    def check(self, directory: Path, made_by: Mapping[str, str], disks: Collection[str]) -> None:
        """Raise SnapshotUnusable where a machine like that can't use it, or its files are not what they were."""
        check_made_by(self.made_by, made_by)
        if self.layers.keys() != set(disks):
            raise SnapshotUnusable("its machine had other disks")
        try:
            self._check_files(directory)
        except OSError as error:
            raise SnapshotUnusable(f"a file of it can't be looked at: {error.strerror}") from error

    def _check_files(self, directory: Path) -> None:
        for name in self.files:
            if not (directory / name).is_file():
                raise SnapshotUnusable(f"its file {name} is missing")
        if any(_size(directory, name) < size for name, size in self.layer_bytes.items()):
            raise SnapshotUnusable("a layer of a disk is cut short")
        if (size := _size(directory, self.state_file)) != self.state_bytes:
            raise SnapshotUnusable(f"its file {self.state_file} has {size} bytes instead of {self.state_bytes}")


def _size(directory: Path, name: str) -> int:
    return (directory / name).stat().st_size


def saved(snapshot: Snapshot) -> Saved:
    """What a description says. Raises SnapshotUnusable for what makes no sense."""
    try:
        found = json.loads(snapshot.description)
        layers = {
            disk: [_matched(name, _FILE_NAME) for name in _checked(names, list) or [""]]
            for disk, names in _checked(found["layers"], dict).items()
        }
        return Saved(
            number=snapshot.number,
            state_bytes=_checked(found["state_bytes"], int),
            state_digest=_matched(found["state_digest"], DIGEST),
            layers=layers,
            layer_bytes={
                name: _checked(found["layer_bytes"][name], int) for names in layers.values() for name in names
            },
            made_by={what: _checked(said, str) for what, said in _checked(found["made_by"], dict).items()},
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SnapshotUnusable("its description makes no sense") from error


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(kind)
    return value


def _matched(value: Any, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(_checked(value, str)):
        raise ValueError(pattern)
    return str(value)
