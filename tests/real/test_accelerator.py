"""The probe against the real QEMU and whatever /dev/kvm this machine has."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from vmwrapper import process
from vmwrapper.errors import ProcessFailed
from vmwrapper.hypervisor.qemu import firmware
from vmwrapper.hypervisor.qemu.accelerator import PROBE_LIMIT_S, Accelerator, Host, best, probe

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def binary() -> Path:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    return Path(found)


class Recorder:
    """Runs programs, and remembers how each ended."""

    def __init__(self) -> None:
        self.statuses: list[int | None] = []

    async def __call__(
        self, argv: Sequence[str], *, limit_s: float, directory: Path | None = None
    ) -> process.Completed:
        self.statuses.append(None)
        ended = await process.complete(argv, limit_s=limit_s, directory=directory)
        self.statuses[-1] = ended.status
        return ended


async def test_emulation_runs_the_firmware_to_its_end(binary: Path) -> None:
    recorder = Recorder()
    verdict = await probe(binary, Accelerator.TCG, cache=None, host=Host(run=recorder))
    assert verdict.works, verdict.reason
    assert recorder.statuses == [67]


async def test_kvm_gets_a_true_verdict_in_time(binary: Path) -> None:
    recorder = Recorder()
    started = time.monotonic()
    accelerator, verdicts = await best(binary, cache=None, host=Host(system="Linux", run=recorder))
    assert time.monotonic() - started < PROBE_LIMIT_S + 0.5
    [verdict] = verdicts
    assert verdict.works == (recorder.statuses == [firmware.DONE_STATUS]), verdict.reason
    assert verdict.works == (accelerator is Accelerator.KVM)
    assert verdict.works or "/dev/kvm" in verdict.reason or "status" in verdict.reason


async def test_a_remembered_verdict_starts_nothing(binary: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    first = await probe(binary, Accelerator.TCG, cache=tmp_path, host=Host(run=recorder))
    took_s = []
    for _ in range(3):  # of which one is not disturbed by what else this machine does
        started = time.monotonic()
        assert await probe(binary, Accelerator.TCG, cache=tmp_path, host=Host(run=recorder)) == first
        took_s.append(time.monotonic() - started)
    assert min(took_s) < 0.05
    assert len(recorder.statuses) == 1


async def test_a_guest_that_hangs_is_killed_at_the_limit(binary: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    verdict = await probe(
        binary, Accelerator.TCG, cache=None, host=Host(scratch=tmp_path, run=stopped_before_its_guest)
    )
    assert PROBE_LIMIT_S <= time.monotonic() - started < PROBE_LIMIT_S + 0.5
    assert "no progress within 2 s" in verdict.reason
    assert not psutil.Process().children()
    assert not list(tmp_path.iterdir())


async def test_a_cancellation_leaves_nothing(binary: Path, tmp_path: Path) -> None:
    host = Host(scratch=tmp_path, run=stopped_before_its_guest)
    asking = asyncio.create_task(probe(binary, Accelerator.TCG, cache=None, host=host))
    while not psutil.Process().children():
        await asyncio.sleep(0.01)
    started = time.monotonic()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert time.monotonic() - started < 0.5
    assert not psutil.Process().children()
    assert not list(tmp_path.iterdir())


async def test_a_missing_binary_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="can't start"):
        await probe(tmp_path / "qemu", Accelerator.TCG, cache=tmp_path, host=Host())


async def stopped_before_its_guest(
    argv: Sequence[str], *, limit_s: float, directory: Path | None = None
) -> process.Completed:
    """QEMU with its processors stopped: what a dead accelerator looks like."""
    return await process.complete([*argv, "-S"], limit_s=limit_s, directory=directory)
