"""The agent's start, with its words run by this host's shells as either kind of VBoxManage has a guest run them."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestSilent
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.virtualbox import guestcontrol
from vmwrapper.hypervisor.virtualbox.guest import VirtualBoxGuest
from vmwrapper.hypervisor.virtualbox.guestcontrol import GuestControl
from vmwrapper.hypervisor.virtualbox.place import Place
from vmwrapper.hypervisor.virtualbox.requests import Requests
from vmwrapper.hypervisor.virtualbox.settings import ANSWERS, REQUESTS
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage

LIMIT_S = 20.0
SHELLS = [shell for shell in ("dash", "busybox", "bash") if shutil.which(shell)]
MOST_WORDS_BYTES = 1024
"""Which older Guest Additions take."""
SERVES = "00:00:12.707412 Guest Control: GUEST_MSG_REPORT_FEATURES: 0x7f, 0x8000000000000000\n"
VBOXMANAGE = """\
#!{python}
import os, sys
words = sys.argv[sys.argv.index("--") + 1 :]
program = sys.argv[sys.argv.index("--exe") + 1]
assert sum(len(word) + 1 for word in words) < {most}, "too many words"
with open("{calls}", "a") as file:
    file.write("called\\n")
os.environ["PATH"] = "{bin}:" + os.environ["PATH"]
os.execv(program, words if {first_is_name} else [program, *words])
"""
MOUNT = """\
#!/bin/sh
for there; do :; done
case "$*" in
*{requests}*) from={folder}/requests ;;
*) from={folder}/answers ;;
esac
rmdir "$there" && ln -s "$from" "$there"
"""
SUDO = '#!/bin/sh\nshift 2\nexec "$@"\n'

Start = Callable[..., GuestControl]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "machine/Logs").mkdir(parents=True)
    place = Place("uuid", tmp_path / "machine")
    place.log.write_text(SERVES)
    return place


@pytest.fixture
def control(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Makes one, with this shell in the guest, and this user; the agent's files are in `tmp_path/home`."""
    home, bin_ = tmp_path / "home", tmp_path / "bin"
    bin_.mkdir()
    scripts = {"mount": MOUNT.format(requests=REQUESTS, answers=ANSWERS, folder=place.folder), "sudo": SUDO}
    start = guestcontrol._START.replace("/run/.vmwrapper-agent", str(home)).replace("mount ", f"{bin_}/mount ")
    monkeypatch.setattr(guestcontrol, "_START", start)

    def made(shell: str = "dash", user: str = "root", *, first_is_name: bool = False) -> GuestControl:
        scripts["VBoxManage"] = VBOXMANAGE.format(
            python=sys.executable,
            most=MOST_WORDS_BYTES,
            calls=tmp_path / "calls",
            bin=bin_,
            first_is_name=first_is_name,
        )
        for name, text in scripts.items():
            (bin_ / name).write_text(text)
            (bin_ / name).chmod(0o755)
        (bin_ / "sh").symlink_to(str(shutil.which(shell)))
        return GuestControl(VBoxManage(bin_ / "VBoxManage"), place, Login(user, "secret"), RunningClock())

    yield made
    with suppress(FileNotFoundError):
        os.kill(int((home / "agent").read_text()), signal.SIGKILL)


def guest_of(control: GuestControl, place: Place) -> VirtualBoxGuest:
    guest = VirtualBoxGuest(control, Requests(place, RunningClock(), most_bytes=1 << 20))
    guest.begin()
    guest.booted()
    return guest


@pytest.mark.parametrize("first_is_name", [False, True])
@pytest.mark.parametrize("user", ["root", "ada"])
@pytest.mark.parametrize("shell", SHELLS)
async def test_the_agent_runs_and_hears_no_signal_that_is_not_its(
    control: Start, place: Place, shell: str, user: str, *, first_is_name: bool
) -> None:
    guest = guest_of(control(shell, user, first_is_name=first_is_name), place)
    await guest.ready(limit_s=LIMIT_S)
    hung_up = await guest.run(["sh", "-c", "kill -HUP $$"], limit_s=LIMIT_S)
    assert hung_up.status == 128 + signal.SIGHUP  # as it would be without us


async def test_an_agent_that_runs_is_not_started_again(control: Start, place: Place, tmp_path: Path) -> None:
    starts = control()
    await guest_of(starts, place).ready(limit_s=LIMIT_S)
    await starts.start_agent(limit_s=LIMIT_S)
    agent = (tmp_path / "home/agent").read_text()
    await guest_of(starts, place).ready(limit_s=LIMIT_S)
    assert (tmp_path / "home/agent").read_text() == agent


async def test_a_service_that_the_log_does_not_tell_of_is_asked_later(
    control: Start, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.log.unlink()
    starts = control()
    with pytest.raises(GuestSilent):
        await starts.start_agent(limit_s=0.3)
    assert not (tmp_path / "calls").exists()
    monkeypatch.setattr(guestcontrol, "_UNTOLD_S", 0.3)
    await guest_of(starts, place).ready(limit_s=LIMIT_S)
    assert (tmp_path / "calls").read_text() == "called\n"
