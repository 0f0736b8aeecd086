"""How vmrun is run, with a program in its place: what it is told, when it is told again, and what is a failure."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from vmwrapper.errors import JobError, ProcessFailed
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.vmware.vmrun.faults import Fault
from vmwrapper.hypervisor.vmware.vmrun.vmrun import Vmrun, VmrunFailed

LOGIN = Login("root", "s3cret 'word")
BUSY = "echo 'Error: The object is busy'; exit 255"

Make = Callable[[str], Vmrun]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Makes a vmrun of the lines of a shell script, which notes each call of it."""

    def make(script: str) -> Vmrun:
        program = tmp_path / "vmrun"
        program.write_text(
            f'#!/bin/sh\ncd "{tmp_path}"\nfor word; do printf "%s|" "$word"; done >>calls\necho >>calls\n{script}\n'
        )
        program.chmod(0o755)
        return Vmrun(program, "ws")

    return make


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


async def test_words_and_flags(made: Make, tmp_path: Path) -> None:
    vmrun = made("echo Total running VMs: 0")
    assert await vmrun("list") == "Total running VMs: 0\n"
    await vmrun("runProgramInGuest", tmp_path / "a b.vmx", "/bin/sh", "/tmp/x", login=LOGIN)
    assert calls(tmp_path) == [
        "-T|ws|list|",
        f"-T|ws|-gu|root|-gp|s3cret 'word|runProgramInGuest|{tmp_path}/a b.vmx|/bin/sh|/tmp/x|",
    ]


async def test_without_product(made: Make, tmp_path: Path) -> None:
    await Vmrun(made("").__getattribute__("_program"))()
    assert calls(tmp_path) == [""]


@pytest.mark.parametrize("status", [0, 255])
async def test_an_error_is_one_whatever_the_status(made: Make, status: int) -> None:
    with pytest.raises(VmrunFailed) as raised:
        await made(f"echo 'Error: The snapshot does not exist'; exit {status}")("revertToSnapshot", "x")
    assert raised.value.fault is Fault.NO_SNAPSHOT
    assert "The snapshot does not exist" in str(raised.value)
    assert "there is no such snapshot" in str(raised.value)  # what it means


async def test_an_error_on_the_other_channel(made: Make) -> None:
    with pytest.raises(VmrunFailed) as raised:
        await made("echo 'Error: The file is already in use' >&2")("start", "x")
    assert raised.value.fault is Fault.IN_USE


async def test_a_status_without_words(made: Make) -> None:
    with pytest.raises(VmrunFailed, match=r"status 3 from: .*\n.*\(nothing\)"):
        await made("exit 3")("start", "x")


async def test_what_passes_is_told_again(made: Make, tmp_path: Path) -> None:
    assert await made(f"[ $(wc -l <calls) -ge 3 ] || {{ {BUSY}; }}\necho done")("snapshot", "x") == "done\n"
    assert len(calls(tmp_path)) == 3


async def test_until_its_limit(made: Make, tmp_path: Path) -> None:
    began_s = time.monotonic()
    with pytest.raises(VmrunFailed) as raised:
        await made(BUSY)("snapshot", "x", limit_s=2)
    assert raised.value.fault is Fault.BUSY
    assert time.monotonic() - began_s < 3
    assert len(calls(tmp_path)) > 1


async def test_what_stays_is_not_told_again(made: Make, tmp_path: Path) -> None:
    with pytest.raises(VmrunFailed):
        await made("echo 'Error: Unknown error'; exit 255")("start", "x")
    assert len(calls(tmp_path)) == 1


async def test_one_that_hangs_is_ended(made: Make) -> None:
    began_s = time.monotonic()
    with pytest.raises(ProcessFailed, match="vmrun is stuck") as raised:
        await made("sleep 60")("start", "x", login=LOGIN, limit_s=0.5)
    assert not isinstance(raised.value, VmrunFailed)
    assert time.monotonic() - began_s < 3
    assert LOGIN.password not in str(raised.value)
    assert raised.value.__cause__ is None  # its message has the password


async def test_a_cancelled_one_has_a_second(made: Make, tmp_path: Path) -> None:
    task = asyncio.ensure_future(made("sleep 0.5; touch done")("stop", "x"))
    while not (tmp_path / "calls").exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "done").exists()
    assert not psutil.Process().children(recursive=True)


async def test_the_password_is_in_no_message(made: Make) -> None:
    with pytest.raises(VmrunFailed) as raised:
        await made("echo 'Error: Invalid user name or password for the guest OS'")("x", "y", login=LOGIN)
    assert raised.value.fault is Fault.LOGIN_REFUSED
    assert "s3cret" not in str(raised.value)
    assert "-gp '(password)'" in str(raised.value)
    assert "s3cret" not in repr(LOGIN)


async def test_a_zero_byte(made: Make) -> None:
    with pytest.raises(JobError, match="zero byte"):
        await made("")("x", login=Login("root", "a\0b"))
