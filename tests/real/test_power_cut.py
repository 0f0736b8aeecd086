"""Power cuts of a job with checkpoints. `python -m tests.torture.power_cuts` has many more of them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.torture.power_cuts import QUITS_AFTER
from tests.torture.recorded_folder import why_not
from tests.torture.recorded_job import empty, play_back, record

pytestmark = [pytest.mark.qemu, pytest.mark.fuse, pytest.mark.usefixtures("default_image")]

CUTS = 4
LEAST_RECORDS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    if reason := why_not():
        pytest.skip(reason)
    yield tmp_path / "cuts"
    shutil.rmtree(tmp_path / "cuts", ignore_errors=True)  # a gigabyte


def test_what_was_safe_before_a_power_cut_is_so_afterwards(folder: Path) -> None:
    place = record(folder, quits_after=QUITS_AFTER)
    landmarks = place.landmarks()
    assert len(landmarks.records) >= LEAST_RECORDS
    for cut, _ in landmarks.cuts(how_many=CUTS, rng=Random(7)):
        outcome = play_back(place, landmarks, cut)
        assert outcome.problems == [], f"{cut}\n{outcome.log}"
        empty(place.slot)
