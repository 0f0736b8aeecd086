"""A few rounds of the torture: each kind of harm, and some fault points. `make torture` has as many as you like."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.torture.harms import Plan, Way, plan
from tests.torture.long_run import long_run
from tests.torture.rounds import run_round
from vmwrapper.hypervisor.interface import Machine

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

STEPS = 60
POINTS = ("frozen", "completed", "record-renamed", "unlinked")
"""At which the wrapper is killed beside the plain kinds."""
PLANS = [
    *(plan(f"test {way.name}", way, steps=STEPS, most_harms=1) for way in Way),
    *(plan(f"test {name}", Way.POINT_WRAPPER, steps=STEPS, point=name, most_harms=1) for name in POINTS),
]
MOST_BYTES = 1 << 40


@pytest.mark.parametrize("drawn", PLANS, ids=[each.seed.removeprefix("test ") for each in PLANS])
def test_nothing_is_lost(drawn: Plan) -> None:
    if drawn.way.needs_root and os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    outcome = run_round(drawn)
    assert not outcome.loss, f"{outcome.loss}: see {outcome.place}"
    assert outcome.hits, f"no harm was done: {[str(harm) for harm in outcome.missed]}"


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
