"""How VBoxManage is run, with a program in its place: when it is told again, and what is a failure."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.errors import ProcessFailed
from vmwrapper.hypervisor.virtualbox.faults import Fault
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage, VirtualBoxFailed, environment, facts

from .fuzzing import fuzzed

LOCKED = "VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007), component MachineWrap"
PAUSED = "VBoxManage: error: Details: code VBOX_E_INVALID_VM_STATE (0x80bb0002), component ConsoleWrap"
NOTES = "calls"

Make = Callable[[str], VBoxManage]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Makes a VBoxManage of the lines of a shell script, which notes each call of it."""

    def make(script: str) -> VBoxManage:
        program = tmp_path / "VBoxManage"
        program.write_text(f'#!/bin/sh\ncd "{tmp_path}"\necho "$*" >>{NOTES}\n{script}\n')
        program.chmod(0o755)
        return VBoxManage(program)

    return make


def calls(folder: Path) -> list[str]:
    return (folder / NOTES).read_text().splitlines()


def complaining(complaint: str, *, status: int = 1) -> str:
    return f"echo '{complaint}' >&2; exit {status}"


async def failure(manage: VBoxManage, *, limit_s: float = 20) -> VirtualBoxFailed:
    with pytest.raises(VirtualBoxFailed) as raised:
        await manage("list", "vms", limit_s=limit_s)
    return raised.value


async def test_answer_comes_with_the_warnings_before_it(made: Make) -> None:
    said = await made("echo 'WARNING: The character device /dev/vboxdrv does not exist.'; echo VMState=1")("x")
    assert facts(said)["VMState"] == "1"


async def test_lines_of_windows(made: Make) -> None:
    said = await made("""printf 'VMState="running"\\r\\nmemory=32\\r\\n'""")("x")
    assert facts(said) == {"VMState": "running", "memory": "32"}


async def test_arguments_arrive_as_they_are(made: Make, tmp_path: Path) -> None:
    await made("")("createvm", "--name", tmp_path / "a b", "--memory", 32)
    assert calls(tmp_path) == [f"createvm --name {tmp_path}/a b --memory 32"]


async def test_a_command_may_stand_before_the_program(tmp_path: Path) -> None:
    assert await VBoxManage("echo", tmp_path)("list") == f"{tmp_path} list\n"


@pytest.mark.parametrize("program", ["VBoxManage: ", "VBoxManage.exe: ", ""])
async def test_an_error_with_status_0_is_a_failure(made: Make, program: str) -> None:
    failed = await failure(made(complaining(f"0%...\n{program}error: Failed to take snapshot", status=0)))
    assert failed.fault is Fault.OTHER
    assert "Failed to take snapshot" in str(failed)


async def test_progress_and_warnings_are_no_failure(made: Make) -> None:
    assert await made("echo '0%...100%\nVBoxManage: warning: no error: really' >&2; echo done")("x") == "done\n"


async def test_a_failure_without_a_code(made: Make, tmp_path: Path) -> None:
    failed = await failure(made(complaining("VBoxManage: error: Machine is not currently running.")))
    assert failed.fault is Fault.WRONG_STATE
    assert str(failed) == (
        f"status 1 from: {tmp_path}/VBoxManage list vms\nit said: VBoxManage: error: Machine is not currently running."
    )


async def test_a_failure_told_on_stdout(made: Make) -> None:
    failed = await failure(made("echo 'This machine does not have any snapshots'; exit 1"))
    assert failed.fault is Fault.WRONG_STATE
    assert "any snapshots" in str(failed)


async def test_a_failure_without_a_word(made: Make) -> None:
    failed = await failure(made("exit 1"))
    assert failed.fault is Fault.OTHER
    assert "(nothing)" in str(failed)


async def test_a_signal(made: Make) -> None:
    assert "status -9 from" in str(await failure(made("kill -9 $$")))


async def test_what_it_says_is_made_harmless(made: Make) -> None:
    failed = await failure(made("printf 'VBoxManage: error: \\033[2J\\377' >&2; exit 1"))
    assert str(failed).endswith("VBoxManage: error: \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}")


async def test_too_much_said_is_a_failure(made: Make) -> None:
    assert "status -9" in str(await failure(made("yes")))


@pytest.mark.parametrize("script", ["exit 1", complaining(PAUSED), complaining("VBoxManage: error: Out of bananas")])
async def test_what_does_not_pass_is_told_once(made: Make, tmp_path: Path, script: str) -> None:
    await failure(made(script))
    assert len(calls(tmp_path)) == 1


async def test_what_passes_is_told_again(made: Make, tmp_path: Path) -> None:
    manage = made(f'[ "$(wc -l <{NOTES})" -gt 2 ] && echo there && exit; {complaining(LOCKED)}')
    assert await manage("list", "vms") == "there\n"
    assert calls(tmp_path) == ["list vms"] * 3


async def test_what_does_not_pass_after_all_is_a_failure_within_the_limit(made: Make, tmp_path: Path) -> None:
    began_s = time.monotonic()
    assert (await failure(made(complaining(LOCKED)), limit_s=2)).fault is Fault.LOCKED
    assert time.monotonic() - began_s < 3
    assert len(calls(tmp_path)) > 2


async def test_no_end(made: Make) -> None:
    began_s = time.monotonic()
    with pytest.raises(ProcessFailed, match=r"no end after 0.5 s: .*VBoxManage list vms\n.* service is stuck"):
        await made("exec sleep 1000")("list", "vms", limit_s=0.5)
    assert time.monotonic() - began_s < 2
    assert psutil.Process().children(recursive=True) == []


async def test_no_end_when_told_again(made: Make) -> None:
    """The limit is one for all calls."""
    began_s = time.monotonic()
    script = f'[ "$(wc -l <{NOTES})" -gt 1 ] && exec sleep 1000; {complaining(LOCKED)}'
    with pytest.raises(ProcessFailed, match="no end"):
        await made(script)("list", "vms", limit_s=2)
    assert time.monotonic() - began_s < 3


async def test_cancelled_while_it_runs(made: Make, tmp_path: Path) -> None:
    task = asyncio.create_task(made("exec sleep 1000")("list"))
    while not (tmp_path / NOTES).exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert psutil.Process().children(recursive=True) == []


async def test_cancelled_before_it_is_told_again(made: Make, tmp_path: Path) -> None:
    task = asyncio.create_task(made(complaining(LOCKED))("list"))
    while not (tmp_path / NOTES).exists() or len(calls(tmp_path)) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    told = len(calls(tmp_path))
    await asyncio.sleep(0.5)
    assert len(calls(tmp_path)) == told


async def test_a_service_that_it_started_does_not_keep_it(made: Make) -> None:
    """VBoxSVC has the same output, and runs on."""
    began_s = time.monotonic()
    assert await made("sleep 3 & echo there")("list") == "there\n"
    assert time.monotonic() - began_s < 2


async def test_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="can't start"):
        await VBoxManage(tmp_path / "no")("list")


async def test_whose_profile_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBOX_USER_HOME", "/profile")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/slot")
    monkeypatch.delenv("VBOX_IPC_SOCKETID", raising=False)
    assert environment()["VBOX_USER_HOME"] == "/profile"
    assert {"LD_LIBRARY_PATH", "VBOX_IPC_SOCKETID"}.isdisjoint(environment())


def test_facts() -> None:
    said = 'a warning\nname="a = b"\nmemory=32\n"SATA-0-0"="/a/root.vdi"\nVMState="running"\nempty=""\nnothing=\n'
    assert facts(said) == {
        "name": "a = b",
        "memory": "32",
        "SATA-0-0": "/a/root.vdi",
        "VMState": "running",
        "empty": "",
        "nothing": "",
    }


@fuzzed
@given(st.text())
def test_facts_of_anything(said: str) -> None:
    assert all("\n" not in name for name in facts(said))
