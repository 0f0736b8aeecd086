"""What a server wants to know of a machine is answered, or somebody is told."""

from types import SimpleNamespace
from typing import Any

import pytest

from vmwrapper.errors import MachineExited
from vmwrapper.hypervisor.vmware.vsphere.vim_task import answered


class Calls:
    """Notes what is called."""

    def __init__(self) -> None:
        self.made: list[tuple[object, ...]] = []

    async def call(self, *words: object) -> None:
        self.made.append(words)


def question(identifier: str, text: str, *labels: str) -> Any:
    choices = [SimpleNamespace(key=str(n), label=label, summary=f"S{label}") for n, label in enumerate(labels)]
    return SimpleNamespace(
        id="7",
        text=text,
        message=[SimpleNamespace(id=identifier, text=text)],
        choice=SimpleNamespace(choiceInfo=choices),
    )


async def test_a_machine_that_was_copied_is_told_so() -> None:
    calls: Any = Calls()
    machine: Any = SimpleNamespace()
    asked = question("msg.uuid.altered", "Moved or copied?", "button.uuid.cancel", "button.uuid.copiedTheVM")
    await answered(calls, machine, asked)
    assert calls.made == [(machine, "Answer", "7", "1")]


@pytest.mark.parametrize("identifier", ["msg.hbacommon.outofspace", "msg.uuid.altered"])
async def test_what_somebody_else_must_decide_is_reported(identifier: str) -> None:
    calls: Any = Calls()
    with pytest.raises(MachineExited, match=r"No.*space.*Retry, Abort"):
        await answered(calls, SimpleNamespace(), question(identifier, "No\tspace?", "Retry", "Abort"))
    assert calls.made == []
