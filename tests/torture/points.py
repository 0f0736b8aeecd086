"""Where in vmwrapper harm can be done: the one table of all fault points.

A point is just before or just after a call of a function of ours. `faulty` wraps that function, so that the package
itself needs to know nothing of being tortured; test_points.py sees to it that each function is there.
"""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from vmwrapper.folders import RECORD_FILE


class When(Enum):
    """On which side of the call."""

    BEFORE = "before"
    AFTER = "after"


class Kind(Enum):
    """What is done there."""

    WRAPPER = "kill -9 of the wrapper"
    QEMU = "kill -9 of QEMU"
    BOTH = "kill -9 of both"
    EIO = "an input/output error"
    ENOSPC = "no space left on the device"

    @property
    def errno(self) -> int | None:
        """Of the OSError that it is, if any."""
        return {Kind.EIO: errno.EIO, Kind.ENOSPC: errno.ENOSPC}.get(self)


KILLS = (Kind.WRAPPER, Kind.QEMU, Kind.BOTH)
_ERRORS = (Kind.EIO, Kind.ENOSPC)
_NO_QEMU = (Kind.WRAPPER,)
_HYPERVISOR = "vmwrapper.hypervisor"
_QEMU = f"{_HYPERVISOR}.qemu"
_LAYER_OR_STATE = r"(state-[0-9]+|(root|scratch)-[0-9]+\.qcow2)"
_NEW_RECORD = re.escape(f".vmwrapper-{RECORD_FILE}.new")
_ARRIVED = r"\.vmwrapper-[0-9a-f]{16}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place, at one of the first `most` calls."""

    name: str
    says: str
    """What is so at this point."""
    when: When
    target: str
    """MODULE:NAME of the function, as its callers look it up."""
    kinds: tuple[Kind, ...] = KILLS
    most: int = 4
    going_on: bool = False
    """It is come to only by an episode that goes on from a checkpoint."""
    files: str = ""
    """A regular expression for the name of the file that is the first argument; other calls don't count."""

    def concerns(self, arguments: tuple[Any, ...]) -> bool:
        """Whether a call with these arguments counts."""
        return not self.files or re.fullmatch(self.files, Path(arguments[0]).name) is not None

    def owner_and_name(self) -> tuple[Any, str]:
        """What the function is an attribute of, and of what name. Raises AttributeError, ImportError."""
        module, _, path = self.target.partition(":")
        *owners, name = path.split(".")
        owner: Any = import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        return owner, name

    def function(self) -> Callable[..., Any]:
        """As it is now. Raises AttributeError, ImportError."""
        owner, name = self.owner_and_name()
        found: Callable[..., Any] = getattr(owner, name)
        return found


def _before(name: str, target: str, says: str, **more: Any) -> Point:
    return Point(name=name, target=target, says=says, when=When.BEFORE, **more)


def _after(name: str, target: str, says: str, **more: Any) -> Point:
    return Point(name=name, target=target, says=says, when=When.AFTER, **more)


_POINTS = (
    # A checkpoint, in the order of its steps.
    _before("merge-end", f"{_QEMU}.merging:Merging.end", "the merge of the last checkpoint may be going on"),
    _after("merged", f"{_QEMU}.merging:Merging.end", "merged layers are gone from QEMU, their files and names are not"),
    _before("layer-gone", f"{_QEMU}.merging:detach", "a merge is done, QEMU still has the merged layer open", most=3),
    _before("new-layer", f"{_QEMU}.layers:Disks.make", "no new layer is there yet"),
    _after("new-layer-made", f"{_QEMU}.layers:Disks.make", "the new layer is a file that nobody knows of"),
    _after("attached", f"{_QEMU}.snapshots:attach", "QEMU has the new layer open, but not on the stack"),
    _after("synced", f"{_QEMU}.snapshots:Snapshots._sync", "all is synced, the digest may not be known", most=8),
    _before("state", f"{_QEMU}.migration:save", "the file for the state is there, and empty"),
    _before("live", f"{_QEMU}.migration:_States.mostly_written", "the guest runs on, its memory is written", most=4),
    _before("finish-state", f"{_QEMU}.migration:_finish", "the guest stands still for the rest", most=4),
    _before("freeze", f"{_QEMU}.snapshots:Snapshots._freeze", "the disks are about to be frozen"),
    _after("frozen", f"{_QEMU}.snapshots:Snapshots._freeze", "the disks are frozen, devices not saved yet"),
    _after("completed", f"{_QEMU}.migration:save", "all is saved, nothing of it is synced"),
    _before("state-sync", f"{_QEMU}.snapshots:sync", "something of a snapshot is about to be synced", most=12),
    _before("digest", "vmwrapper.digest:digest", "the state is being read back", most=8),
    _after("secured", f"{_QEMU}.snapshots:Snapshots._secured", "the snapshot is safe, the record not written"),
    _before("verify", f"{_QEMU}.snapshots:Snapshots.verify", "a recorded snapshot is about to be read back"),
    _before("record", "vmwrapper.checkpointer:write_record", "the record of a checkpoint is about to be written"),
    _before("record-fsync", "vmwrapper.durable:os.fsync", "the new record's bytes are not synced", most=6),
    _before(
        "record-rename",
        "vmwrapper.durable:Path.replace",
        "the new record is whole, beside its place",
        most=6,
        files=_NEW_RECORD,
    ),
    _after(
        "record-renamed",
        "vmwrapper.durable:Path.replace",
        "the new record is there, its folder not synced",
        most=6,
        files=_NEW_RECORD,
    ),
    _after("recorded", "vmwrapper.checkpointer:write_record", "the record is safe, nobody was told"),
    _before("keep", f"{_QEMU}.snapshots:Snapshots.keep", "what the record names no more is still there", most=5),
    _before(
        "unlink",
        f"{_QEMU}.snapshots:Path.unlink",
        "a file of an old checkpoint is about to be deleted",
        most=9,
        files=_LAYER_OR_STATE,
    ),
    _after(
        "unlinked",
        f"{_QEMU}.snapshots:Path.unlink",
        "a file of an old checkpoint was deleted",
        most=9,
        files=_LAYER_OR_STATE,
    ),
    _before("merge", f"{_QEMU}.merging:Merging.begin", "layers are about to be merged", most=5),
    _after("merging", f"{_QEMU}.merging:Merging.begin", "layers may be being merged", most=5),
    _after("kept", f"{_QEMU}.snapshots:Snapshots.keep", "the checkpoint is over", most=5),
    # Going on from one.
    _before("sweep", f"{_QEMU}.snapshots:Snapshots.sweep", "what an earlier episode left is about to be swept", most=2),
    _before(
        "reopen",
        f"{_QEMU}.snapshots:Snapshots.reopen",
        "the machine is about to be reverted",
        most=1,
        going_on=True,
        kinds=_NO_QEMU,
    ),
    _after(
        "reopened",
        f"{_QEMU}.snapshots:Snapshots.reopen",
        "the disks are as they were, with a new layer",
        most=1,
        going_on=True,
        kinds=_NO_QEMU,
    ),
    _before("load", f"{_QEMU}.migration:load", "QEMU waits for the state", most=1, going_on=True),
    _after(
        "loaded",
        f"{_QEMU}.migration:load",
        "QEMU has the state, its digest may not be known yet",
        most=1,
        going_on=True,
    ),
    _before("reattach", "vmwrapper.task_run:TaskRun._reattach", "the guest is about to go on", most=1, going_on=True),
    _after("reattached", "vmwrapper.task_run:TaskRun._reattach", "the program goes on", most=1, going_on=True),
    # A task from its beginning to its end.
    _before("folder", "vmwrapper.wrapper:_make_folder", "there is no folder for the machine", most=2, kinds=_NO_QEMU),
    _before("prepare", "vmwrapper.guest.launcher:Launcher.prepare", "the guest has booted", most=2),
    _before("put", f"{_QEMU}.port:Port.write", "the inputs are on their way into the guest", most=14),
    _before("start", "vmwrapper.guest.launcher:Launcher.start", "all inputs are there", most=2),
    _after("started", "vmwrapper.guest.launcher:Launcher.start", "the program has just been started", most=2),
    _before("get", f"{_HYPERVISOR}.outputs:Sink.write", "the outputs are on their way out", most=30),
    _before("create-output", f"{_HYPERVISOR}.outputs:_create", "an output is about to arrive", most=3),
    _before("output-sync", "vmwrapper.outputs:sync", "an output has arrived, and is not synced", most=6),
    _before("finish", "vmwrapper.delivery:finish", "all outputs are synced, beside their places", most=2),
    _after(
        "finish-recorded",
        "vmwrapper.delivery:write_record",
        "the task is recorded, with its outputs in place or not",
        most=4,
    ),
    _before(
        "output-rename", "vmwrapper.outputs:Path.replace", "some outputs are in their places", most=3, files=_ARRIVED
    ),
    _after(
        "output-renamed", "vmwrapper.outputs:Path.replace", "one more output is in its place", most=3, files=_ARRIVED
    ),
    _after("finished", "vmwrapper.delivery:finish", "the task is done", most=2),
    _before("sanitize", "vmwrapper.guest.launcher:Launcher.remove", "the task is done, its machine on", most=2),
    _before(
        "remove-folder", "vmwrapper.wrapper:_remove", "the machine is off, its folder there", most=3, kinds=_NO_QEMU
    ),
    _before("remove-record", "vmwrapper.wrapper:remove_record", "the job is done", most=1, kinds=_NO_QEMU),
    # Errors of the host's disk.
    _before(
        "error-sync",
        f"{_QEMU}.snapshots:sync",
        "a file of a snapshot can't be synced",
        most=12,
        kinds=_ERRORS,
    ),
    _before("error-state-back", "vmwrapper.digest:digest", "a state can't be read back", most=8, kinds=(Kind.EIO,)),
    _before(
        "error-state-load",
        "vmwrapper.digest:digest",
        "the newest state can't be read",
        most=1,
        going_on=True,
        kinds=(Kind.EIO,),
    ),
    _before("error-record-fsync", "vmwrapper.durable:os.fsync", "the record can't be synced", most=8, kinds=_ERRORS),
    _before(
        "error-record-rename",
        "vmwrapper.durable:Path.replace",
        "the record can't be renamed",
        most=8,
        kinds=_ERRORS,
        files=_NEW_RECORD,
    ),
    _before(
        "error-record-folder", "vmwrapper.durable:sync", "the record's folder can't be synced", most=8, kinds=_ERRORS
    ),
    _before(
        "error-unlink",
        f"{_QEMU}.snapshots:Path.unlink",
        "an old file can't be deleted",
        most=9,
        kinds=(Kind.EIO,),
        files=_LAYER_OR_STATE,
    ),
    _before("error-create-output", f"{_HYPERVISOR}.outputs:_create", "an output can't be made", most=3, kinds=_ERRORS),
    _before(
        "error-output-sync", "vmwrapper.outputs:sync", "an output or its folder can't be synced", most=6, kinds=_ERRORS
    ),
    _before(
        "error-output-rename",
        "vmwrapper.outputs:Path.replace",
        "an output can't be renamed",
        most=3,
        kinds=_ERRORS,
        files=_ARRIVED,
    ),
    _before(
        "full-state",
        f"{_QEMU}.migration:save",
        "the state is written to a disk that is full",
        most=4,
        kinds=(Kind.ENOSPC,),
    ),
)
POINTS = {point.name: point for point in _POINTS}
FULL_STATE = "full-state"
"""The point at which not the call fails, but what it writes to."""
STATES_BACK = {"error-state-back", "error-state-load"}
"""Those at which the newest checkpoint may become unusable."""
