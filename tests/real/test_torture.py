"""A few rounds of the torture: each kind of harm, and some fault points. `make torture` has as many as you like."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
from qemu.qmp import QMPClient

from tests.torture.harms import Harm, Plan, Way
from tests.torture.long_run import long_run
from tests.torture.points import Kind
from tests.torture.rounds import run_round
from vmwrapper.clock import RunningClock
from vmwrapper.errors import MachineExited, SnapshotFailed
from vmwrapper.hypervisor.interface import Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu import merging
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor
from vmwrapper.hypervisor.qemu.layers import Layer
from vmwrapper.hypervisor.qemu.saved import saved

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

STEPS = 50
"""Some 4 s."""
TAKEN = "Checkpoint taken"
HARMS = (
    Harm(way=Way.WRAPPER, chapter="Copying in input input"),
    Harm(way=Way.WRAPPER, chapter=TAKEN, delay_s=0.5),
    Harm(way=Way.QEMU, chapter=TAKEN, delay_s=0.2),
    Harm(way=Way.BOTH, chapter="before checkpoint", chapter_nth=2, delay_s=0.1),
    Harm(way=Way.TERM, chapter="Running the program: long.sh", delay_s=0.5),
    Harm(way=Way.TERM_THEN_KILL, chapter=TAKEN, delay_s=0.3, then_s=0.05),
    Harm(way=Way.FULL_DISK, chapter=TAKEN, delay_s=0.2, then_s=2),
    Harm(way=Way.CLIENT, chapter=TAKEN, delay_s=0.2, suspend_s=0.5),
    Harm(way=Way.CLIENT_BOTH, chapter=TAKEN, delay_s=0.5),
    Harm(way=Way.CLIENT_QUIT, chapter="Running the program: long.sh", delay_s=0.7),
    Harm(way=Way.FULL_STATE, point="full-state", kind=Kind.ENOSPC),
    Harm(way=Way.POINT_ERROR, point="error-record-fsync", kind=Kind.EIO, nth=2),
    Harm(way=Way.POINT_QEMU, point="frozen", kind=Kind.QEMU, nth=2),
    Harm(way=Way.POINT_BOTH, point="completed", kind=Kind.BOTH, nth=2),
    Harm(way=Way.POINT_WRAPPER, point="secured", nth=2),
    Harm(way=Way.POINT_WRAPPER, point="record-renamed"),
    Harm(way=Way.POINT_WRAPPER, point="unlinked"),
    Harm(way=Way.POINT_WRAPPER, point="get", nth=5),
    Harm(way=Way.POINT_WRAPPER, point="output-renamed"),
    Harm(way=Way.CLIENT_POINT, point="finished"),
)
MOST_BYTES = 1 << 40
MOST_ATTEMPTS = 4
"""A moment after something is never sure to be met: a last checkpoint is taken within 0.2 s."""


def name(harm: Harm) -> str:
    return f"{harm.way.name.lower()}-{harm.point if harm.way.at_point else harm.chapter}".replace(" ", "-")


@pytest.mark.parametrize("harm", HARMS, ids=name)
def test_nothing_is_lost(harm: Harm) -> None:
    if harm.way.needs_root and os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    for attempt in range(MOST_ATTEMPTS):
        outcome = run_round(Plan(seed=f"{name(harm)} {attempt}", way=harm.way, steps=STEPS, harms=(harm,)))
        assert not outcome.loss, f"{outcome.loss}: see {outcome.place}"
        if outcome.counts:
            return
    pytest.fail("the episode was over before that harm, each time")


async def test_nothing_grows_with_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    await long_run(folder, checkpoints=25, every=25)


async def test_layers_that_were_kept_for_long_are_merged_at_once(machine: Machine) -> None:
    for _ in range(5):
        await machine.take_snapshot(nullcontext, most_bytes=MOST_BYTES)
        await machine.resume()
    for _ in range(2):
        await machine.keep_snapshots([one.number for one in machine.snapshots][:2])
        await machine.take_snapshot(nullcontext, most_bytes=MOST_BYTES)
        await machine.resume()
    assert len(machine.snapshots) == 3


async def take_many(machine: Machine) -> None:
    for _ in range(9):
        await machine.take_snapshot(nullcontext, most_bytes=MOST_BYTES)
        await machine.resume()
        await machine.keep_snapshots([one.number for one in machine.snapshots][:2])


async def test_qemu_that_is_killed_as_a_merge_ends_leaves_no_layer_open(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[Layer] = []

    async def detach(monitor: QMPClient, layer: Layer) -> None:
        layers.append(layer)
        [qemu] = psutil.Process().children()
        qemu.kill()
        await original(monitor, layer)

    original = merging.detach
    monkeypatch.setattr(merging, "detach", detach)
    with pytest.raises(MachineExited):
        await take_many(machine)
    [layer] = layers
    assert layer.file.closed


@contextmanager
def refused() -> Iterator[None]:
    """Let no guest stand still."""
    raise SnapshotFailed("on purpose")
    yield


async def test_what_was_merged_stays_where_no_later_checkpoint_counts(default_image: Path, tmp_path: Path) -> None:
    """The record still names it, in whatever way the episode ends then."""
    hypervisor, clock = QemuHypervisor(), RunningClock()
    await hypervisor.probe(clock)
    folder = tmp_path / "machine"
    folder.mkdir()
    spec = MachineSpec(
        identity=MachineIdentity("test", "merged", str(folder)),
        image=default_image,
        directory=folder,
        memory_mib=128,
        cpus=1,
        scratch_mib=16,
    )
    async with hypervisor.machine(spec, clock) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=60)
        for _ in range(5):
            await machine.take_snapshot(nullcontext, most_bytes=MOST_BYTES)
            await machine.resume()
            await machine.keep_snapshots([one.number for one in machine.snapshots][:2])
        recorded = list(machine.snapshots)
        with pytest.raises(SnapshotFailed):
            await machine.take_snapshot(refused, most_bytes=MOST_BYTES)
        assert machine.snapshots != recorded, "nothing was merged"
    named = {file for snapshot in recorded for file in saved(snapshot).files}
    assert {path.name for path in folder.iterdir()} == named
