"""A task's outputs, from its guest to their places: as one, and that written down."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vmwrapper.boinc.slot_files import is_soft_link
from vmwrapper.checkpoint import Record, write_record
from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import ProgramFailed
from vmwrapper.hostile import some_of
from vmwrapper.hypervisor.interface import FileKind
from vmwrapper.job.resolve import ResolvedTask
from vmwrapper.outputs import arriving, bring_to_disk, put_in_place
from vmwrapper.progress import Progress

Fetch = Callable[[Mapping[str, Path]], Awaitable[Mapping[str, FileKind]]]
"""As `Guest.get`: makes new files of these names' regular files, and tells what each name stands for."""


async def deliver(resolved: ResolvedTask, progress: Progress, *, fetch: Fetch, place: str, slot: Path) -> None:
    """Have all outputs, the task done, and that written down. `place` is where they were, for messages.

    Raises ProgramFailed where one is missing, and then has the others.
    """
    outputs, title = resolved.outputs, resolved.task.title
    with ExitStack() as names:
        arrived = {name: arriving(path, names) for name, path in outputs.items()}
        kinds = await fetch(arrived)
        regular = [name for name, kind in kinds.items() if kind is FileKind.REGULAR]
        if links := [name for name in regular if name in resolved.unlinked and is_soft_link(arrived[name])]:
            listed = ", ".join(some_of(links))
            raise ProgramFailed(f"{title} left a BOINC <soft_link> as {listed}, in the client's slot")
        for name in regular:
            await asyncio.to_thread(bring_to_disk, arrived[name])
        whole = {arrived[name]: outputs[name] for name in regular}
        if missing := [_described(name, kind) for name, kind in kinds.items() if kind is not FileKind.REGULAR]:
            await to_thread_and_back(put_in_place, whole)
            listed = ", ".join(some_of(missing))
            raise ProgramFailed(f"{title} left no file {listed} in {place}")
        progress.end_task()
        record = progress.record()
        await to_thread_and_back(finish, slot, record, whole, names)
        progress.checkpointed(record)


def finish(slot: Path, record: Record, outputs: Mapping[Path, Path], names: ExitStack) -> None:
    """Put all outputs in place as one: as soon as the record has them, the next episode would go on with that."""
    write_record(slot, replace(record, tasks_in_place=record.tasks_in_place - 1))
    names.pop_all()
    put_in_place(outputs)
    write_record(slot, record)


def _described(name: str, kind: FileKind) -> str:
    return name if kind is FileKind.MISSING else f"{name} (it is {kind.value})"
