"""The app's side of a real client's files and memory; the test is the client's."""

import asyncio
import logging
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from vmwrapper.boinc.api import Request, Status
from vmwrapper.boinc.client import Client
from vmwrapper.boinc.exit import SIGNALS
from vmwrapper.boinc.messages import Heartbeat
from vmwrapper.concurrency import beside
from vmwrapper.errors import (
    AbortRequested,
    ClientUnreachable,
    HostDiskFailed,
    JobFileMissing,
    MachineExited,
    NoUsableHypervisor,
    ProgramFailed,
    QuitRequested,
    SelfRunFailed,
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
<authenticator>0123456789abcdef</authenticator>
{more}
</app_init_data>
"""
CONTROL, GRAPHICS, HEARTBEAT, STATUS, TRICKLE_UP, TRICKLE_DOWN = 0, 3072, 4096, 5120, 6144, 7168
SECRET = "0123456789abcdef"

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


@asynccontextmanager
async def repeated_in_loop(step: Callable[[], float]) -> AsyncIterator[None]:
    """In simulated time, which no other thread has."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(step())

    async with beside(repeat()):
        yield


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    begin(tmp_path)
    (tmp_path / "boinc_mmap_file").write_bytes(bytes(8192))
    return tmp_path


@pytest.fixture
def memory(slot: Path) -> Iterator[Memory]:
    with (slot / "boinc_mmap_file").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        yield Memory(mapped)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A client changes what signals do for good."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def client(slot: Path) -> Iterator[Client]:
    client = Client(slot, repeat=repeated_in_loop)
    yield client
    client.end(QuitRequested("the test is over"))


def begin(slot: Path, *, client_pid: int | None = None, shm_key: int = -1, more: str = "") -> None:
    pid = os.getpid() if client_pid is None else client_pid
    (slot / "init_data.xml").write_text(INIT_DATA.format(client_pid=pid, shm_key=shm_key, more=more))


def status(fraction_done: float) -> Status:
    return Status(fraction_done=fraction_done, cpu_time_s=3.5, checkpoint_cpu_time_s=2.5, activity="running")


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

    def test_a_finish_file_that_stays_is_an_error_of_the_disk(self, client: Client, slot: Path) -> None:
        (slot / "boinc_finish_called").mkdir()
        with pytest.raises(HostDiskFailed, match="can't remove"):
            during_episode(client, asyncio.Event().wait)

    def test_it_leaks_no_secret(self, client: Client, memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)

        async def story() -> None:
            for message in (b"<reread_app_info/>", b"<suspend/><resume/>", b"<quit/>"):
                memory.write(CONTROL, message)
                await asyncio.sleep(0.2)
            client.report(status(0.5))
            await client.send_trickle_up("credit", "<x/>")
            await asyncio.sleep(0.2)
            seen = [repr(client), repr(client.init_data), str(vars(client)), memory.read(STATUS)]
            assert SECRET not in str(seen)

        during_episode(client, story)
        client.end(ProgramFailed("failed"))
        assert SECRET not in caplog.text
        assert SECRET not in str([vars(record) for record in caplog.records])
        assert client.init_data.authenticator is not None
        assert client.init_data.authenticator.reveal() == SECRET

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
                memory.write(CONTROL, b"<network_available/>")
                await asyncio.sleep(0.2)
            memory.write(CONTROL, b"<quit/>")
            assert await next_request(client) is Request.QUIT

        during_episode(client, story)

    def test_one_message_may_hold_more_than_one(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            memory.write(CONTROL, b"<abort/><quit/> and <resume/><suspend/>")
            requests = client.requests()
            assert [await anext(requests) for _ in Request] == list(Request)

        during_episode(client, story)

    def test_a_heartbeat_tells_of_memory_and_network(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            assert client.heartbeat == Heartbeat()
            memory.write(HEARTBEAT, b"<heartbeat/><wss>1.5e6</wss><max_wss>2e9</max_wss><network_suspended/>")
            await asyncio.sleep(0.2)
            assert client.heartbeat.max_working_set_bytes == 2e9
            assert client.network_suspended
            memory.write(HEARTBEAT, b"<heartbeat/>")
            await asyncio.sleep(0.2)
            assert client.heartbeat == Heartbeat(working_set_bytes=1.5e6, max_working_set_bytes=2e9)

        during_episode(client, story)

    def test_what_the_client_says_anew_is_taken(self, client: Client, slot: Path, memory: Memory) -> None:
        async def story() -> None:
            assert client.init_data.checkpoint_period_s == 300
            for more, period_s in (("<checkpoint_period>60</checkpoint_period>", 60), ("", 300)):
                begin(slot, more=more)
                memory.write(CONTROL, b"<reread_app_info/>")
                await asyncio.sleep(0.2)
                assert client.init_data.checkpoint_period_s == period_s

        during_episode(client, story)

    @pytest.mark.parametrize(
        "content",
        [
            None,
            "<app_init_data><project_dir>/boinc/projects/P</project_dir>",
            INIT_DATA.format(client_pid=os.getpid(), shm_key=-1, more="").replace("wu1_0", "wu2_0"),
            INIT_DATA.format(client_pid=os.getpid(), shm_key=-1, more="").replace("projects/P", "projects/Q"),
            INIT_DATA.format(client_pid=1, shm_key=-1, more=""),
        ],
    )
    def test_what_is_unusable_or_of_another_job_is_not(
        self, client: Client, slot: Path, memory: Memory, content: str | None
    ) -> None:
        async def story() -> None:
            before = client.init_data
            (slot / "init_data.xml").unlink()
            if content:
                (slot / "init_data.xml").write_text(content)
            memory.write(CONTROL, b"<reread_app_info/>")
            await asyncio.sleep(0.2)
            assert client.init_data is before
            assert client._requests.empty()

        during_episode(client, story)

    def test_what_is_just_being_written_is_waited_for(self, client: Client, slot: Path, memory: Memory) -> None:
        async def story() -> None:
            (slot / "init_data.xml").unlink()
            memory.write(CONTROL, b"<reread_app_info/>")
            await asyncio.sleep(2)
            (slot / "init_data.xml").write_text("<app_init_data>\n<project_dir>/boinc/proj")
            await asyncio.sleep(2)
            begin(slot, more="<checkpoint_period>60</checkpoint_period>")
            await asyncio.sleep(0.2)
            assert client.init_data.checkpoint_period_s == 60
            begin(slot, more="<checkpoint_period>90</checkpoint_period>")
            await asyncio.sleep(1)
            assert client.init_data.checkpoint_period_s == 60  # until the client says so

        during_episode(client, story)

    def test_but_not_for_ever(
        self, client: Client, slot: Path, memory: Memory, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)

        async def story() -> None:
            (slot / "init_data.xml").unlink()
            memory.write(CONTROL, b"<reread_app_info/>")
            await asyncio.sleep(10.5)
            begin(slot, more="<checkpoint_period>60</checkpoint_period>")
            await asyncio.sleep(1)
            assert client.init_data.checkpoint_period_s == 300

        during_episode(client, story)
        assert caplog.text.count("What the client says of the job stays") == 1

    def test_addresses_are_shown_one_after_the_other(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            client.show_web_graphics("http://localhost:1/old")
            client.show_web_graphics("http://localhost:1/?a=1&b=2")
            client.show_remote_desktop("localhost:5900")
            await asyncio.sleep(0.2)
            assert memory.read(GRAPHICS) == b"<web_graphics_url>http://localhost:1/?a=1&amp;b=2</web_graphics_url>"
            await asyncio.sleep(0.2)
            assert memory.read(GRAPHICS) == b"<remote_desktop_addr>localhost:5900</remote_desktop_addr>"
            await asyncio.sleep(0.2)
            assert memory.read(GRAPHICS) is None

        during_episode(client, story)

    def test_news_of_trickles_and_uploads_share_a_message(self, client: Client, slot: Path, memory: Memory) -> None:
        async def story() -> None:
            memory.write(TRICKLE_UP, b"unread")
            (slot / "out").write_bytes(b"x")
            await client.send_trickle_up("credit", "1")
            await client.upload("out")
            await asyncio.sleep(0.2)
            assert memory.read(TRICKLE_UP) == b"unread"
            await asyncio.sleep(0.2)
            assert memory.read(TRICKLE_UP) == b"<have_new_trickle_up/>\n<have_new_upload_file/>\n"
            await asyncio.sleep(0.2)
            assert memory.read(TRICKLE_UP) is None
            (slot / "boinc_ufs_out").write_text("<status>0</status>\n")
            memory.write(TRICKLE_DOWN, b"<upload_file_status/>\n")
            await asyncio.sleep(0.2)
            assert client.upload_status("out") == 0
            memory.write(TRICKLE_DOWN, b"")  # the last one was taken

        during_episode(client, story)

    def test_what_a_client_was_not_told_before_it_is_told_at_last(
        self, client: Client, slot: Path, memory: Memory
    ) -> None:
        async def story() -> None:
            memory.write(TRICKLE_UP, b"unread")
            await client.send_trickle_up("credit", "1")
            asyncio.get_running_loop().call_later(1, memory.read, TRICKLE_UP)

        during_episode(client, story)
        assert memory.read(TRICKLE_UP) == b"<have_new_trickle_up/>\n"

    def test_what_an_earlier_episode_left_the_client_is_told_again(
        self, client: Client, slot: Path, memory: Memory
    ) -> None:
        (slot / "trickle_up.xml").touch()
        (slot / "boinc_ufr_out").touch()
        during_episode(client, lambda: asyncio.sleep(0.2))
        assert memory.read(TRICKLE_UP) == b"<have_new_trickle_up/>\n<have_new_upload_file/>\n"

    def test_trickle_downs_come(self, client: Client, slot: Path, memory: Memory) -> None:
        async def story() -> None:
            (slot / "trickle_down_1").touch()
            downs = client.trickle_downs()
            await anext(downs)
            asyncio.get_running_loop().call_later(5, (slot / "trickle_down_5").write_bytes, b"<x/>")
            asyncio.get_running_loop().call_later(5, memory.write, TRICKLE_DOWN, b"<have_trickle_down/>\n")
            async with asyncio.timeout(5.2):
                assert (await anext(downs)).content == b"<x/>"

        during_episode(client, story)

    def test_what_was_said_last_is_said_whatever_happens(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            client.report(status(0.5))
            raise ProgramFailed("failed")

        with pytest.raises(ProgramFailed):
            during_episode(client, story)
        assert memory.read(STATUS) is not None

    def test_the_last_status_is_sent_as_soon_as_the_client_reads(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            client.report(status(0.5))
            await asyncio.sleep(0.2)
            client.report(status(0.6))
            client.report(status(0.8))
            await asyncio.sleep(0.2)
            assert memory.read(STATUS) == (
                b"<current_cpu_time>3.500000e+00</current_cpu_time>\n"
                b"<checkpoint_cpu_time>2.500000e+00</checkpoint_cpu_time>\n"
                b"<fraction_done>2.500000e-01</fraction_done>\n"
            )
            await asyncio.sleep(0.2)
            assert b"<fraction_done>4.000000e-01<" in (memory.read(STATUS) or b"")
            client.report(status(1))

        during_episode(client, story)
        assert b"<fraction_done>5.000000e-01<" in (memory.read(STATUS) or b"")

    def test_a_status_without_a_cpu_time_is_dropped(self, client: Client, memory: Memory) -> None:
        async def story() -> None:
            client.report(replace(status(0.5), cpu_time_s=math.nan))
            await asyncio.sleep(0.2)
            assert memory.read(STATUS) is None
            client.report(status(0.5))
            await asyncio.sleep(0.2)
            assert memory.read(STATUS) is not None

        during_episode(client, story)

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

    @pytest.mark.parametrize("request_", [Request.QUIT, Request.ABORT])
    def test_once_the_job_is_done_no_request_undoes_it(self, client: Client, memory: Memory, request_: Request) -> None:
        memory.write(STATUS, b"unread")

        async def obey() -> None:
            async for _ in client.requests():
                raise QuitRequested("too late")

        async def episode() -> None:
            async with beside(obey()), client.episode():
                client.report(status(1))
                asyncio.get_running_loop().call_later(1, memory.write, CONTROL, f"<{request_.value}/>".encode())
                asyncio.get_running_loop().call_later(1, os.kill, os.getpid(), signal.SIGTERM)

        simulated_time.run(episode())
        assert client.end(None) == 0
        assert (client.slot / "boinc_finish_called").exists()

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
            await asyncio.sleep(65)
            assert client._requests.empty()
            child.communicate(b"\n")
            async with asyncio.timeout(1.1):
                assert await next_request(client) is Request.QUIT

        during_episode(client, story)

    def test_what_the_next_client_says_is_left_to_the_next_wrapper(
        self, client: Client, slot: Path, memory: Memory
    ) -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        begin(slot, client_pid=child.pid)

        async def story() -> None:
            memory.write(HEARTBEAT, b"<heartbeat/>")
            await asyncio.sleep(0.2)
            child.communicate(b"\n")
            memory.write(CONTROL, b"<suspend/>")
            memory.write(HEARTBEAT, b"<heartbeat/>")
            assert await next_request(client) is Request.QUIT
            client.report(status(0.5))
            client.show_web_graphics("http://localhost:1/")
            await client.send_trickle_up("credit", "1")
            await asyncio.sleep(5)
            assert client._requests.empty()  # one request to quit is enough

        during_episode(client, story)
        assert memory.read(CONTROL) == b"<suspend/>"
        assert memory.read(HEARTBEAT) == b"<heartbeat/>"
        assert [memory.read(place) for place in (STATUS, GRAPHICS, TRICKLE_UP)] == [None] * 3

    def test_a_client_that_has_just_gone_hears_no_last_words(self, client: Client, slot: Path, memory: Memory) -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        begin(slot, client_pid=child.pid)

        async def story() -> None:
            child.communicate(b"\n")
            client.report(status(0.5))
            raise ProgramFailed("failed")

        with pytest.raises(ProgramFailed):
            during_episode(client, story)
        assert memory.read(STATUS) is None

    def test_a_client_without_pid_that_is_gone_is_left_alone_too(
        self, client: Client, slot: Path, memory: Memory
    ) -> None:
        begin(slot, client_pid=0)

        async def story() -> None:
            assert await next_request(client) is Request.QUIT
            assert asyncio.get_running_loop().time() == pytest.approx(30, abs=0.2)
            memory.write(CONTROL, b"<suspend/>")
            memory.write(HEARTBEAT, b"<heartbeat/>")
            client.report(status(0.5))
            await asyncio.sleep(5)

        during_episode(client, story)
        assert memory.read(CONTROL) == b"<suspend/>"
        assert memory.read(HEARTBEAT) == b"<heartbeat/>"
        assert memory.read(STATUS) is None

    def test_a_heartbeat_that_could_not_be_read_in_time_counts(
        self, client: Client, slot: Path, memory: Memory
    ) -> None:
        begin(slot, client_pid=0)

        async def story() -> None:
            await asyncio.sleep(1)
            client._liveness.heard_at_s -= 40  # as if the process had been stopped
            memory.write(HEARTBEAT, b"<heartbeat/>")
            await asyncio.sleep(20)
            assert client._requests.empty()

        during_episode(client, story)

    def test_of_a_client_without_pid_heartbeats_are_expected(self, client: Client, slot: Path, memory: Memory) -> None:
        begin(slot, client_pid=0)

        async def story() -> None:
            for _ in range(60):
                memory.write(HEARTBEAT, b"<heartbeat/>")
                await asyncio.sleep(1)
            assert client._requests.empty()
            began_s = asyncio.get_running_loop().time()
            asyncio.get_running_loop().call_later(15, memory.write, HEARTBEAT, b"<wss>1</wss>")  # no sign of life
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
            assert asyncio.get_running_loop().time() == pytest.approx(35)
            assert client.end(caught.value) == 0

        with self.other_wrapper(slot):
            simulated_time.run(episode())
        said = "Waiting to acquire slot directory lock.  Another instance may be running."
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

    @pytest.mark.parametrize("want", [b"<quit/>", b"<abort/>", signal.SIGTERM])
    def test_who_waits_for_it_obeys(
        self, client: Client, slot: Path, memory: Memory, want: bytes | signal.Signals
    ) -> None:
        said: set[str] = set()

        async def obey() -> None:
            async for request in client.requests():
                raise {Request.QUIT: QuitRequested, Request.ABORT: AbortRequested}[request]("stop")

        def ask() -> None:
            if isinstance(want, bytes):
                memory.write(CONTROL, want)
            else:
                os.kill(os.getpid(), want)

        async def episode() -> None:
            asyncio.get_running_loop().call_later(10, ask)
            try:
                async with beside(obey()), client.episode():
                    raise AssertionError
            finally:
                assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.11)
                said.update(path.name for path in slot.iterdir())

        (slot / "boinc_finish_called").touch()
        with self.other_wrapper(slot), pytest.raises((QuitRequested, AbortRequested)):
            simulated_time.run(episode())
        assert said == {"init_data.xml", "boinc_mmap_file", "boinc_lockfile", "boinc_finish_called"}

    def test_who_waits_for_it_is_suspended(self, client: Client, slot: Path, memory: Memory) -> None:
        async def episode() -> None:
            asyncio.get_running_loop().call_later(10, memory.write, CONTROL, b"<suspend/>")
            asyncio.get_running_loop().call_later(20, self.leave, other, slot)
            async with client.episode():
                assert await next_request(client) is Request.SUSPEND

        with self.other_wrapper(slot) as other:
            simulated_time.run(episode())

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
            (MachineExited("killed"), 0, {"boinc_temporary_exit": "15\nkilled\n"}),
            (NoUsableHypervisor("none"), 0, {"boinc_temporary_exit": "3600\nnone\nnotice\n"}),
        ],
    )
    def test_every_ending_has_its_sign(
        self, tmp_path: Path, error: VmwrapperError | None, exit_status: int, files: dict[str, str]
    ) -> None:
        assert Client(tmp_path).end(error) == exit_status
        for number in SIGNALS:
            os.kill(os.getpid(), number)  # too late
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files

    @pytest.mark.parametrize(
        ("error", "exit_status", "file"),
        [
            (None, 0, "boinc_finish_called"),
            (SelfRunFailed("failed", status=7), 7, "boinc_finish_called"),
            (AbortRequested("aborted"), 194, None),
            (MachineExited("killed"), 0, "boinc_temporary_exit"),
        ],
    )
    def test_a_notice_is_for_the_volunteer(
        self, tmp_path: Path, error: VmwrapperError | None, exit_status: int, file: str | None
    ) -> None:
        client = Client(tmp_path)
        client.notify("look")
        assert client.end(error) == exit_status
        assert [path.name for path in tmp_path.iterdir()] == ([file] if file else [])
        if file == "boinc_finish_called":
            assert (tmp_path / file).read_text() == f"{exit_status}\nlook\nnotice\n"

    @pytest.mark.parametrize("error", [None, MachineExited("killed")])
    def test_what_cant_be_said_has_us_started_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: VmwrapperError | None
    ) -> None:
        slept_s: list[float] = []
        assert Client(tmp_path / "none", sleep=slept_s.append).end(error) == 0
        assert slept_s == [5] * 8
        assert caplog.text.count("can't write") == 2

    @pytest.mark.parametrize(
        ("error", "file"), [(None, "boinc_finish_called"), (MachineExited("killed"), "boinc_temporary_exit")]
    )
    def test_what_cant_be_said_at_once_is_said_later(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: VmwrapperError | None, file: str
    ) -> None:
        slept_s: list[float] = []

        def sleep(seconds: float) -> None:
            slept_s.append(seconds)
            if len(slept_s) == 3:
                (tmp_path / "slot").mkdir()

        assert Client(tmp_path / "slot", sleep=sleep).end(error) == 0
        assert (tmp_path / "slot" / file).exists()
        assert slept_s == [5] * 3
        assert caplog.text.count("can't write") == 1

    @pytest.mark.parametrize(("limit_s", "tries"), [(8, 0), (40, 8)])
    def test_it_does_not_wait_for_the_watchdog(self, slot: Path, memory: Memory, limit_s: float, tries: int) -> None:
        slept_s: list[float] = []
        client = Client(slot, exit_limit_s=limit_s, repeat=repeated_in_loop, sleep=slept_s.append)
        (slot / ".vmwrapper-boinc_finish_called.new").mkdir()

        async def story() -> None:
            memory.write(CONTROL, b"<quit/>")
            assert await next_request(client) is Request.QUIT
            while math.isinf(client._watchdog.left_s):
                time.sleep(0.01)

        during_episode(client, story)
        assert client.end(None) == 0
        assert len(slept_s) == tries
