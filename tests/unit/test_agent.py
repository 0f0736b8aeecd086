"""The conversation with the guest agent, which may be anybody."""

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError, GuestSilent
from vmwrapper.hypervisor.interface import CommandResult
from vmwrapper.hypervisor.qemu.agent import REPLY_LIMIT_BYTES, Agent, AgentRefused

from . import simulated_time
from .fuzzing import fuzzed

Reply = Callable[[dict[str, Any]], bytes]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda of: (
        st.lists(of, max_size=3) | st.dictionaries(st.sampled_from(["pid", "exited", "exitcode"]) | st.text(), of)
    ),
)


class FakeAgent:
    """Answers what a test wants, after it has taken part in finding the beginning."""

    def __init__(self, reply: Reply, *, before: bytes = b"") -> None:
        self.port = asyncio.StreamReader(limit=REPLY_LIMIT_BYTES)
        self.port.feed_data(before)
        self._reply = reply

    def write(self, message: bytes) -> None:
        asked = json.loads(message.lstrip(b"\xff"))
        if asked["execute"] == "guest-sync-delimited":
            self.port.feed_data(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
        else:
            self.port.feed_data(self._reply(asked))

    async def drain(self) -> None:
        await asyncio.sleep(0)


def ask(fake: Callable[[], FakeAgent], question: Callable[[Agent], Coroutine[Any, Any, Any]]) -> Any:
    async def story() -> Any:
        guest = fake()
        return await question(Agent(guest.port, guest, RunningClock()))  # type: ignore[arg-type]

    return simulated_time.run(story())


def run_true(agent: Agent) -> Coroutine[Any, Any, CommandResult]:
    return agent.run(["true"], stdin=b"", limit_s=10)


def line(answer: object) -> bytes:
    return json.dumps({"return": answer}).encode() + b"\n"


def honest(asked: dict[str, Any]) -> bytes:
    if asked["execute"] == "guest-exec":
        return line({"pid": 7})
    said = base64.b64encode(b"said").decode()
    return line({"exited": True, "exitcode": 3, "out-data": said})


@fuzzed
@given(before=st.binary(max_size=3000))
def test_what_was_said_before_does_not_matter(before: bytes) -> None:
    done = ask(lambda: FakeAgent(honest, before=before), run_true)
    assert done == CommandResult(3, b"said", b"")


def ends_or_fails(reply: Reply) -> None:
    with suppress(GuestError):
        assert isinstance(ask(lambda: FakeAgent(reply), run_true), CommandResult)


@fuzzed
@given(reply=st.binary(max_size=300) | JSON.map(line) | st.sampled_from([b"[" * 5000 + b"\n", line({"pid": 2**70})]))
def test_any_reply_is_an_answer_an_error_or_silence(reply: bytes) -> None:
    ends_or_fails(lambda _: reply)


@fuzzed
@given(answer=JSON)
def test_any_end_of_a_command_is_one_or_an_error(answer: object) -> None:
    ends_or_fails(lambda asked: line({"pid": 7} if asked["execute"] == "guest-exec" else answer))


def test_a_reply_without_end_is_an_error() -> None:
    with pytest.raises(GuestError, match="longer than"):
        ask(lambda: FakeAgent(lambda _: bytes(REPLY_LIMIT_BYTES + 1)), run_true)


def test_a_refusal_is_printed_harmlessly() -> None:
    said = json.dumps({"error": {"class": "GenericError", "desc": "no \x1b[31m"}}).encode() + b"\n"
    with pytest.raises(AgentRefused, match="refused guest-exec: no") as caught:
        ask(lambda: FakeAgent(lambda _: said), run_true)
    assert "\x1b" not in str(caught.value)


def test_silence_has_its_limit_in_running_time() -> None:
    with pytest.raises(GuestSilent, match=r"'true' in the guest did not end within 10 s"):
        ask(lambda: FakeAgent(lambda _: b""), run_true)
