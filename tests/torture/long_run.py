"""Thousands of checkpoints of one machine in a row: nothing may grow.

Two are kept, as the wrapper does; before each the guest writes a little, always over the same places. At the end the
machine goes back to the older and to the newer one, and its disk must be as it was then.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from vmwrapper.clock import RunningClock
from vmwrapper.folders import image_folder
from vmwrapper.guest.launcher import Launcher
from vmwrapper.hypervisor.interface import MIB, Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor

_MEMORY_MIB = 96
_SCRATCH_MIB = 16
_MOST_LAYERS = 5
_WARM_UP = 8
_LIMIT_S = 60.0
_WORK = """\
n=$1
dd if=/dev/urandom of=/data/block bs=4096 count=4 seek=$((n % 16)) conv=notrunc 2>/run/said
echo $n >/data/count
echo $n >/run/count
sync
"""
_SEEN = "echo 3 >/proc/sys/vm/drop_caches; cat /data/count /run/count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What could grow."""

    files: int
    layers: int
    """Of the tallest stack."""
    disk_bytes: int
    our_descriptors: int
    qemu_descriptors: int
    our_memory_bytes: int
    qemu_memory_bytes: int

    def grown(self, first: "Sizes") -> list[str]:
        """What has become more since the first checkpoints than chance explains."""
        found = []
        for name, bound in (
            ("files", first.files),
            ("disk_bytes", first.disk_bytes * 1.25 + 4 * MIB),
            ("our_descriptors", first.our_descriptors),
            ("qemu_descriptors", first.qemu_descriptors),
            ("our_memory_bytes", first.our_memory_bytes * 1.1 + 4 * MIB),
            ("qemu_memory_bytes", first.qemu_memory_bytes * 1.2 + 16 * MIB),
        ):
            if (now := getattr(self, name)) > bound:
                found.append(f"{name}: {now:.0f}, and at most {bound:.0f} is as at first")
        if self.layers > _MOST_LAYERS:
            found.append(f"{self.layers} layers")
        return found

    def most(self, other: "Sizes") -> "Sizes":
        """The larger one of each."""
        both = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return Sizes(**{name: max(ours, theirs) for (name, ours), theirs in both})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How it was after so many checkpoints."""

    checkpoints: int
    seconds_each: float
    sizes: Sizes


class Grown(AssertionError):
    """Something did."""


async def long_run(
    directory: Path, *, checkpoints: int, every: int, show: Callable[[Row], None] = lambda _: None
) -> list[Row]:
    """Take them all, and look every so often. Raises Grown."""
    hypervisor = QemuHypervisor()
    await hypervisor.probe(RunningClock())
    spec = MachineSpec(
        identity=MachineIdentity("torture", "long run", str(directory)),
        image=image_folder() / "default.vmguest",
        directory=directory,
        memory_mib=_MEMORY_MIB,
        cpus=1,
        scratch_mib=_SCRATCH_MIB,
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=_LIMIT_S)
        await Launcher(machine.guest, datadir="/data", user="root").prepare(scratch=True)
        rows = await _take_all(machine, directory, checkpoints, every, show)
        newer, older = machine.snapshots
        for snapshot, count in ((older, checkpoints - 1), (newer, checkpoints)):
            await machine.revert(snapshot)
            await machine.resume()
            await machine.guest.ready(limit_s=_LIMIT_S)
            said = await _done(machine, _SEEN)
            if said.split() != [str(count), str(count)]:
                raise Grown(f"the guest of checkpoint {count} says {said!r}")
    return rows


async def _take_all(
    machine: Machine, directory: Path, checkpoints: int, every: int, show: Callable[[Row], None]
) -> list[Row]:
    rows: list[Row] = []
    first: Sizes | None = None
    began_s = time.monotonic()
    for number in range(1, checkpoints + 1):
        await _done(machine, _WORK, str(number))
        await machine.take_snapshot(nullcontext, most_bytes=1 << 40)
        await machine.resume()
        await machine.keep_snapshots([one.number for one in machine.snapshots][:2])
        sizes = _sizes(machine, directory)
        if first is None or number <= _WARM_UP:
            first = sizes.most(first) if first else sizes
        elif grown := sizes.grown(first):
            raise Grown(f"after {number} checkpoints: {', '.join(grown)}")
        if number % every == 0:
            rows.append(Row(checkpoints=number, seconds_each=(time.monotonic() - began_s) / every, sizes=sizes))
            began_s = time.monotonic()
            show(rows[-1])
    return rows


async def _done(machine: Machine, script: str, *arguments: str) -> str:
    result = await machine.guest.run(["sh", "-c", script, "sh", *arguments], limit_s=_LIMIT_S)
    if result.status != 0:
        raise Grown(f"the guest fails: {result.stderr!r}")
    return result.stdout.decode()


def _sizes(machine: Any, directory: Path) -> Sizes:
    qemu, ours = psutil.Process(machine._on.child.pid), psutil.Process()
    files = [path.stat() for path in directory.iterdir()]
    return Sizes(
        files=len(files),
        layers=max(len(stack) for stack in machine._disks.stacks.values()),
        disk_bytes=sum(file.st_blocks * 512 for file in files),
        our_descriptors=ours.num_fds(),
        qemu_descriptors=qemu.num_fds(),
        our_memory_bytes=ours.memory_info().rss,
        qemu_memory_bytes=qemu.memory_info().rss,
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table("checkpoints", "s each", "files", "layers", "MiB on disk", "our fds", "QEMU's", "our MiB", "QEMU's")
    for row in rows:
        sizes = row.sizes
        table.add_row(
            str(row.checkpoints),
            f"{row.seconds_each:.3f}",
            str(sizes.files),
            str(sizes.layers),
            f"{sizes.disk_bytes / MIB:.1f}",
            str(sizes.our_descriptors),
            str(sizes.qemu_descriptors),
            f"{sizes.our_memory_bytes / MIB:.1f}",
            f"{sizes.qemu_memory_bytes / MIB:.1f}",
        )
    return table


def main() -> int:
    """Take them, and show a table."""
    parser = argparse.ArgumentParser(prog="tests.torture.long_run", description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=2000)
    parser.add_argument("--json", type=Path, required=True)
    chosen = parser.parse_args()
    console = Console(width=120)

    def show(row: Row) -> None:
        console.print(f"{row.checkpoints} checkpoints, {row.seconds_each:.3f} s each")

    every = max(1, chosen.checkpoints // 10)
    with tempfile.TemporaryDirectory(prefix="vmwrapper-long-run-") as folder:
        try:
            rows = asyncio.run(long_run(Path(folder), checkpoints=chosen.checkpoints, every=every, show=show))
        except Grown as grown:
            console.print(f"LOSS: {grown}", markup=False)
            return 1
    console.print(_table(rows))
    chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
