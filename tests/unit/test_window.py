"""Large files through a disk that both have, with guests that copy something else, or nothing."""

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.clock import RunningClock
from vmwrapper.errors import HostDiskFailed, TransferFailed
from vmwrapper.hypervisor.inputs import inputs
from vmwrapper.hypervisor.interface import MIB
from vmwrapper.hypervisor.outputs import Output
from vmwrapper.hypervisor.qemu.agent import REPLY_LIMIT_BYTES
from vmwrapper.hypervisor.qemu.port import Port
from vmwrapper.hypervisor.qemu.window import Window

from . import simulated_time
from .fuzzing import fuzzed
from .shared_window import GuestWindow

NONCE = "abcdef"
SIZES = [1, 64 * 1024, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 32 * MIB, 40 * MIB, 72 * MIB + 5]


class Guest:
    """Serves the window; the answers come as `answer` has them."""

    def __init__(self, files: Mapping[str, bytes], *, skipped: int | None = None, answer: bytes | None = None) -> None:
        self.files = dict(files)
        self.port = asyncio.StreamReader(limit=REPLY_LIMIT_BYTES)
        self.window = GuestWindow(self.files, lambda said: self.port.feed_data(said if answer is None else answer))
        if skipped is not None:
            self.window.skipped.add(skipped)

    def write(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            self.window.serve(line, list(self.files))

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def host(self) -> Window:
        return Window(self.window.fd, Port(self.port, self, RunningClock()))  # type: ignore[arg-type]


def random_files(sizes: list[int]) -> dict[str, bytes]:
    return {f"file {number}": random.Random(number).randbytes(size) for number, size in enumerate(sizes)}


def put(
    contents: Mapping[str, bytes], folder: Path, *, skipped: int | None = None, answer: bytes | None = None
) -> Guest:
    """Raises AssertionError where they don't arrive whole."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)

    async def story() -> Guest:
        guest = Guest(dict.fromkeys(contents, b""), skipped=skipped, answer=answer)
        assert await guest.host().put(NONCE, dict(enumerate(inputs({name: folder / name for name in contents}), 1)))
        return guest

    return simulated_time.run(story())


def get(
    contents: Mapping[str, bytes], folder: Path, *, skipped: int | None = None, answer: bytes | None = None
) -> None:
    """Raises AssertionError where they don't arrive whole."""

    async def story() -> None:
        guest = Guest(contents, skipped=skipped, answer=answer)
        outputs = [Output(folder / name, size=len(content), executable=False) for name, content in contents.items()]
        assert await guest.host().get(NONCE, dict(enumerate(outputs, 1)))

    simulated_time.run(story())


def test_files_cross_as_they_are(tmp_path: Path) -> None:
    contents = random_files(SIZES)
    assert put(contents, tmp_path).files == contents
    (tmp_path / "back").mkdir()
    get(contents, tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_bytes() for name in contents} == contents


@pytest.mark.parametrize("sizes", [[MIB], [40 * MIB], [8 * MIB, 100]])
def test_a_copy_that_was_not_made_is_noticed(sizes: list[int], tmp_path: Path) -> None:
    """Also the last, when all of a file is still in the window from its way in."""
    contents = random_files(sizes)
    copies = sum(" cut " not in line for line in put(contents, tmp_path).window.asked)
    for number in range(copies):
        back = tmp_path / f"back {number}"
        back.mkdir()
        with pytest.raises(AssertionError):
            put(contents, tmp_path, skipped=number)
        with pytest.raises(AssertionError):
            get(contents, back, skipped=number)


@fuzzed
@given(answer=st.binary(min_size=1, max_size=50).filter(lambda said: NONCE.encode() not in said))
def test_whatever_a_guest_answers_is_an_error(answer: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(TransferFailed, match="instead of having copied"):
        get({"file": b"right"}, tmp_path_factory.mktemp("back"), answer=answer + b"\n")


@pytest.mark.parametrize("cross", [put, get])
def test_a_guest_that_does_not_answer_is_left(cross: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        cross({"file": b"right"}, tmp_path, answer=b"")


def test_an_input_that_becomes_shorter(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "file"
        path.write_bytes(b"longer")
        [file] = inputs({"file": path})
        path.write_bytes(b"")
        await Guest({"file": b""}).host().put(NONCE, {1: file})

    with pytest.raises(TransferFailed, match="became shorter"):
        simulated_time.run(story())


def test_a_file_of_the_host_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("the host's")
    with pytest.raises(HostDiskFailed):
        get({"file": b"x"}, tmp_path)
    assert (tmp_path / "file").read_text() == "the host's"
