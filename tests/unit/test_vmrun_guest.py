"""What a hostile guest may send for an answer, with a program in vmrun's place that makes it on the host."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError, GuestSilent, HostDiskFailed, VmwrapperError
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.vmware.vmrun.guest import GuestCalls
from vmwrapper.hypervisor.vmware.vmrun.vmrun import Vmrun

Make = Callable[[str], GuestCalls]
NEVER_S = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "machine"
    folder.mkdir()
    return folder


@pytest.fixture
def made(tmp_path: Path, folder: Path) -> Callable[[str], GuestCalls]:
    """Makes calls whose answer is made by the lines of a shell script, as the file "$out"."""

    def make(script: str) -> GuestCalls:
        program = tmp_path / "vmrun"
        answer = f'for out; do :; done\ncase "$*" in *GuestToHost*)\n{script}\n;; esac\n'
        program.write_text(f"#!/bin/sh\n{answer}")
        program.chmod(0o755)
        login = Login("root", "password")
        return GuestCalls(Vmrun(program, "ws"), folder / "machine.vmx", login, RunningClock(), folder=folder)

    return make


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        ('while head -c 4000000 /dev/zero; do sleep 0.05; done >>"$out"', GuestError, "more than it was asked for"),
        ('mkdir "$out"; while :; do head -c 4000000 /dev/zero >>"$out/f"; sleep 0.05; done', GuestError, "more than"),
        ('head -c 30000000 /dev/zero >"$out"', GuestError, "more than it was asked for"),
        ('mkfifo "$out"', GuestError, "is no file"),
        ('mkdir "$out"', GuestError, "is no file"),
        ('ln -s /etc/passwd "$out"', GuestSilent, "there is no answer"),
        ("true", GuestSilent, "there is no answer"),
        ('echo "a 0" >"$out"', GuestSilent, "cut off: a 0"),
        (': >"$out"', GuestSilent, r"cut off: \(nothing\)"),
    ],
)
async def test_what_is_no_answer(
    made: Make, folder: Path, script: str, error: type[VmwrapperError], reason: str
) -> None:
    limit_s = NEVER_S if error is GuestError else 1.0
    with pytest.raises(error, match=reason):
        await made(script).call("check", limit_s=limit_s)
    assert not list(folder.iterdir())
    assert not psutil.Process().children(recursive=True)


async def test_a_folder_that_is_gone(made: Make, folder: Path) -> None:
    calls = made("true")
    folder.rmdir()
    with pytest.raises(HostDiskFailed, match="can't write a file for the guest"):
        await calls.call("check", limit_s=NEVER_S)
