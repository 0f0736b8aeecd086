"""The app's side of a real client's files and memory; the test is the client's."""

import asyncio
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.client import Client
from vmwrapper.errors import (
    AbortRequested,
    ClientUnreachable,
    JobFileMissing,
    MachineExited,
    NoUsableHypervisor,
    ProgramFailed,
    QuitRequested,
    SlotBusy,
    VmwrapperError,
)

from . import simulated_time

INIT_DATA = """\
<app_init_data>
<project_dir>/boinc/projects/P</project_dir>
<result_name>wu1_0</result_name>
<client_pid>{client_pid}</client_pid>
<shm_key>{shm_key}</shm_key>
<wu_cpu_time>2</wu_cpu_time>
<fraction_done_end>0.5</fraction_done_end>
</app_init_data>
"""
CONTROL, HEARTBEAT, STATUS = 0, 4096, 5120

_HOLD_LOCK = "import fcntl, sys; f = open(sys.argv[1], 'wb'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"


class Memory:
    """The client's view of its channels."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def write(self, place: int, text: bytes) -> None:
        assert self._memory[place] == 0
        self._memory[place : place + len(text) + 2] = b"\1" + text + b"\0"

    def read(self, place: int) -> bytes | None:
        if not self._memory[place]:
            return None
        self._memory[place] = 0
        return self._memory[place + 1 : place + 1024].split(b"\0")[0]


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    begin(tmp_path)
    (tmp_path / "boinc_mmap_file").write_bytes(bytes(8192))
    return tmp_path


@pytest.fixture
def memory(slot: Path) -> Iterator[Memory]:
    with (slot / "boinc_mmap_file").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        yield Memory(mapped)


@pytest.fixture
def client(slot: Path) -> Client:
    return Client(slot)


def begin(slot: Path, *, client_pid: int | None = None, shm_key: int = -1) -> None:
    pid = os.getpid() if client_pid is None else client_pid
    (slot / "init_data.xml").write_text(INIT_DATA.format(client_pid=pid, shm_key=shm_key))


def status(fraction_done: float) -> Status:
    return Status(fraction_done=fraction_done, cpu_time_s=1.5, activity="running")


def during_episode(client: Client, story: Callable[[], Coroutine[None, None, object]]) -> None:
    async def episode() -> None:
        async with client.episode():
            await story()

    simulated_time.run(episode())


async def next_request(client: Client) -> Request:
    return await anext(client.requests())


class TestEpisode:
    def test_it_knows_its_job(self, client: Client, slot: Path) -> None:
        async def story() -> None:
            assert (client.project, client.result_name) == ("P", "wu1_0")
            assert client.project_dir == Path("/boinc/projects/P")

        during_episode(client, story)

    def test_a_stale_finish_file_is_removed(self, client: Client, slot: Path) -> None:
        async def story() -> None:
            assert not (slot / "boinc_finish_called").exists()

        (slot / "boinc_finish_called").write_text("0\n")
        during_episode(client, story)

    @pytest.mark.parametrize("missing", ["init_data.xml", "boinc_mmap_file"])
    def test_without_a_way_to_the_client_it_does_not_begin(self, client: Client, slot: Path, missing: str) -> None:
        (slot / missing).unlink()
        with pytest.raises(ClientUnreachable, match=missing):
            during_episode(client, asyncio.Event().wait)

    def test_older_shared_memory_is_refused(self, client: Client, slot: Path) -> None:
        begin(slot, shm_key=5)
        with pytest.raises(ClientUnreachable, match="api_version"):
            during_episode(client, asyncio.Event().wait)


class TestTalking:
    @pytest.mark.parametrize("request_", Request)
    def test_requests_are_heard_within_a_tenth_of_a_second(
        self, client: Client, memory: Memory, request_: Request
    ) -> None:
        async def story() -> None:
            for _ in range(2):
                memory.write(CONTROL, f"<{request_.value}/>\n".encode())
                async with asyncio.timeout(0.11):
                    assert await next_request(client) is request_

        during_episode(client, story)

    def test_other_messages_are_taken_and_ignored(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            for _ in range(3):
                memory.write(CONTROL, b"<reread_app_info/>")
                await asyncio.sleep(0.2)
            memory.write(CONTROL, b"<quit/>")
            assert await next_request(client) is Request.QUIT

        during_episode(client, story)

    def test_the_last_status_is_sent_as_soon_as_the_client_reads(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            client.report(status(0.5))
            await asyncio.sleep(0.2)
            client.report(status(0.6))
            client.report(status(0.8))
            await asyncio.sleep(0.2)
            assert memory.read(STATUS) == (
                b"<current_cpu_time>1.500000e+00</current_cpu_time>\n"
                b"<checkpoint_cpu_time>2.000000e+00</checkpoint_cpu_time>\n"
                b"<fraction_done>2.500000e-01</fraction_done>\n"
            )
            await asyncio.sleep(0.2)
            assert b"<fraction_done>4.000000e-01<" in (memory.read(STATUS) or b"")
            client.report(status(1))

        during_episode(client, story)
        assert b"<fraction_done>5.000000e-01<" in (memory.read(STATUS) or b"")

    def test_nothing_is_sent_while_suspended(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            memory.write(CONTROL, b"<suspend/>")
            await next_request(client)
            client.report(status(0.5))
            await asyncio.sleep(1)
            assert memory.read(STATUS) is None
            memory.write(CONTROL, b"<resume/>")
            await asyncio.sleep(0.2)
            assert memory.read(STATUS) is not None

        during_episode(client, story)

    def test_a_client_that_never_reads_does_not_keep_us(self, client: Client, memory: Memory) -> None:
        memory.write(STATUS, b"unread")

        async def episode() -> float:
            async with client.episode():
                client.report(status(1))
            return asyncio.get_running_loop().time()

        assert simulated_time.run(episode()) == pytest.approx(2, abs=0.2)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_is_a_request_to_quit(self, client: Client, number: signal.Signals) -> None:
        async def story() -> None:
            os.kill(os.getpid(), number)
            assert await next_request(client) is Request.QUIT

        during_episode(client, story)


class TestLiveness:
    def test_a_client_that_is_gone_is_a_request_to_quit(self, client: Client, slot: Path) -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        begin(slot, client_pid=child.pid)

        async def story() -> None:
            await asyncio.sleep(60)
            assert client._requests.empty()
            child.communicate(b"\n")
            async with asyncio.timeout(10.1):
                assert await next_request(client) is Request.QUIT

        during_episode(client, story)

    def test_of_a_client_without_pid_heartbeats_are_expected(self, client: Client, slot: Path, memory: Memory) -> None:
        begin(slot, client_pid=0)

        async def story() -> None:
            for _ in range(60):
                memory.write(HEARTBEAT, b"<heartbeat/>")
                await asyncio.sleep(1)
            assert client._requests.empty()
            began_s = asyncio.get_running_loop().time()
            assert await next_request(client) is Request.QUIT
            assert asyncio.get_running_loop().time() - began_s == pytest.approx(29.5, abs=1)

        during_episode(client, story)


class TestLock:
    @contextmanager
    def other_wrapper(self, slot: Path) -> Iterator[subprocess.Popen[bytes]]:
        argv = [sys.executable, "-c", _HOLD_LOCK, str(slot / "boinc_lockfile")]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            yield other
            if other.poll() is None:
                other.communicate(b"\n")

    def test_another_wrapper_is_waited_for_and_then_left_alone(self, client: Client, slot: Path) -> None:
        async def episode() -> None:
            with pytest.raises(SlotBusy, match="Waiting to acquire slot directory lock") as caught:
                async with client.episode():
                    pass
            assert asyncio.get_running_loop().time() == 35
            assert client.end(caught.value) == 0

        with self.other_wrapper(slot):
            simulated_time.run(episode())
        said = "Waiting to acquire slot directory lock. Another instance may be running."
        assert (slot / "boinc_temporary_exit").read_text() == f"600\n{said}\n"
        assert (slot / "boinc_lockfile").exists()

    def test_another_wrapper_that_ends_meanwhile_is_followed(self, client: Client, slot: Path) -> None:
        async def episode() -> None:
            with self.other_wrapper(slot) as other:
                asyncio.get_running_loop().call_later(10, self.leave, other, slot)
                async with client.episode():
                    assert (slot / "boinc_lockfile").exists()

        simulated_time.run(episode())
        assert client.end(None) == 0
        assert not (slot / "boinc_lockfile").exists()

    def leave(self, other: subprocess.Popen[bytes], slot: Path) -> None:
        (slot / "boinc_lockfile").unlink()
        other.communicate(b"\n")

    def test_it_is_held_until_all_is_said(self, client: Client, slot: Path) -> None:
        async def episode() -> None:
            async with client.episode():
                pass

        simulated_time.run(episode())
        assert (slot / "boinc_lockfile").exists()
        client.end(None)
        assert not (slot / "boinc_lockfile").exists()


class TestEnd:
    @pytest.mark.parametrize(
        ("error", "exit_status", "files"),
        [
            (None, 0, {"boinc_finish_called": "0\n"}),
            (QuitRequested("stopped"), 0, {}),
            (AbortRequested("aborted"), 194, {}),
            (ProgramFailed("failed"), 195, {}),
            (JobFileMissing("missing"), 148, {}),
            (MachineExited("killed"), 0, {"boinc_temporary_exit": "60\nkilled\n"}),
            (NoUsableHypervisor("none"), 0, {"boinc_temporary_exit": "3600\nnone\nnotice\n"}),
        ],
    )
    def test_every_ending_has_its_sign(
        self, tmp_path: Path, error: VmwrapperError | None, exit_status: int, files: dict[str, str]
    ) -> None:
        assert Client(tmp_path).end(error) == exit_status
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files

    def test_what_cant_be_said_has_us_started_again(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert Client(tmp_path / "none").end(None) == 0
        assert "can't write" in caplog.text
