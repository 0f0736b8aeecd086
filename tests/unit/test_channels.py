"""Messages through the client's memory, seen from both sides."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.channels import Channel, Channels, open_channels
from vmwrapper.errors import ClientUnreachable


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[mmap.mmap]:
    """The client's mapping."""
    (tmp_path / "boinc_mmap_file").write_bytes(bytes(8192))
    with (tmp_path / "boinc_mmap_file").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        yield mapped


@pytest.fixture
def channels(tmp_path: Path, memory: mmap.mmap) -> Iterator[Channels]:
    with open_channels(tmp_path) as opened:
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
    with pytest.raises(ClientUnreachable, match="boinc_mmap_file"), open_channels(tmp_path):
        pass
