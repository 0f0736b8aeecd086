"""An episode with VirtualBox that dies by kill -9: `python -m tests.real.virtualbox_episode SLOT IMAGE MOMENT`.

It dies after VBoxManage has done what MOMENT names, or in the middle of that, or while the guest runs; snapshots that
it can be reverted to are in SLOT/snapshots.json by then.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from vmwrapper.clock import RunningClock
from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec, Snapshot
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage

MIDDLE_S = 0.12


def spec(slot: Path, image: Path, *snapshots: Snapshot) -> MachineSpec:
    directory = slot / "machine"
    directory.mkdir(parents=True, exist_ok=True)
    return MachineSpec(
        identity=MachineIdentity("test", f"result of {slot.name}", str(slot)),
        image=image,
        directory=directory,
        memory_mib=32,
        cpus=1,
        scratch_mib=4,
        snapshots=snapshots,
    )


@contextmanager
def standing() -> Iterator[None]:
    """Nothing is to be stopped for a snapshot."""
    yield


def kept(slot: Path) -> list[Snapshot]:
    """The snapshots that a dead episode told of."""
    file = slot / "snapshots.json"
    return [Snapshot(*one) for one in json.loads(file.read_text())] if file.exists() else []


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Mortal(VBoxManage):
    """Has us die at the moment."""

    moment = ""

    async def __call__(self, *arguments: str | Path | int, limit_s: float = 60) -> str:
        when, _, verb = self.moment.partition(" ")
        if verb != " ".join(map(str, (arguments[0], arguments[2]) if arguments[0] == "snapshot" else arguments[:1])):
            return await super().__call__(*arguments, limit_s=limit_s)
        if when == "in":
            asyncio.get_running_loop().call_later(MIDDLE_S, die)
        await super().__call__(*arguments, limit_s=limit_s)
        die()


async def main(slot: Path, image: Path, moment: str) -> None:
    hypervisor = VirtualBoxHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    assert hypervisor._manage
    mortal = Mortal(*hypervisor._manage._program)
    hypervisor._manage = mortal
    if "snapshot" not in moment:
        mortal.moment = moment
    async with hypervisor.machine(spec(slot, image), RunningClock()) as machine:
        await machine.power_on()
        while "TICK 2" not in machine.console_tail:
            await asyncio.sleep(0.05)
        for _ in range(2):
            await machine.take_snapshot(standing, most_bytes=1 << 40)
            await asyncio.sleep(0.2)
        told = [(one.number, one.description) for one in machine.snapshots]
        (slot / "snapshots.json").write_text(json.dumps(told))
        mortal.moment = moment
        if moment == "while running":
            die()
        await machine.take_snapshot(standing, most_bytes=1 << 40)
        await machine.keep_snapshots([3])
    raise AssertionError(moment)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
