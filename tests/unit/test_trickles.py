"""Messages of an app and its project's server through the slot; the test is the client."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from vmwrapper.boinc.trickles import TrickleDown, Trickles
from vmwrapper.errors import HostDiskFailed

from . import simulated_time


@pytest.fixture
def up(tmp_path: Path) -> Path:
    return tmp_path / "trickle_up.xml"


@pytest.fixture
def trickles(tmp_path: Path) -> Trickles:
    return Trickles(tmp_path)


class TestUp:
    def test_it_is_written_whole_before_the_client_is_told(self, trickles: Trickles, up: Path) -> None:
        assert not trickles.is_untold
        simulated_time.run(trickles.send_up("credit-1.0", "<cpu_time>5é</cpu_time>"))
        assert up.read_bytes() == "<variety>credit-1.0</variety>\n<cpu_time>5é</cpu_time>".encode()
        assert trickles.is_untold
        assert list(up.parent.iterdir()) == [up]

    def test_one_waits_for_the_other_to_be_taken(self, trickles: Trickles, up: Path) -> None:
        taken: list[bytes] = []

        async def client() -> None:
            while len(taken) < 3:
                await asyncio.sleep(10)
                taken.append(up.read_bytes())
                up.unlink()

        async def story() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(client())
                for text in ("1", "2", "3"):
                    group.create_task(trickles.send_up("v", text))

        simulated_time.run(story())
        assert taken == [f"<variety>v</variety>\n{text}".encode() for text in ("1", "2", "3")]

    def test_one_that_is_not_taken_is_not_lost(self, trickles: Trickles, up: Path) -> None:
        async def story() -> None:
            await trickles.send_up("v", "first")
            trickles.is_untold = False
            with pytest.raises(TimeoutError):
                await trickles.send_up("v", "second")
            assert asyncio.get_running_loop().time() == pytest.approx(60, abs=1)

        simulated_time.run(story())
        assert up.read_bytes().endswith(b"first")
        assert not trickles.is_untold

    @pytest.mark.parametrize(
        ("variety", "text"),
        [
            ("", "x"),
            ("a b", "x"),
            ("a\n", "x"),
            ("é", "x"),
            ("<v>", "x"),
            ("v" * 256, "x"),
            ("v", "x" * (1 << 20)),
            ("v", "\0"),
            ("v", "</msg_from_host>"),
            ("v", "</msg_from_host "),
        ],
    )
    def test_what_would_break_the_request_to_the_server_is_refused(
        self, trickles: Trickles, up: Path, variety: str, text: str
    ) -> None:
        with pytest.raises(ValueError, match="trickle"):
            simulated_time.run(trickles.send_up(variety, text))
        assert not up.exists()

    def test_what_cant_be_written_is_not_told(self, tmp_path: Path) -> None:
        trickles = Trickles(tmp_path / "none")
        with pytest.raises(HostDiskFailed, match="trickle_up"):
            simulated_time.run(trickles.send_up("v", "x"))
        assert not trickles.is_untold

    def test_a_full_disk_is_told_to_the_caller(self, trickles: Trickles, up: Path) -> None:
        up.with_name(".vmwrapper-trickle_up.xml.new").symlink_to("/dev/full")
        with pytest.raises(HostDiskFailed, match="No space left"):
            simulated_time.run(trickles.send_up("v", "x"))
        assert not trickles.is_untold
        assert list(up.parent.iterdir()) == []
        simulated_time.run(trickles.send_up("v", "again"))
        assert up.exists()

    def test_what_an_earlier_episode_left_is_told(self, trickles: Trickles, up: Path) -> None:
        trickles.begin()
        assert not trickles.is_untold
        up.touch()
        trickles.begin()
        assert trickles.is_untold


class TestDown:
    def test_they_come_in_order_and_go_when_done(self, trickles: Trickles, tmp_path: Path) -> None:
        for sent_at in range(20, -2, -1):
            (tmp_path / f"trickle_down_{sent_at}").write_bytes(b"%d" % sent_at)

        async def story(downs: AsyncIterator[TrickleDown]) -> None:
            trickles.begin()
            assert await anext(downs) == TrickleDown(-1, b"-1")
            assert (tmp_path / "trickle_down_-1").exists()
            assert await anext(downs) == TrickleDown(0, b"0")
            assert not (tmp_path / "trickle_down_-1").exists()
            assert [(await anext(downs)).sent_at for _ in range(20)] == list(range(1, 21))
            (tmp_path / "trickle_down_9").write_bytes(b"later")
            asyncio.get_running_loop().call_later(5, trickles.have_come)
            assert await anext(downs) == TrickleDown(9, b"later")
            assert asyncio.get_running_loop().time() == 5

        simulated_time.run(story(trickles.downs()))

    def test_one_that_was_being_worked_on_comes_again(self, trickles: Trickles, tmp_path: Path) -> None:
        async def episode() -> TrickleDown:
            trickles.begin()
            async with aclosing(trickles.downs()) as downs:
                return await anext(downs)

        (tmp_path / "trickle_down_1").write_bytes(b"x")
        assert simulated_time.run(episode()) == simulated_time.run(episode())

    def test_what_is_no_message_is_deleted_or_left_alone(
        self, trickles: Trickles, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        with (tmp_path / "trickle_down_1").open("wb") as large:
            large.truncate((1 << 20) + 1)
        (tmp_path / "secret").write_bytes(b"secret")
        (tmp_path / "trickle_down_2").symlink_to("secret")
        os.mkfifo(tmp_path / "trickle_down_3")
        (tmp_path / "trickle_down_4").mkdir()
        for name in ("trickle_down_", "trickle_down_5x", "my_trickle_down_5", "trickle_down_1.5"):
            (tmp_path / name).touch()
        (tmp_path / "trickle_down_6").write_bytes(b"\xff<good>")

        async def story() -> None:
            trickles.begin()
            async with aclosing(trickles.downs()) as downs:
                assert await anext(downs) == TrickleDown(6, b"\xff<good>")

        simulated_time.run(story())
        left = {path.name for path in tmp_path.iterdir()}
        assert {"trickle_down_4", "trickle_down_5x", "secret"} <= left
        assert not left & {"trickle_down_1", "trickle_down_2", "trickle_down_3"}
        assert len(caplog.records) == 3
