"""Kills machines of VirtualBox's, their wrapper, or VirtualBox's service at random moments of their life.

Each life is a process of its own that makes a machine in the same slot as the one before, goes on from the snapshots
that that one has left, and takes more of them. After all of them nothing may be registered, and no machine run.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.peers import boot_sector, virtualbox_chroot
from tests.peers.virtualbox import Profile, clean_profile
from vmwrapper.clock import RunningClock
from vmwrapper.durable import write_durably
from vmwrapper.errors import GuestSilent, SnapshotUnusable, VmwrapperError
from vmwrapper.exit_status import ExitStatus
from vmwrapper.hypervisor.interface import Machine, MachineIdentity, MachineSpec, Snapshot
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor

_RECORD = "record.json"
_LONGEST_LIFE_S = 12.0
_LAST_LIMIT_S = 240.0
_UNLIMITED = 1 << 50
_ENDS = {None, -signal.SIGKILL, ExitStatus.TEMPORARY}
"""Of a life that was harmed; None for one that goes on, and is killed then."""
_SILENT_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lifecycles", type=int, default=50)
    parser.add_argument("--seed", default=str(random.randrange(1 << 20)))
    parser.add_argument("--live", type=Path, help="be one life in this slot")
    chosen = parser.parse_args()
    if chosen.live:
        asyncio.run(_live(chosen.live))
        return
    if reason := boot_sector.missing() or virtualbox_chroot.missing():
        print(f"no lives of VirtualBox's machines: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="vmwrapper-torture-") as folder:
        sys.exit(_torture(Path(folder), chosen.lifecycles, chosen.seed))


def _torture(folder: Path, lifecycles: int, seed: str) -> int:
    print(f"{lifecycles} lives of VirtualBox's machines, SEED={seed}", flush=True)
    moments = random.Random(seed)
    slot = folder / "slot"
    (slot / ".vmwrapper").mkdir(parents=True)
    lost, harms = 0, Counter[str]()
    with clean_profile(folder / "profile") as profile:
        for number in range(lifecycles):
            harm = moments.choice(("the wrapper", "the machine", "both", "the service", "all of them"))
            harms[harm] += 1
            before = _count(slot)
            with _life(slot, profile) as process:
                time.sleep(moments.uniform(0.2, _LONGEST_LIFE_S))
                _kill(harm, process, profile)
                status = process.poll()
            if (after := _count(slot)) < before or status not in _ENDS:
                lost += 1
                print(f"LOSS: from {before} to {after}, ended with {status}", flush=True)
            print(f"{number}: {harm}; the guest was seen at {after}", flush=True)
        (slot / "enough").touch()
        status = _last_life(slot, profile)
    print(f"{dict(harms)}, {lost} losses, the last life ended with {status}; nothing was left")
    return 1 if status is None else status or lost


def _last_life(slot: Path, profile: Profile) -> int | None:
    """How it ended; None where it did not."""
    with _life(slot, profile) as process, suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=_LAST_LIMIT_S)
    return None


@contextmanager
def _life(slot: Path, profile: Profile) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "tests.torture.virtualbox", "--live", slot]
    with subprocess.Popen(argv, env=profile.environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _kill(harm: str, process: subprocess.Popen[bytes], profile: Profile) -> None:
    machines, services = profile.machines(), _services(profile)
    chosen = {"the wrapper": [], "the service": services, "all of them": [*machines, *services]}
    for victim in chosen.get(harm, machines):
        with suppress(psutil.Error):
            victim.kill()
    if harm in ("the wrapper", "both", "all of them"):
        process.kill()
    else:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_LONGEST_LIFE_S)


def _services(profile: Profile) -> list[psutil.Process]:
    return [process for process in profile.processes() if process.name() == "VBoxSVC"]


def _count(slot: Path) -> int:
    """How far the guest was when the last snapshot was taken that counts."""
    with suppress(FileNotFoundError):
        return int(json.loads((slot / _RECORD).read_text())["count"])
    return 0


async def _live(slot: Path) -> None:
    hypervisor = VirtualBoxHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    spec = MachineSpec(
        identity=MachineIdentity("torture", "life", str(slot)),
        image=boot_sector.disk(boot_sector.boot_sector(timer_ticks=1), "vdi"),
        directory=slot / ".vmwrapper",
        memory_mib=32,
        cpus=1,
        scratch_mib=8,
        snapshots=[Snapshot(number, words) for number, words, _ in _recorded(slot)],
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        counts = {number: count for number, _, count in _recorded(slot)}
        await _begin(machine, counts)
        while not (slot / "enough").exists():
            await asyncio.sleep(0.3)
            count = _seen(machine)  # before: the guest counts on as soon as the snapshot is taken
            await machine.take_snapshot(_standing, most_bytes=_UNLIMITED)
            kept = machine.snapshots[:2]
            counts = {**counts, kept[0].number: count}
            snapshots = [[one.number, one.description, counts[one.number]] for one in kept]
            written = {"count": count, "snapshots": snapshots}
            write_durably(slot / _RECORD, json.dumps(written).encode())
            await machine.keep_snapshots([one.number for one in kept])
            await machine.pause()
            await machine.resume()
        await machine.keep_snapshots([])


async def _begin(machine: Machine, counts: Mapping[int, int]) -> None:
    """Go on from the newest snapshot that can be used, as `task_run` does."""
    if not counts:
        await machine.power_on()
        await _counts(machine)
        return
    assert machine.snapshots, "the snapshots on record are lost"
    for snapshot in list(machine.snapshots):
        try:
            await machine.revert(snapshot)
            await machine.resume()
            await _counts(machine)
        except (SnapshotUnusable, GuestSilent) as error:
            print(f"snapshot {snapshot.number} can't be used: {error}", flush=True)
            continue
        if (seen := _seen(machine)) < (safe := counts.get(snapshot.number, 0)):
            sys.exit(f"the guest goes on at {seen}, where {safe} was safe")
        return
    sys.exit("the guest goes on from no snapshot")


async def _counts(machine: Machine) -> None:
    """Wait until the guest does. Raises GuestSilent."""
    try:
        async with asyncio.timeout(_SILENT_S):
            while not _seen(machine):
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise GuestSilent(f"the guest has not counted within {_SILENT_S:g} s") from error


def _recorded(slot: Path) -> list[tuple[int, str, int]]:
    """Number, description and count of each snapshot that counts, newest first."""
    with suppress(FileNotFoundError):
        return [
            (number, words, count) for number, words, count in json.loads((slot / _RECORD).read_text())["snapshots"]
        ]
    return []


def _seen(machine: Machine) -> int:
    found = re.findall(r"TICK (\d+)\nDISK (\d+)\n", machine.console_tail)
    odd = [pair for pair in found if int(pair[1]) != int(pair[0]) - 1]
    assert not odd, f"memory and disk of the guest are of different moments: {odd}"
    return int(found[-1][0]) if found else 0


@contextmanager
def _standing() -> Iterator[None]:
    yield


if __name__ == "__main__":
    try:
        main()
    except VmwrapperError as error:
        print(error)
        os._exit(error.exit_status)
