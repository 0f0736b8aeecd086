"""The gateway to the host's programs, with real ones."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vmwrapper import process
from vmwrapper.clock import RunningClock
from vmwrapper.errors import ProcessFailed

FOREVER = ["sleep", "1000"]


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def cancelled(task: "asyncio.Task[object]") -> None:
    while not children():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class TestComplete:
    async def test_status_and_what_it_printed(self) -> None:
        done = await process.complete(["sh", "-c", "echo out; echo err >&2; exit 3"], limit_s=5)
        assert done == process.Completed(3, b"out\n", b"err\n")

    async def test_a_signal_counts_below_zero(self) -> None:
        assert (await process.complete(["sh", "-c", "kill -9 $$"], limit_s=5)).status == -9

    async def test_it_reads_nothing_of_ours(self) -> None:
        assert (await process.complete(["cat"], limit_s=5)).stdout == b""

    async def test_its_directory(self, tmp_path: Path) -> None:
        done = await process.complete(["pwd"], limit_s=5, directory=tmp_path)
        assert done.stdout.decode().strip() == str(tmp_path.resolve())

    async def test_its_environment_is_clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_LIBRARY_PATH", "/the/slot")
        monkeypatch.setenv("SECRET", "x")
        done = await process.complete(["env"], limit_s=5)
        variables = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
        assert "LD_LIBRARY_PATH" not in variables
        assert "SECRET" not in variables
        assert variables["PATH"] == os.environ["PATH"]

    async def test_much_output_at_once(self) -> None:
        done = await process.complete(["head", "-c", "3000000", "/dev/zero"], limit_s=10)
        assert len(done.stdout) == 3_000_000

    async def test_it_stops_and_goes_with_the_clock(self) -> None:
        clock = RunningClock()
        counting = asyncio.create_task(process.complete(["sh", "-c", "while :; do :; done"], limit_s=1, clock=clock))
        while not (running := children()):
            await asyncio.sleep(0.01)
        clock.stop()
        await asyncio.sleep(0.1)
        before = running[0].cpu_times()
        await asyncio.sleep(1)
        assert running[0].status() == psutil.STATUS_STOPPED
        assert running[0].cpu_times() == before
        assert not counting.done()
        clock.go()
        with pytest.raises(ProcessFailed, match="no end after 1 s"):
            await counting

    async def test_on_a_stopped_clock_it_begins_stopped(self) -> None:
        clock = RunningClock()
        clock.stop()
        slow = ["sh", "-c", "sleep 0.3; echo x"]  # so that it can be stopped before its end
        answering = asyncio.create_task(process.complete(slow, limit_s=5, clock=clock))
        await asyncio.sleep(1)
        assert not answering.done()
        clock.go()
        assert (await answering).stdout == b"x\n"

    async def test_a_stopped_one_can_be_cancelled(self) -> None:
        clock = RunningClock()
        clock.stop()
        await cancelled(asyncio.create_task(process.complete(FOREVER, limit_s=5, clock=clock)))
        assert children() == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    async def test_several_at_once_are_deaf_to_what_is_for_us(self, number: signal.Signals) -> None:
        argv = ["sh", "-c", f"kill -{number} $$; echo alive"]
        done = await asyncio.gather(*(process.complete(argv, limit_s=5) for _ in range(5)))
        assert [each.stdout for each in done] == 5 * [b"alive\n"]
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    async def test_more_output_than_wanted_ends_it(self) -> None:
        done = await process.complete(["yes"], limit_s=5, most_bytes=1000)
        assert done.status == -9
        assert len(done.stdout) < 1_000_000

    async def test_what_is_not_there(self) -> None:
        with pytest.raises(ProcessFailed, match="can't start no-such-program"):
            await process.complete(["no-such-program"], limit_s=5)

    @pytest.mark.parametrize(
        "argv",
        [
            pytest.param(FOREVER, id="itself"),
            pytest.param(["sh", "-c", "sleep 2; true"], id="its child holds the pipes"),
            pytest.param(["sh", "-c", "sleep 2 & exit"], id="it has ended, its child holds the pipes"),
        ],
    )
    async def test_the_limit_bounds(self, argv: list[str]) -> None:
        started = time.monotonic()
        with pytest.raises(ProcessFailed, match=r"no end after 0\.3 s: s"):
            await process.complete(argv, limit_s=0.3)
        assert time.monotonic() - started < 1
        assert [child for child in children() if child.ppid() == os.getpid()] == []

    async def test_a_cancellation_ends_it(self) -> None:
        await cancelled(asyncio.create_task(process.complete(FOREVER, limit_s=100)))
        assert children() == []


class TestRun:
    async def test_what_it_printed(self) -> None:
        assert await process.run(["echo", "it's"], limit_s=5) == b"it's\n"

    async def test_a_failure_can_be_pasted_into_a_shell(self) -> None:
        argv = ["sh", "-c", "echo 'this is why' >&2; exit 7"]
        with pytest.raises(ProcessFailed) as raised:
            await process.run(argv, limit_s=5)
        first, *said = str(raised.value).splitlines()
        assert "status 7" in first
        assert said == ["it said: this is why"]
        pasted = subprocess.run(first.split(": ", 1)[1], shell=True, check=False, capture_output=True)
        assert pasted.returncode == 7

    async def test_a_silent_failure(self) -> None:
        with pytest.raises(ProcessFailed, match="nothing"):
            await process.run(["false"], limit_s=5)

    async def test_only_its_last_words_are_quoted(self) -> None:
        with pytest.raises(ProcessFailed) as raised:
            await process.run(["sh", "-c", "seq 5000 >&2; false"], limit_s=5)
        assert str(raised.value).endswith("\n5000")
        assert len(str(raised.value)) < process.STDERR_TAIL_BYTES + 200


class TestChild:
    async def test_it_lives_as_long_as_the_block(self) -> None:
        async with process.child(FOREVER) as child:
            assert psutil.Process(child.pid).is_running()
        assert not psutil.pid_exists(child.pid)

    async def test_it_ends_with_an_error_in_the_block(self) -> None:
        with pytest.raises(KeyError):
            async with process.child(FOREVER):
                raise KeyError
        assert children() == []

    async def test_it_ends_with_a_cancellation(self) -> None:
        async def story() -> None:
            async with process.child(FOREVER) as child:
                await child.ended()

        await cancelled(asyncio.create_task(story()))
        assert children() == []

    async def test_it_ends_with_a_cancellation_of_its_end(self) -> None:
        """As when a quit's time is over: a machine with memory takes a moment to die."""
        big = "import time; memory = bytearray(1 << 29); print(flush=True); time.sleep(1000)"

        async def story() -> None:
            async with process.child([sys.executable, "-c", big]) as child:
                while not psutil.Process(child.pid).memory_info().rss > 1 << 29:
                    await asyncio.sleep(0.01)
                asyncio.get_running_loop().call_later(0.001, task.cancel)

        task = asyncio.create_task(story())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() == []

    async def test_any_number_may_wait_for_its_end(self) -> None:
        async with process.child(["sh", "-c", "sleep 0.1; exit 5"]) as child:
            assert set(await asyncio.gather(child.ended(), child.ended(), child.ended())) == {5}
            assert await child.ended() == 5

    async def test_a_signal_counts_below_zero(self) -> None:
        async with process.child(FOREVER) as child:
            psutil.Process(child.pid).kill()
            assert await child.ended() == -9

    async def test_its_transport_is_closed_when_asyncio_knows_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = []
        async with process.child(FOREVER) as child:
            transport, close = child._transport, child._transport.close
            monkeypatch.setattr(transport, "close", lambda: (known.append(transport.get_returncode()), close()))
        assert known == [-signal.SIGKILL]

    async def test_its_last_words(self) -> None:
        async with process.child(["sh", "-c", "seq 50000 >&2; echo enough >&2"]) as child:
            await child.ended()
        assert child.last_words.endswith("50000\nenough")
        assert len(child.last_words) <= process.STDERR_TAIL_BYTES

    async def test_it_inherits_what_it_is_given_and_that_stays_ours(self) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as theirs, os.fdopen(writing, "wb") as ours:
            argv = ["sh", "-c", f"echo words >/dev/fd/{writing}"]
            async with process.child(argv, pass_fds=[writing]) as child:
                assert await child.ended() == 0
            ours.write(b"more\n")
            ours.flush()
            assert os.read(theirs.fileno(), 100) == b"words\nmore\n"

    async def test_what_is_not_there(self) -> None:
        with pytest.raises(ProcessFailed, match="can't start no-such-program"):
            await process.child(["no-such-program"]).__aenter__()

    def test_it_dies_with_us(self, tmp_path: Path) -> None:
        story = (
            "import asyncio; from vmwrapper import process\n"
            "async def story():\n"
            f"    async with process.child({FOREVER!r}) as child:\n"
            "        print(child.pid, flush=True)\n"
            "        await child.ended()\n"
            "asyncio.run(story())\n"
        )
        with subprocess.Popen([sys.executable, "-c", story], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout
            child = psutil.Process(int(parent.stdout.readline()))
            time.sleep(0.1)
            parent.kill()
        _, alive = psutil.wait_procs([child], timeout=2)
        assert alive == []
