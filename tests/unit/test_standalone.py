"""The app API without a client."""

import logging
from pathlib import Path

import pytest

from vmwrapper.boinc.standalone import Standalone

from . import simulated_time


@pytest.fixture
def standalone(tmp_path: Path) -> Standalone:
    return Standalone(tmp_path, result_name="hubble", show=lambda _: None)


def test_it_makes_up_what_a_client_would_say(standalone: Standalone, tmp_path: Path) -> None:
    data = standalone.init_data
    assert (data.project_dir, data.result_name, data.rsc_disk_bound_bytes) == (tmp_path, "hubble", 0)
    assert (data.checkpoint_period_s, data.global_preferences.cpu_usage_limit) == (0, 100)
    assert not standalone.network_suspended


def test_trickles_are_only_mentioned(standalone: Standalone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="vmwrapper")
    simulated_time.run(standalone.send_trickle_up("credit", "<x/>\x1b[2J"))
    [record] = caplog.records
    assert (record.levelno, "credit: <x/>" in record.getMessage(), "\x1b" in record.getMessage()) == (10, True, False)
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time(standalone: Standalone, tmp_path: Path) -> None:
    async def episode() -> None:
        async with standalone.episode():
            assert (tmp_path / "boinc_lockfile").exists()

    simulated_time.run(episode())
    simulated_time.run(episode())
