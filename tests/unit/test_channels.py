"""Messages through the client's memory, seen from both sides."""

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.channels import Channel, Channels, open_channels, shared_memory
from vmwrapper.boinc.init_data import InitData
from vmwrapper.errors import ClientUnreachable

INIT_DATA = InitData(project_dir=Path("/p"), result_name="r", shm_key=-1)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[mmap.mmap]:
    """The client's mapping."""
    (tmp_path / "boinc_mmap_file").write_bytes(bytes(8192))
    with (tmp_path / "boinc_mmap_file").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        yield mapped


@pytest.fixture
def channels(tmp_path: Path, memory: mmap.mmap) -> Iterator[Channels]:
    with open_channels(tmp_path, INIT_DATA) as opened:
        yield opened


def test_a_message_waits_until_it_is_read(channels: Channels, memory: mmap.mmap) -> None:
    assert channels.send(Channel.APP_STATUS, b"first")
    assert memory[5120:5127] == b"\x01first\0"
    assert not channels.send(Channel.APP_STATUS, b"second")
    memory[5120] = 0
    assert channels.send(Channel.APP_STATUS, b"2")
    assert memory[5120:5123] == b"\x012\0"


def test_a_message_is_taken_once(channels: Channels, memory: mmap.mmap) -> None:
    assert channels.receive(Channel.HEARTBEAT) is None
    memory[4096:4110] = b"\x01<heartbeat/>\0"
    assert channels.receive(Channel.HEARTBEAT) == b"<heartbeat/>"
    assert memory[4096] == 0
    assert channels.receive(Channel.HEARTBEAT) is None


def test_the_longest_message_fits_and_no_longer_one(channels: Channels, memory: mmap.mmap) -> None:
    assert channels.send(Channel.TRICKLE_UP, b"x" * 1022)
    assert memory[6144:7168] == b"\x01" + b"x" * 1022 + b"\0"
    assert memory[7168] == 0
    with pytest.raises(ValueError, match="1023"):
        channels.send(Channel.TRICKLE_DOWN, b"x" * 1023)


def test_a_message_without_an_end_ends_with_its_channel(channels: Channels, memory: mmap.mmap) -> None:
    memory[:] = b"x" * 8192
    assert channels.receive(Channel.PROCESS_CONTROL_REQUEST) == b"x" * 1023


@given(st.sampled_from(Channel), st.binary(max_size=1022).filter(lambda text: b"\0" not in text))
def test_what_one_side_sends_the_other_receives(channel: Channel, text: bytes) -> None:
    with mmap.mmap(-1, 8192) as memory:
        assert Channels(memory).send(channel, text)
        assert Channels(memory).receive(channel) == text
        assert not any(memory[place * 1024] for place in Channel)


@pytest.mark.parametrize("size", [None, 0, 8191])
def test_without_whole_memory_the_client_is_unreachable(tmp_path: Path, size: int | None) -> None:
    if size is not None:
        (tmp_path / "boinc_mmap_file").write_bytes(bytes(size))
    with pytest.raises(ClientUnreachable, match="boinc_mmap_file"), open_channels(tmp_path, INIT_DATA):
        pass


class TestSharedMemory:
    def test_it_is_a_file(self) -> None:
        assert shared_memory(Path("/slot"), INIT_DATA, platform=sys.platform) == Path("/slot/boinc_mmap_file")

    def test_on_windows_it_has_a_name(self) -> None:
        named = InitData(project_dir=Path("/p"), result_name="r", comm_obj_name="boinc_3")
        assert shared_memory(Path("/slot"), named, platform="win32") == "shm_boinc_3"

    @pytest.mark.parametrize("shm_key", [0, 5, -2])
    def test_older_memory_is_refused(self, shm_key: int) -> None:
        older = InitData(project_dir=Path("/p"), result_name="r", shm_key=shm_key, comm_obj_name="boinc_3")
        with pytest.raises(ClientUnreachable, match="api_version"):
            shared_memory(Path("/slot"), older, platform="linux")

    def test_on_windows_a_name_is_needed(self) -> None:
        with pytest.raises(ClientUnreachable, match="name"):
            shared_memory(Path("/slot"), INIT_DATA, platform="win32")
