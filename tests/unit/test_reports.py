"""What a guest says of its progress; strangers write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.api import Operations
from vmwrapper.guest import reports

from .fuzzing import fuzzed

STAT = b"cpu  100 20 300 4000 50 6 7 0 0 0\ncpu0 100 20 300 4000 50 6 7 0 0 0\n"


@pytest.mark.parametrize(
    ("end", "fraction"),
    [
        (b"0.25\n", 0.25),
        (b"0.1\n0.2\n0.3", 0.3),
        (b"3 of 4 done: 7.5e-1\n", 0.75),
        (b".5", 0.5),
        (b"1", 1),
        (b"0", 0),
        (b"", None),
        (b"nearly done", None),
        (b"1.5", None),
        (b"0.2 (of 1.0)\n", 1),
        (b"0.9\n1e-", None),
        (b"0.9\n1.", 1),
        (b"0.25 50%", None),
        (b"0.25 done, step 1b", None),
        (b"1-0", None),
        (b"-0.5", None),
        (b"1e999", None),
        (b"0.5\n-1", None),
        (b"\xff\xfe", None),
    ],
)
def test_fraction_done(end: bytes, fraction: float | None) -> None:
    assert reports.fraction_done(end) == fraction


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (b"3e9 1000\n", (3e9, 1000)),
        (b"1 2\n3 4\n", (3, 4)),
        (b"5e9 1 2\n3 4", (3, 4)),
        (b"0 0", (0, 0)),
        (b"3e9", None),
        (b"3e9 x", None),
        (b"-1 5", None),
        (b"1 1e999", None),
        (b"1 1e30", None),
        (b"1 2 3", None),
        (b"", None),
    ],
)
def test_operations(end: bytes, found: tuple[float, float] | None) -> None:
    expected = Operations(floating_point=found[0], integer=found[1]) if found else None
    assert reports.operations(end) == expected


def test_cpu_time_of_all_processors() -> None:
    assert reports.cpu_time_s(STAT) == pytest.approx((100 + 20 + 300 + 6 + 7) / 100)


@pytest.mark.parametrize("stat", [b"", b"cpu", b"cpu  1 2 3\n", b"cpu  a b c d e f g h\n", b"cpu  -1 2 3 4 5 6 7 8\n"])
def test_no_cpu_time(stat: bytes) -> None:
    assert reports.cpu_time_s(stat) is None


@fuzzed
@given(st.binary(max_size=256) | st.from_regex(rb"[0-9eE.+ \n-]{0,128}", fullmatch=True))
def test_whatever_it_says_is_a_number_that_can_be_or_none(said: bytes) -> None:
    fraction, found = reports.fraction_done(said), reports.operations(said)
    assert fraction is None or 0 <= fraction <= 1
    assert found is None or (0 <= found.floating_point < float("inf") and 0 <= found.integer < float("inf"))


@fuzzed
@given(st.binary(max_size=256) | st.from_regex(rb"cpu [0-9 ]{0,200}\n", fullmatch=True))
def test_whatever_its_kernel_says_is_a_time_or_none(said: bytes) -> None:
    seconds = reports.cpu_time_s(said)
    assert seconds is None or 0 <= seconds < 1e16
