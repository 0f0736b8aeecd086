"""One at a time, also of several processes."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from vmwrapper.turns import turn

from . import simulated_time

PATIENCE_S = 10.0
HOLDER = """\
import asyncio, sys
from pathlib import Path
from vmwrapper.turns import turn

async def hold():
    async with turn(Path(sys.argv[1])):
        print("mine", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(hold())
"""


async def holder(folder: Path) -> asyncio.subprocess.Process:
    """Another process that has its turn until its input ends."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, folder, stdin=pipe, stdout=pipe)
    assert process.stdout
    assert await process.stdout.readline() == b"mine\n"
    return process


async def have_a_turn(folder: Path) -> None:
    async with turn(folder):
        pass


@pytest.mark.parametrize("end", ["at last", "killed"])
async def test_another_process_is_waited_for_until_it_ends(tmp_path: Path, end: str) -> None:
    process = await holder(tmp_path)
    waiting = asyncio.create_task(have_a_turn(tmp_path))
    await asyncio.sleep(1.2)
    assert not waiting.done()
    if end == "killed":
        process.send_signal(signal.SIGKILL)
    else:
        await process.communicate(b"")
    began_s = time.monotonic()
    await asyncio.wait_for(waiting, PATIENCE_S)
    assert time.monotonic() - began_s < 2
    await process.wait()


async def test_who_waits_can_be_cancelled_and_others_are_not_harmed(tmp_path: Path) -> None:
    process = await holder(tmp_path)
    waiting = asyncio.create_task(have_a_turn(tmp_path))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    another = asyncio.create_task(have_a_turn(tmp_path))
    await asyncio.sleep(0.1)
    assert not another.done()
    await process.communicate(b"")
    await asyncio.wait_for(another, PATIENCE_S)


def test_one_after_the_other_in_a_process(tmp_path: Path) -> None:
    having: list[int] = []

    async def have(number: int) -> None:
        async with turn(tmp_path):
            having.append(number)
            assert having == [number]
            await asyncio.sleep(3)
            having.remove(number)

    async def story() -> float:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(have(number))
        return asyncio.get_running_loop().time()

    assert 15 <= simulated_time.run(story()) <= 18


def test_other_folders_have_turns_of_their_own_and_an_error_ends_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    async def fail() -> None:
        async with turn(tmp_path):
            await have_a_turn(tmp_path / "other")
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            simulated_time.run(fail())
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_where_there_is_no_folder_nobody_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with turn(tmp_path / "none"):
            await have_a_turn(tmp_path / "none")

    simulated_time.run(story())
