"""What stands in the messages between client and app."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.api import Operations, Request, Status
from vmwrapper.boinc.init_data import InitData
from vmwrapper.boinc.messages import (
    Address,
    Heartbeat,
    address_message,
    heard,
    is_heartbeat,
    requests_in,
    status_message,
)

from .fuzzing import fuzzed

INIT_DATA = InitData(project_dir=Path("/p"), result_name="r", fraction_done_start=0.5)


def status(**fields: object) -> Status:
    return Status(**{"fraction_done": 0.5, "cpu_time_s": 2.5, "checkpoint_cpu_time_s": 1.5, "activity": "", **fields})


class TestStatus:
    def test_all_that_the_client_reads(self) -> None:
        whole = status(
            want_network=True,
            working_set_bytes=1 << 33,
            other_pid=4711,
            operations=Operations(floating_point=1.5e15, integer=2e14),
        )
        assert status_message(whole, INIT_DATA) == (
            b"<current_cpu_time>2.500000e+00</current_cpu_time>\n"
            b"<checkpoint_cpu_time>1.500000e+00</checkpoint_cpu_time>\n"
            b"<fraction_done>7.500000e-01</fraction_done>\n"
            b"<other_pid>4711</other_pid>\n"
            b"<want_network>1</want_network>\n"
            b"<wss>8589934592</wss>\n"
            b"<fpops_cumulative>1.500000e+15</fpops_cumulative>\n"
            b"<intops_cumulative>2.000000e+14</intops_cumulative>\n"
        )

    def test_what_is_not_known_is_not_said(self) -> None:
        assert status_message(status(), INIT_DATA) == (
            b"<current_cpu_time>2.500000e+00</current_cpu_time>\n"
            b"<checkpoint_cpu_time>1.500000e+00</checkpoint_cpu_time>\n"
            b"<fraction_done>7.500000e-01</fraction_done>\n"
        )

    @pytest.mark.parametrize("pid", [0, -1, -4711, 1 << 31, 1 << 70])
    def test_no_group_of_processes_is_named(self, pid: int) -> None:
        assert b"other_pid" not in (status_message(status(other_pid=pid), INIT_DATA) or b"")

    @pytest.mark.parametrize("name", ["cpu_time_s", "checkpoint_cpu_time_s"])
    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_a_cpu_time_that_is_none_is_not_taken_for_0(self, name: str, number: float) -> None:
        assert status_message(status(**{name: number}), INIT_DATA) is None

    @fuzzed
    @given(
        st.builds(
            Status,
            fraction_done=st.floats(),
            cpu_time_s=st.floats(),
            checkpoint_cpu_time_s=st.floats(),
            activity=st.text(),
            want_network=st.booleans(),
            working_set_bytes=st.integers() | st.integers().map(lambda number: number << 1000),
            other_pid=st.integers(),
            operations=st.builds(Operations, floating_point=st.floats(), integer=st.floats()),
        )
    )
    def test_it_fits_and_all_its_numbers_are_finite(self, wild: Status) -> None:
        message = status_message(wild, INIT_DATA) or b""
        assert len(message) <= 1022
        numbers = [line.split(b">")[1].split(b"<")[0] for line in message.splitlines()]
        assert all(math.isfinite(float(number)) for number in numbers)


class TestHeartbeat:
    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (b"<heartbeat/>", Heartbeat(working_set_bytes=1, max_working_set_bytes=2)),
            (b"<wss>5e6</wss>", Heartbeat(working_set_bytes=5e6, max_working_set_bytes=2)),
            (b"<max_wss> 5.5junk", Heartbeat(working_set_bytes=1, max_working_set_bytes=5.5)),
            (b"<wss>nan</wss><max_wss>inf", Heartbeat(working_set_bytes=1, max_working_set_bytes=2)),
            (b"<wss>1e999</wss><wss>7</wss>", Heartbeat(working_set_bytes=1, max_working_set_bytes=2)),
            (b"", Heartbeat(working_set_bytes=1, max_working_set_bytes=2)),
            (
                b"<network_suspended/>",
                Heartbeat(working_set_bytes=1, max_working_set_bytes=2, network_suspended=True),
            ),
        ],
    )
    def test_what_is_known_after_it(self, message: bytes, expected: Heartbeat) -> None:
        before = Heartbeat(working_set_bytes=1, max_working_set_bytes=2, network_suspended=True)
        assert heard(before, message) == expected
        assert is_heartbeat(message) == (b"heartbeat" in message)

    @fuzzed
    @given(st.binary() | st.lists(st.sampled_from([b"<wss>", b"<max_wss>", b"1", b"e", b"9" * 400, b"-", b"."])))
    def test_its_numbers_are_finite(self, message: bytes | list[bytes]) -> None:
        known = heard(Heartbeat(), message if isinstance(message, bytes) else b"".join(message))
        assert math.isfinite(known.working_set_bytes or 0)
        assert math.isfinite(known.max_working_set_bytes or 0)


@pytest.mark.parametrize(
    ("message", "requests"),
    [
        (b"<quit/><suspend/>", [Request.SUSPEND, Request.QUIT]),
        (b"junk<abort/>junk", [Request.ABORT]),
        (b"<resume /><quit>", []),
    ],
)
def test_requests_are_found_anywhere(message: bytes, requests: list[Request]) -> None:
    assert requests_in(message) == requests


@pytest.mark.parametrize(
    "address", ["", "a\nb", "a b", "a<b", "x" * 256, "&" * 52, "a\0b", "é" * 128, "</web_graphics_url>"]
)
def test_what_is_no_address_is_not_sent(address: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        address_message(Address.WEB_GRAPHICS, address)


def test_the_longest_address_is_sent() -> None:
    assert len(address_message(Address.REMOTE_DESKTOP, "x" * 255)) == 255 + 2 * len("<remote_desktop_addr>") + 1
