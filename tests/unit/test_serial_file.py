"""The end of what a guest wrote to its serial port: hostile, and as much as it likes."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.serial_file import MOST_BYTES, TAIL_BYTES, SerialFile

from .fuzzing import fuzzed


@pytest.fixture
def console(tmp_path: Path) -> SerialFile:
    return SerialFile(tmp_path / "console")


def used_bytes(console: SerialFile) -> int:
    return console.file.stat().st_blocks * 512


def test_absent(console: SerialFile) -> None:
    console.bound()
    assert str(console) == ""


def test_begins_empty(console: SerialFile) -> None:
    console.file.write_bytes(b"of an earlier boot")
    console.begin()
    assert console.file.read_bytes() == b""


def test_begins_nowhere(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        SerialFile(tmp_path / "no" / "console").begin()


def test_the_end_is_shown(console: SerialFile) -> None:
    console.file.write_bytes(b"x" * TAIL_BYTES + b"\nTICK 1\n")
    assert str(console).endswith("x\nTICK 1")
    assert len(str(console)) <= TAIL_BYTES


def test_little_is_left_alone(console: SerialFile) -> None:
    console.file.write_bytes(b"TICK 1\n")
    console.bound()
    assert str(console) == "TICK 1"


def test_a_flood_is_bounded_on_disk(console: SerialFile) -> None:
    """VirtualBox goes on where it was, so that the file gets a hole."""
    console.begin()
    with console.file.open("r+b") as written:
        for number in range(8):
            written.write(f"line {number}\n".encode() * (MOST_BYTES // 8))
            written.flush()
            console.bound()
            assert used_bytes(console) <= MOST_BYTES
        written.write(b"the last line\n")
        written.flush()
    assert console.file.stat().st_size > 4 * MOST_BYTES
    assert str(console) == "the last line"


def test_only_a_hole(console: SerialFile) -> None:
    console.begin()
    os.truncate(console.file, 1 << 40)
    console.bound()
    assert str(console) == ""


@fuzzed
@given(st.binary())
def test_whatever_it_holds_is_harmless(tmp_path: Path, said: bytes) -> None:
    console = SerialFile(tmp_path / "console")
    console.file.write_bytes(said)
    assert all(letter.isprintable() or letter == "\n" for letter in str(console))
