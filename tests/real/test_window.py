"""Large files in a real guest, where one thing or another is not as it should be."""

import asyncio
import os
import random
import time
from pathlib import Path

import pytest
import pytest_asyncio

from vmwrapper.errors import GuestError, OutputChanged, TransferFailed
from vmwrapper.guest.launcher import Launcher
from vmwrapper.hypervisor.interface import MIB, Guest, Machine

pytestmark = [pytest.mark.qemu, pytest.mark.asyncio]

SIZE = 40 * MIB + 77


@pytest_asyncio.fixture
async def guest(machine: Machine) -> Guest:
    await Launcher(machine.guest, datadir="/data", user="root").prepare(scratch=True)
    return machine.guest


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


async def sh(guest: Guest, script: str) -> str:
    result = await guest.run(["sh", "-c", script], limit_s=60)
    assert result.status == 0, result.stderr
    return result.stdout.decode()


async def replace_dd(guest: Guest, body: str) -> None:
    """As a function at the beginning of each script, since busybox's shell has a dd of its own."""
    shell = f"#!/bin/busybox sh\n{{ echo 'dd() {{ {body}; }}'; cat; }} | busybox sh \"$@\"\n"
    command = "rm /usr/bin/sh; cat >/usr/bin/sh; chmod +x /usr/bin/sh"
    await guest.run(["busybox", "sh", "-c", command], stdin=shell.encode(), limit_s=60)


async def cross(guest: Guest, large: Path, folder: str) -> None:
    """There and back."""
    back = large.with_name("back")
    await guest.put({"in a/folder": large}, folder)
    await guest.get(folder, {"in a/folder": back}, limit_bytes=SIZE)
    assert back.read_bytes() == large.read_bytes()
    back.unlink()


async def sectors_written(guest: Guest) -> int:
    """To the window, which is the guest's second disk."""
    return int((await sh(guest, "cat /sys/block/vdb/stat")).split()[6])


async def test_file_systems_with_and_without_direct_access(guest: Guest, large: Path) -> None:
    for folder in ("/data", "/tmp"):
        before = await sectors_written(guest)
        await cross(guest, large, folder)
        assert (await sectors_written(guest) - before) * 512 >= 3 * SIZE
        await sh(guest, f"rm -r '{folder}/in a'")


async def test_a_guest_that_can_not_pass_by_its_page_cache(guest: Guest, large: Path) -> None:
    await replace_dd(guest, 'case "$*" in *direct*) return 1 ;; esac; busybox dd "$@"')
    before = await sectors_written(guest)
    await cross(guest, large, "/data")
    assert await sectors_written(guest) == before


async def test_a_full_disk_and_the_next_transfer(guest: Guest, large: Path) -> None:
    await sh(guest, "dd if=/dev/zero of=/data/full bs=1M count=30")
    with pytest.raises(GuestError, match="No space left"):
        await guest.put({"large": large}, "/data")
    await sh(guest, "rm /data/full /data/large")
    await cross(guest, large, "/data")


@pytest.mark.parametrize("change", ["truncate -s 9M large", "rm large", "mv large other; echo new >large"])
async def test_a_file_that_changes_after_its_first_part(guest: Guest, large: Path, change: str) -> None:
    await guest.put({"large": large}, "/data")
    await replace_dd(guest, f'busybox dd "$@" || return; case "$*" in *if=./large*) cd /data; {change} ;; esac')
    with pytest.raises(OutputChanged):
        await guest.get("/data", {"large": large.with_name("back")}, limit_bytes=SIZE)


@pytest.mark.parametrize("lie", ["true", "busybox dd if=/dev/null", 'busybox dd "$@"; echo rubbish >&3'])
async def test_a_dd_that_does_not_copy(guest: Guest, large: Path, lie: str) -> None:
    """All of the file is in the window from its way in."""
    await guest.put({"large": large}, "/data")
    await replace_dd(guest, f'case "$*" in *if=./large*) {lie} ;; *) busybox dd "$@" ;; esac')
    with pytest.raises(TransferFailed):
        await guest.get("/data", {"large": large.with_name("back")}, limit_bytes=SIZE)


@pytest.mark.parametrize("direction", ["in", "out"])
async def test_a_transfer_that_is_cancelled_ends_at_once(guest: Guest, large: Path, direction: str) -> None:
    """And leaves no descriptor open, as every test here makes sure."""
    await sh(guest, "mount -o remount,size=1G /tmp; truncate -s 1G /tmp/sparse")
    os.truncate(large, 1024 * MIB)
    into = guest.put({"large": large}, "/tmp")
    out_of = guest.get("/tmp", {"sparse": large.with_name("back")}, limit_bytes=1024 * MIB)
    crossing, other = (into, out_of) if direction == "in" else (out_of, into)
    other.close()
    started_at = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await crossing
    assert time.monotonic() - started_at < 1
