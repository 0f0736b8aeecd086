"""The server's own tasks, which pyvmomi calls Task: waited for to their end, with the questions that come up."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmwrapper.errors import MachineExited
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection, Properties
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed, translated

log = logging.getLogger(__name__)

_FIRST_LOOK_S = 0.02
_LOOKS_GROW_BY = 1.5
_LONGEST_LOOK_S = 2.0
_BUSY_S = 0.5
_GOOD_TWICE = frozenset({"PowerOn", "PowerOff", "Suspend", "Destroy", "Unregister", "Revert", "Remove", "DeleteFile"})
"""What does no more when it is done again: it finds the state as it should be, or nothing there any more."""
_ANSWER_LOST_TRIES = 3
_ANSWERS = {
    "msg.uuid.altered": "button.uuid.copiedTheVM",
    "msg.uuid.moved": "button.uuid.copiedTheVM",
    "msg.cdromdisconnect.locked": "button.yes",
    "msg.hbacommon.askonpermanentdeviceloss": "button.abort",
}
"""To what is asked about machines of ours, by the identifiers of both."""


async def vim_task(
    connection: Connection, thing: Any, method: str, *arguments: object, machine: Any = None, limit_s: float
) -> Any:
    """Have the server do this to its end; what came of it. Questions about the machine are answered meanwhile.

    While another task keeps it from that, that is waited for. Where no answer comes, what is good twice is told again.
    A cancellation leaves the server at it. Raises VsphereFailed; MachineExited for a question that nobody answers.
    """
    tries_left = _ANSWER_LOST_TRIES if method in _GOOD_TWICE else 1
    try:
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    task = await connection.call(thing, method, *arguments)
                    if task is None:  # the server has done it at once
                        return None
                    return await _result(connection, task, method, machine)
                except VsphereFailed as failed:
                    tries_left -= failed.fault is Fault.UNREACHABLE
                    if failed.fault not in (Fault.BUSY, Fault.UNREACHABLE) or not tries_left:
                        raise
                    log.debug("%s", failed)
                await asyncio.sleep(_BUSY_S)
    except TimeoutError as error:
        message = f"{method} at the vSphere server {connection} did not end within {limit_s:g} s"
        raise VsphereFailed(message, Fault.UNREACHABLE) from error


async def _result(connection: Connection, task: Any, what: str, machine: Any) -> Any:
    look_s = _FIRST_LOOK_S
    while True:
        info, question = await _looked(connection, task, what, machine)
        match info.get("info.state"):
            case "success":
                return info.get("info.result")
            case "error":
                raise translated(info["info.error"], f"{what} at the vSphere server {connection}")
        if question:
            await answered(connection, machine, question)
        await asyncio.sleep(look_s)
        look_s = min(look_s * _LOOKS_GROW_BY, _LONGEST_LOOK_S)


async def _looked(connection: Connection, task: Any, what: str, machine: Any) -> tuple[Properties, Any]:
    """What the server says of the task, and the question that it asks of the machine."""
    wanted = {task: ["info.state", "info.error", "info.result"]}
    try:
        if machine is not None:
            with suppress_gone():
                found = await connection.properties(wanted | {machine: ["runtime.question"]})
                return found[task], found[machine].get("runtime.question")
        return (await connection.properties(wanted))[task], None
    except VsphereFailed as failed:
        if failed.fault is not Fault.GONE:
            raise
        message = f"the vSphere server {connection} does not know any more what became of {what}"
        raise VsphereFailed(message, Fault.UNREACHABLE) from failed


@contextmanager
def suppress_gone() -> Iterator[None]:
    """Go on where the server has no such thing any more."""
    try:
        yield
    except VsphereFailed as failed:
        if failed.fault is not Fault.GONE:
            raise


async def answered(connection: Connection, machine: Any, question: Any) -> None:
    """Answer what the server wants to know of a machine. Raises MachineExited for what somebody else must decide."""
    ids = [message.id for message in question.message or ()] or [question.text.partition(":")[0]]
    choices = {choice.label: choice.key for choice in question.choice.choiceInfo}
    choices |= {choice.summary: choice.key for choice in question.choice.choiceInfo}
    text = one_line(question.text)[:500]
    for one in ids:
        if (key := choices.get(_ANSWERS.get(one, ""))) is not None:
            log.info("The vSphere server asks: %s; answered with %s", text, _ANSWERS[one])
            await connection.call(machine, "Answer", question.id, key)
            return
    listed = ", ".join(one_line(choice.label) for choice in question.choice.choiceInfo)
    raise MachineExited(f"the vSphere server waits for somebody's answer: {text} ({listed})")
