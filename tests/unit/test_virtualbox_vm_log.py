"""What is read out of a VBox.log, which a guest can have things written into."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.virtualbox.vm_log import Entry, Sign, VmLog

from .fuzzing import fuzzed

RUNS = b"00:00:00.425808 Changing the VM state from 'POWERING_ON' to 'RUNNING'\n"
OFF = b"00:00:09.000001 Changing the VM state from 'RUNNING' to 'POWERING_OFF'\n"
FULL = (
    b"00:00:05.123456 Console: VM runtime error: fatal=false, errorID=DrvVD_DISKFULL"
    b' message="The file system for root.vdi is full"\n'
)
OTHER = (
    b"00:00:00.421983 Changing the VM state from 'CREATING' to 'CREATED'\n00:00:00.158396 CPUM: Changing leaf 13[0]\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "VBox.log"


def add(file: Path, said: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(said)


def signs(log: VmLog) -> list[Sign]:
    return [entry.sign for entry in log.look()]


def test_absent(file: Path) -> None:
    log = VmLog(file)
    assert log.look() == []
    add(file, RUNS)
    assert signs(log) == [Sign.RUNS]


@pytest.mark.parametrize(
    ("state", "sign"),
    [
        ("RUNNING", Sign.RUNS),
        ("SUSPENDED", Sign.STANDS),
        ("RESETTING", Sign.RESETS),
        ("POWERING_OFF", Sign.POWERS_OFF),
        ("GURU_MEDITATION", Sign.GURU),
    ],
)
def test_states(file: Path, state: str, sign: Sign) -> None:
    add(file, f"00:00:01.000000 Changing the VM state from 'RUNNING' to '{state}'\n".encode())
    assert VmLog(file).look() == [Entry(sign)]


def test_guest_that_takes_commands_and_one_that_says_so_itself(file: Path) -> None:
    """The first line is seen with VirtualBox 7.2.22; the other is what a guest gets logged."""
    add(file, b"00:00:12.707412 Guest Control: GUEST_MSG_REPORT_FEATURES: 0x7f, 0x8000000000000000\n")
    add(file, b"00:00:13.707412 VMMDev: Guest Log: 00:00:13.0 Guest Control: GUEST_MSG_REPORT_FEATURES: 0x7f\n")
    assert VmLog(file).look() == [Entry(Sign.SERVES)]


def test_powered_off_by_whom(file: Path) -> None:
    """By the host, there is a line before that of the state; by the guest, behind it if at all."""
    told = b"00:00:02.691516 Console::powerDown(): A request to power off the VM has been issued\n"
    add(file, told + OFF + told)
    assert signs(VmLog(file)) == [Sign.ENDED, Sign.POWERS_OFF, Sign.ENDED]


def test_only_what_is_new(file: Path) -> None:
    add(file, OTHER + RUNS)
    log = VmLog(file)
    assert signs(log) == [Sign.RUNS]
    assert signs(log) == []
    add(file, OTHER + FULL + OFF)
    assert signs(log) == [Sign.ERROR, Sign.POWERS_OFF]


def test_whether_it_runs_is_known_after_other_signs(file: Path) -> None:
    log = VmLog(file)
    assert log.state is None
    add(file, RUNS + FULL)
    log.look()
    assert log.state is Sign.RUNS
    add(file, RUNS + RUNS.replace(b"RUNNING", b"SUSPENDED") + OFF)
    log.look()
    log.look()
    assert log.state is Sign.STANDS


def test_an_error_of_the_host(file: Path) -> None:
    add(file, FULL)
    assert VmLog(file).look() == [Entry(Sign.ERROR, "The file system for root.vdi is full (DrvVD_DISKFULL)")]


@pytest.mark.parametrize("cut_at", range(0, len(RUNS), 5))
def test_a_line_that_is_written_in_two_parts(file: Path, cut_at: int) -> None:
    log = VmLog(file)
    add(file, OTHER + RUNS[:cut_at])
    assert signs(log) == []
    add(file, RUNS[cut_at:])
    assert signs(log) == [Sign.RUNS]


def test_windows(file: Path) -> None:
    add(file, RUNS.replace(b"\n", b"\r\n"))
    assert signs(VmLog(file)) == [Sign.RUNS]


def test_begun_anew(file: Path) -> None:
    """VirtualBox renames the old log when a machine starts."""
    add(file, OTHER * 10 + RUNS)
    log = VmLog(file)
    assert signs(log) == [Sign.RUNS]
    file.rename(file.with_suffix(".log.1"))
    assert signs(log) == []
    add(file, OTHER + OFF)
    assert signs(log) == [Sign.POWERS_OFF]


@pytest.mark.parametrize("before", [b"00:00:02.000000 VMMDev: Guest Log: ", b"Guest says: ", b"00:00:02.000000 x "])
@pytest.mark.parametrize("said", [OFF, FULL])
def test_what_a_guest_has_logged_is_no_sign(file: Path, before: bytes, said: bytes) -> None:
    add(file, before + said + RUNS)
    assert signs(VmLog(file)) == [Sign.RUNS]


def test_words_are_made_harmless(file: Path) -> None:
    add(file, FULL.replace(b"The", b"\033[2J\xff"))
    [entry] = VmLog(file).look()
    assert entry.words.startswith("\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER} file")


def test_much_at_once(file: Path) -> None:
    """All of it, and no sign twice."""
    add(file, (OTHER + b"x" * 5000 + b"\n") * 2000 + RUNS + b"y" * 3_000_000 + b"\n" + OFF)
    log = VmLog(file)
    assert signs(log) == [Sign.RUNS, Sign.POWERS_OFF]
    assert signs(log) == []


@fuzzed
@given(st.binary(), st.lists(st.sampled_from([RUNS, OFF, FULL, OTHER, b"\n", b"\0\n"])))
def test_whatever_it_holds(tmp_path: Path, noise: bytes, lines: list[bytes]) -> None:
    file = tmp_path / "VBox.log"
    file.write_bytes(noise + b"\n" + b"".join(lines))
    assert len(VmLog(file).look()) >= sum(line in (RUNS, OFF, FULL) for line in lines)
