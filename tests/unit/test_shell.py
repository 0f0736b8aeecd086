"""Both ends of `vmwrapper shell`, with a guest that says what the test wants, and with strangers."""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.concurrency import beside
from vmwrapper.errors import GuestError, HostDiskFailed, NobodyThere, TransferFailed
from vmwrapper.hostile import shown
from vmwrapper.hypervisor.interface import CommandResult, FileKind
from vmwrapper.shell.client import Session
from vmwrapper.shell.protocol import (
    LINE_LIMIT_BYTES,
    Answer,
    BadMessage,
    Question,
    Refusal,
    connected,
    decoded_answer,
    decoded_question,
    encoded,
    listening,
)
from vmwrapper.shell.server import _END, _RUN, ShellServer

texts = st.text(st.characters(codec="utf-8"))
answers = st.builds(
    Answer, status=st.integers(0, 255), stdout=st.binary(), stderr=st.binary(), directory=texts
) | st.builds(Refusal, texts)


class TestProtocol:
    @given(texts, st.none() | texts)
    def test_questions_arrive_as_they_were_sent(self, command: str, directory: str | None) -> None:
        assert decoded_question(encoded(Question(command, directory))) == Question(command, directory)

    @given(answers)
    def test_answers_arrive_as_they_were_sent(self, answer: Answer | Refusal) -> None:
        line = encoded(answer)
        assert decoded_answer(line) == answer
        assert line.index(b"\n") == len(line) - 1

    @pytest.mark.parametrize("decoded", [decoded_question, decoded_answer])
    @given(
        junk=st.binary()
        | st.recursive(st.none() | st.integers() | texts, lambda parts: st.lists(parts) | st.dictionaries(texts, parts))
        .map(json.dumps)
        .map(str.encode)
    )
    def test_anything_else_is_refused(self, decoded: Callable[[bytes], object], junk: bytes) -> None:
        with pytest.raises(BadMessage):
            decoded(junk)

    @pytest.mark.parametrize(
        "change", [{"status": 256}, {"status": -1}, {"status": "0"}, {"stdout": "?"}, {"directory": None}]
    )
    def test_an_answer_out_of_range_is_refused(self, change: Mapping[str, object]) -> None:
        good = json.loads(encoded(Answer(status=0, stdout=b"", stderr=b"", directory="/")))
        with pytest.raises(BadMessage):
            decoded_answer(json.dumps(good | change).encode())

    def test_a_deep_line_is_refused(self) -> None:
        with pytest.raises(BadMessage):
            decoded_answer(b"[" * 100_000)


class TestShown:
    @given(st.binary())
    def test_no_terminal_obeys_it(self, output: bytes) -> None:
        assert all(letter.isprintable() or letter == "\n" for letter in shown(output))

    def test_it_keeps_its_layout(self) -> None:
        assert (
            shown(b"  a\tb\r\n\n\x1b[2J\xff\n")
            == "  a     b\n\n\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}\n"
        )


class TalkingGuest:
    """Does with a command what the test wants; see `Guest` for what it doesn't have."""

    def __init__(self, does: Callable[[str, str, str], Awaitable[CommandResult]]) -> None:
        self._does = does
        self.signals: list[str] = []
        self.ended = asyncio.Event()

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit_s: float) -> CommandResult:
        match list(argv):
            case ["sh", "-c", _, "sh", mark, directory, command]:
                return await self._does(mark, directory, command)
            case ["sh", "-c", _, "sh", _, signal]:
                self.signals.append(signal)
                self.ended.set()
        return CommandResult(0, b"", b"")

    async def ready(self, *, limit_s: float) -> None: ...

    async def read(self, path: str, *, limit_bytes: int) -> bytes | None: ...

    async def put(self, files: Mapping[str, Path], directory: str) -> None: ...

    async def get(self, directory: str, files: Mapping[str, Path], *, limit_bytes: int) -> Mapping[str, FileKind]:
        raise AssertionError


@asynccontextmanager
async def server(guest: TalkingGuest, slot: Path) -> AsyncIterator[ShellServer]:
    folder = slot / ".vmwrapper"
    folder.mkdir()
    server = ShellServer(guest, folder, home="/home")
    async with beside(server.answer()):
        await asyncio.sleep(0)
        yield server


async def echo(mark: str, directory: str, command: str) -> CommandResult:
    moved = directory.rstrip("/") + "/" + command
    return CommandResult(7, f"in {directory}{mark}{moved}\n".encode(), b"err")


async def raw(folder: Path, words: bytes) -> bytes:
    """What the server says to words that need not be a question."""

    def say() -> bytes:
        with connected(folder) as connection:
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1 << 16)

    return await asyncio.to_thread(say)


class TestDoor:
    async def test_commands_run_where_the_last_one_ended(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        session = Session(tmp_path, limit_s=5)
        async with server(TalkingGuest(echo), tmp_path):
            assert await asyncio.to_thread(session.run, "a") == 7
            assert await asyncio.to_thread(session.run, "b") == 7
        assert capfd.readouterr() == ("in /homein /home/a", "errerr")

    @pytest.mark.parametrize(("said", "status"), [(b"no mark \x1b[2J\0", 5), (b"", 99_999), (b"", -1)])
    async def test_a_guest_may_say_anything(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], said: bytes, status: int
    ) -> None:
        async def say(mark: str, directory: str, command: str) -> CommandResult:
            return CommandResult(status, said, b"")

        async with server(TalkingGuest(say), tmp_path):
            assert await asyncio.to_thread(Session(tmp_path, limit_s=5).run, "a") == (status if status == 5 else 255)
        assert capfd.readouterr().out == said.decode()

    async def test_an_error_of_the_guest_is_a_refusal_that_no_terminal_obeys(self, tmp_path: Path) -> None:
        async def refuse(mark: str, directory: str, command: str) -> CommandResult:
            raise GuestError("no \x1b[2J")

        async with server(TalkingGuest(refuse), tmp_path):
            with pytest.raises(GuestError, match="no \N{REPLACEMENT CHARACTER}"):
                await asyncio.to_thread(Session(tmp_path, limit_s=5).run, "a")

    async def test_several_at_once_do_not_wait_for_each_other(self, tmp_path: Path) -> None:
        both = asyncio.Barrier(2)

        async def meet(mark: str, directory: str, command: str) -> CommandResult:
            await both.wait()
            return CommandResult(0, b"", b"")

        async with server(TalkingGuest(meet), tmp_path), asyncio.timeout(5):
            statuses = await asyncio.gather(
                *(asyncio.to_thread(Session(tmp_path, limit_s=5).run, "a") for _ in range(2))
            )
        assert statuses == [0, 0]

    async def test_a_command_that_takes_too_long_is_ended_and_what_it_said_is_shown(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        async def sleep(mark: str, directory: str, command: str) -> CommandResult:
            await guest.ended.wait()
            return CommandResult(130, b"until then", b"")

        guest = TalkingGuest(sleep)
        async with server(guest, tmp_path):
            assert await asyncio.to_thread(Session(tmp_path, limit_s=0.1).run, "a") == 130
        assert guest.signals == ["INT"]
        assert capfd.readouterr() == ("until then", "\nEnding the command after its 0.1 s\n")

    async def test_a_visitor_who_dies_takes_his_command_with_him(self, tmp_path: Path) -> None:
        async def sleep(mark: str, directory: str, command: str) -> CommandResult:
            await asyncio.sleep(60)
            raise AssertionError

        guest = TalkingGuest(sleep)
        async with server(guest, tmp_path), asyncio.timeout(5):
            with connected(tmp_path / ".vmwrapper") as connection:
                connection.sendall(encoded(Question("a", None)))
                await asyncio.sleep(0.1)
            await guest.ended.wait()
        assert guest.signals == ["INT"]

    @pytest.mark.parametrize("words", [b"\n", b"[]\n", b"\xff\n", b"{}\n"])
    async def test_nonsense_is_refused(self, tmp_path: Path, words: bytes) -> None:
        async with server(TalkingGuest(echo), tmp_path):
            assert isinstance(decoded_answer(await raw(tmp_path / ".vmwrapper", words)), Refusal)
            assert await asyncio.to_thread(Session(tmp_path, limit_s=5).run, "a") == 7

    @pytest.mark.parametrize("words", [b"", b"unended"])
    async def test_nobody_answers_half_a_line(self, tmp_path: Path, words: bytes) -> None:
        async with server(TalkingGuest(echo), tmp_path):
            assert await raw(tmp_path / ".vmwrapper", words) == b""
            assert await asyncio.to_thread(Session(tmp_path, limit_s=5).run, "a") == 7

    async def test_the_socket_is_its_owners_only(self, tmp_path: Path) -> None:
        async with server(TalkingGuest(echo), tmp_path):
            assert (tmp_path / ".vmwrapper/shell").stat().st_mode & 0o777 == 0o600

    async def test_a_folder_that_takes_no_socket_is_a_failure_of_the_host(self, tmp_path: Path) -> None:
        with pytest.raises(HostDiskFailed, match="can't make a socket"):
            await ShellServer(TalkingGuest(echo), tmp_path / "none", home="/").answer()


@contextmanager
def stranger(slot: Path, words: bytes) -> Iterator[None]:
    """Somebody who listens in a slot and answers everything with the same words."""
    folder = slot / ".vmwrapper"
    folder.mkdir()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            connection.recv(1 << 16)
            connection.sendall(words)

    with listening(folder) as listener:
        listener.settimeout(5)
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            thread.join()


class TestSession:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(NobodyThere, match=f"no `vmwrapper run --keep` has a machine in {tmp_path}"):
            Session(tmp_path, limit_s=5).run("a")

    def test_a_socket_of_the_dead(self, tmp_path: Path) -> None:
        (tmp_path / ".vmwrapper").mkdir()
        with listening(tmp_path / ".vmwrapper"):
            pass
        with pytest.raises(NobodyThere, match="Connection refused"):
            Session(tmp_path, limit_s=5).run("a")

    @pytest.mark.parametrize("words", [b"hello\n", b"{}\n", b'{"status": 1}\n', b"x" * LINE_LIMIT_BYTES + b"\n"])
    def test_a_stranger(self, tmp_path: Path, words: bytes) -> None:
        with stranger(tmp_path, words), pytest.raises(TransferFailed, match="is no vmwrapper"):
            Session(tmp_path, limit_s=5).run("a")

    @pytest.mark.parametrize("words", [b"", b"{"])
    def test_a_line_without_an_end(self, tmp_path: Path, words: bytes) -> None:
        with stranger(tmp_path, words), pytest.raises(NobodyThere, match="is gone"):
            Session(tmp_path, limit_s=5).run("a")

    def test_output_is_shown_to_a_terminal_without_being_obeyed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = os.openpty()
        answer = Answer(status=0, stdout=b"a\x1b]0;title\x07\n", stderr=b"", directory="/")
        with os.fdopen(ours, "rb") as terminal, os.fdopen(theirs, "w") as stdout, stranger(tmp_path, encoded(answer)):
            monkeypatch.setattr("sys.stdout", stdout)
            assert Session(tmp_path, limit_s=5).run("a") == 0
            replaced = "\N{REPLACEMENT CHARACTER}"
            assert os.read(terminal.fileno(), 100).decode() == f"a{replaced}]0;title{replaced}\r\n"


@pytest.mark.skipif(not os.access("/run", os.W_OK), reason="needs to write into /run, as in a guest")
@pytest.mark.parametrize("signal", ["INT", "KILL"])
def test_a_command_is_ended_by_the_shell_of_debian(signal: str) -> None:
    mark = secrets.token_hex(8)
    argv = ["sh", "-c", _RUN, "sh", mark, "/", "sleep 100"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as command:
        number = Path(f"/run/vmwrapper-shell.{mark}")
        while "sleep" not in {process.name() for process in psutil.Process(command.pid).children(recursive=True)}:
            time.sleep(0.01)  # a signal just before it would be heard after it
        subprocess.run(["sh", "-c", _END, "sh", mark, signal], check=True)
        command.communicate(timeout=10)
    assert command.returncode == {"INT": 130, "KILL": 137}[signal]
    assert not number.exists()
