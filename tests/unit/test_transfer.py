"""The framing of transfers, against guests that cut, delay, spoil and lie."""

import asyncio
import hashlib
import io
import random
import resource
import string
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError, HostDiskFailed, OutputChanged, OutputTooLarge, TransferFailed
from vmwrapper.hypervisor.interface import MIB, CommandResult, FileKind
from vmwrapper.hypervisor.outputs import Output, Sink
from vmwrapper.hypervisor.qemu.agent import REPLY_LIMIT_BYTES
from vmwrapper.hypervisor.qemu.transfer import DataPort
from vmwrapper.hypervisor.qemu.window import LARGE_BYTES

from . import simulated_time
from .fuzzing import fuzzed
from .shared_window import GuestWindow

CONTENTS = st.dictionaries(
    st.text(string.printable.replace("/", ""), min_size=1, max_size=20).filter(lambda name: name not in {".", ".."}),
    st.binary(max_size=2000),
    min_size=1,
    max_size=5,
)
Spoil = Callable[[bytes], bytes]


class FakeGuest:
    """Does what transfer.sh does, until a test has something else in mind."""

    def __init__(
        self, files: Mapping[str, bytes] | None = None, *, spoil: Spoil = bytes, hangs_up: bool = False
    ) -> None:
        self.files = dict(files or {})
        self.received = bytearray()
        self.port = asyncio.StreamReader(limit=REPLY_LIMIT_BYTES)
        self.window = GuestWindow(self.files, self.port.feed_data)
        self.has_window = False
        self._spoil = spoil
        self._hangs_up = hangs_up
        self._more = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.received += data
        self._more.set()

    async def drain(self) -> None:
        await asyncio.sleep(0)

    async def run_script(self, arguments: Sequence[str], _script: bytes, _ending: asyncio.Event) -> CommandResult:
        verb, nonce, _directory, *words = arguments
        if verb == "send":
            self._say(self._stream(nonce, words))
            regular, said = [name for name in map(_outside, words) if name in self.files], b""
        else:
            self._say(f"{nonce} sha256{' window' * self.has_window}\n".encode())
            regular, said = list(map(_outside, words[2:])), await self._receive(nonce)
        while self.has_window and self.window.serve(await self._read_line(), regular):
            pass
        return CommandResult(0, said, b"")

    def _say(self, stream: bytes) -> None:
        self.port.feed_data(self._spoil(stream))
        if self._hangs_up:
            self.port.feed_eof()

    def _stream(self, nonce: str, names: Sequence[str]) -> bytes:
        asked = [self.files.get(_outside(name)) for name in names]
        there = [content for content in asked if content is not None]
        lines = ["".join("-" if content is None else "f" for content in asked)]
        lines += [f"81a4:{len(content)}:1700000000" for content in there]
        announced = "".join(f"{line}\n" for line in lines).encode()
        announced += b"".join(content for content in there if not (self.has_window and len(content) >= LARGE_BYTES))
        kind = b"sha256 window" if self.has_window else b"sha256"
        return b"%s %s\n%s%s %s\n" % (nonce.encode(), kind, announced, nonce.encode(), digest(announced))

    async def _receive(self, nonce: str) -> bytes:
        said, blocks = (await self._read_line()).split()
        assert said == nonce
        with tarfile.open(fileobj=io.BytesIO(await self._read(int(blocks) * 65536))) as tar:
            contents = {member.name: tar.extractfile(member) for member in tar}
        self.files.update({_outside(name): file.read() for name, file in contents.items() if file})
        return digest(b"".join(self.files.values())) + b"  -\n"

    async def _read_line(self) -> str:
        while b"\n" not in self.received:
            await self._wait_for_more()
        return (await self._read(self.received.index(b"\n") + 1)).decode()

    async def _read(self, size: int) -> bytes:
        while len(self.received) < size:
            await self._wait_for_more()
        read = bytes(self.received[:size])
        del self.received[:size]
        return read

    async def _wait_for_more(self) -> None:
        self._more.clear()
        await self._more.wait()


def _outside(name: str) -> str:
    return name.removeprefix("./")


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


async def get(guest: FakeGuest, names: Sequence[str], *, limit_bytes: int = MIB) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        port = DataPort(guest.port, guest, guest.run_script, RunningClock(), guest.window.fd)  # type: ignore[arg-type]
        places = {name: Path(folder, str(number)) for number, name in enumerate(names)}
        kinds = await port.get("/tmp", places, limit_bytes=limit_bytes)
        return {name: place.read_bytes() for name, place in places.items() if kinds[name] is FileKind.REGULAR}


async def put(guest: FakeGuest, contents: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        port = DataPort(guest.port, guest, guest.run_script, RunningClock(), guest.window.fd)  # type: ignore[arg-type]
        places = {name: Path(folder, str(number)) for number, name in enumerate(contents)}
        for name, place in places.items():
            place.write_bytes(contents[name])
        await port.put(places, "/tmp")


def run_get(contents: Mapping[str, bytes], spoil: Spoil, *, hangs_up: bool = False) -> dict[str, bytes]:
    async def story() -> dict[str, bytes]:
        return await get(FakeGuest(contents, spoil=spoil, hangs_up=hangs_up), list(contents))

    return simulated_time.run(story())


def run_put(contents: Mapping[str, bytes], guest: Callable[[], FakeGuest] = FakeGuest) -> dict[str, bytes]:
    async def story() -> dict[str, bytes]:
        receiver = guest()
        await put(receiver, contents)
        return receiver.files

    return simulated_time.run(story())


@fuzzed
@given(contents=CONTENTS, rubbish=st.binary(max_size=3000))
def test_rubbish_before_a_stream_does_not_matter(contents: dict[str, bytes], rubbish: bytes) -> None:
    assert run_get(contents, lambda stream: rubbish + stream) == contents


@fuzzed
@given(contents=CONTENTS)
def test_files_arrive_as_they_are(contents: dict[str, bytes]) -> None:
    assert run_get(contents, bytes) == contents
    assert run_put(contents) == contents


@fuzzed
@given(data=st.data())
def test_a_spoilt_stream_fails_or_brings_the_right_bytes(data: st.DataObject) -> None:
    contents = {"one": bytes(range(256)), "none": b"", "other": b"\n" * 200}

    def spoil(stream: bytes) -> bytes:
        at = data.draw(st.integers(0, len(stream) - 1))
        lost = data.draw(st.integers(0, 40))
        other_byte = stream[at] ^ data.draw(st.integers(1, 255))
        put_instead = data.draw(
            st.one_of(st.just(bytes([other_byte]) + stream[at + 1 : at + lost]), st.binary(max_size=40))
        )
        return stream[:at] + put_instead + stream[at + lost :]

    with suppress(TransferFailed, OutputTooLarge, OutputChanged):
        assert run_get(contents, spoil) == contents


@fuzzed
@given(contents=CONTENTS, data=st.data())
@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_cut_stream_fails(hangs_up: bool, contents: dict[str, bytes], data: st.DataObject) -> None:  # noqa: FBT001
    with pytest.raises(asyncio.IncompleteReadError if hangs_up else TransferFailed):
        run_get(contents, lambda stream: stream[: data.draw(st.integers(0, len(stream) - 1))], hangs_up=hangs_up)


@fuzzed
@given(said=st.lists(st.one_of(st.binary(max_size=80), st.just(b"\n"), st.sampled_from([b"f", b"81a4:1:1", b"-"]))))
def test_whatever_a_guest_says_behind_the_nonce_is_an_error(said: list[bytes]) -> None:
    def lie(stream: bytes) -> bytes:
        nonce = stream.split()[0]
        return b"%s sha256\n%s%s end\n" % (nonce, b"".join(said), nonce)

    with pytest.raises((TransferFailed, OutputTooLarge)):
        run_get({"file": b"right"}, lie)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"%(nonce)s sha256\nf\n81a4:999999999999999:7\n", OutputTooLarge),
        (b"%(nonce)s md5\n", TransferFailed),
        (b"%(nonce)s sha256\nff\n", TransferFailed),
        (b"%(nonce)s sha256\nx\n", TransferFailed),
        (b"%(nonce)s sha256\nf\n81a4:-1:7\n", TransferFailed),
        (b"%(nonce)s sha256\nf\n" + 2 * MIB * b"8", TransferFailed),
    ],
)
def test_lies_have_their_errors(said: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_get({"file": b"x"}, lambda stream: said % {b"nonce": stream.split()[0]})


@pytest.mark.parametrize("growth", [b"", b"more\n", b"more"])
def test_a_file_that_changed_has_its_error(growth: bytes) -> None:
    class Changing(FakeGuest):
        async def run_script(self, arguments: Sequence[str], script: bytes, ending: asyncio.Event) -> CommandResult:
            result = await super().run_script(arguments, script, ending)
            return replace(result, status=4)

    async def story() -> None:
        await get(Changing({"file": b"x"}, spoil=lambda stream: stream[:-100] + growth + stream[-100:]), ["file"])

    with pytest.raises(OutputChanged):
        simulated_time.run(story())


@pytest.mark.parametrize("rubbish", [b"\0", b"\n", b"f\n"])
def test_a_guest_that_sends_rubbish_without_end_is_left(rubbish: bytes) -> None:
    """In bounded memory, without waiting for the end, and without keeping others from running."""

    class Endless(FakeGuest):
        async def run_script(self, arguments: Sequence[str], script: bytes, ending: asyncio.Event) -> CommandResult:
            while True:
                self.port.feed_data(MIB // len(rubbish) * rubbish)
                await asyncio.sleep(0)

    async def story() -> None:
        await get(Endless(), ["file"])

    with pytest.raises(TransferFailed, match="not asked for"):
        simulated_time.run(story())


@pytest.mark.parametrize("size", [1, 5000, 300_000])
def test_a_disk_that_is_full_at_an_output_s_last_byte(tmp_path: Path, size: int) -> None:
    sink = Sink(
        [Output(tmp_path / "whole", 0, executable=False), Output(tmp_path / "cut", size, executable=False)],
        hashlib.sha256(),
    )
    no_more = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, no_more[1]))
    try:
        sink.open_next()
        with pytest.raises(HostDiskFailed, match="cut: File too large"):
            sink.write(bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_more)
        sink.close()


def test_a_disk_that_is_full_while_a_rest_is_buffered(tmp_path: Path) -> None:
    no_more = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB - 100, no_more[1]))
    try:
        with closing(Sink([Output(tmp_path / "cut", 4 * MIB, executable=False)], hashlib.sha256())) as sink:
            sink.open_next()
            sink.write(bytes(MIB))
            with pytest.raises(HostDiskFailed, match="cut: File too large"):
                sink.write(bytes(MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_more)


class Deaf(FakeGuest):
    async def drain(self) -> None:
        await asyncio.Event().wait()


class Damaging(FakeGuest):
    async def run_script(self, arguments: Sequence[str], script: bytes, ending: asyncio.Event) -> CommandResult:
        result = await super().run_script(arguments, script, ending)
        return CommandResult(0, digest(result.stdout), b"")


class Failing(FakeGuest):
    async def run_script(self, arguments: Sequence[str], script: bytes, ending: asyncio.Event) -> CommandResult:
        return CommandResult(1, b"", b"tar: no \x1b[31mspace\n")


@pytest.mark.parametrize(
    ("guest", "error", "sentence"),
    [
        (Deaf, TransferFailed, "no byte went into the guest for 60 s"),
        (Damaging, TransferFailed, "the checksums differ"),
        (Failing, GuestError, "status 1: tar: no"),
    ],
)
def test_a_guest_that_does_not_take_files(
    guest: Callable[[], FakeGuest], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        run_put({"file": b"x"}, guest)
    assert "\x1b" not in str(caught.value)


def test_a_guest_that_stands_still_has_all_the_time_that_it_stands() -> None:
    async def story() -> None:
        guest = FakeGuest({"file": b"x"})
        clock = RunningClock()
        clock.stop()
        port = DataPort(
            guest.port, guest, lambda *_: asyncio.sleep(1000, CommandResult(0, b"", b"")), clock, guest.window
        )  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder, pytest.raises(TimeoutError):
            async with asyncio.timeout(500):
                await port.get("/tmp", {"file": Path(folder, "file")}, limit_bytes=1)

    simulated_time.run(story())


LARGE = {"small": b"some", "large": random.Random(1).randbytes(LARGE_BYTES), "none": b""}


class WithWindow(FakeGuest):
    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        super().__init__(files)
        self.has_window = True


@pytest.mark.parametrize("kind", [FakeGuest, WithWindow])
def test_large_files_cross_with_and_without_a_window(kind: Callable[..., FakeGuest]) -> None:
    async def story() -> None:
        guest = kind()
        await put(guest, LARGE)
        assert guest.files == LARGE
        assert await get(guest, list(LARGE), limit_bytes=2 * LARGE_BYTES) == LARGE
        assert len(guest.window.asked) == (2 + 1 + 1 + 3 if guest.has_window else 0)

    simulated_time.run(story())


def test_a_transfer_that_fails_lets_the_guest_go() -> None:
    async def story() -> None:
        guest = WithWindow(LARGE)
        with pytest.raises(OutputTooLarge):
            await get(guest, ["large"], limit_bytes=LARGE_BYTES - 1)
        assert guest.received.endswith(b" end\n")

    simulated_time.run(story())


def test_a_large_file_that_does_not_cross_whole() -> None:
    async def story() -> None:
        guest = WithWindow(LARGE)
        guest.window.skipped = {0, 2}
        with pytest.raises(TransferFailed, match="out of the guest: the checksums differ"):
            await get(guest, ["large"], limit_bytes=LARGE_BYTES)
        with pytest.raises(TransferFailed, match="into the guest: the checksums differ"):
            await put(guest, LARGE)

    simulated_time.run(story())
