"""A few rounds of the torture: each kind of harm, and some fault points. `make torture` has as many as you like."""

import os

import pytest

from tests.torture.harms import Plan, Way, plan
from tests.torture.rounds import run_round

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

STEPS = 60
POINTS = ("frozen", "completed", "record-renamed", "unlinked")
"""At which the wrapper is killed beside the plain kinds."""
PLANS = [
    *(plan(f"test {way.name}", way, steps=STEPS, most_harms=1) for way in Way),
    *(plan(f"test {name}", Way.POINT_WRAPPER, steps=STEPS, point=name, most_harms=1) for name in POINTS),
]


@pytest.mark.parametrize("drawn", PLANS, ids=[each.seed.removeprefix("test ") for each in PLANS])
def test_nothing_is_lost(drawn: Plan) -> None:
    if drawn.way.needs_root and os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    outcome = run_round(drawn)
    assert not outcome.loss, f"{outcome.loss}: see {outcome.place}"
    assert outcome.hits, f"no harm was done: {[str(harm) for harm in outcome.missed]}"
