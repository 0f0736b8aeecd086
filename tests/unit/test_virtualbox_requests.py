"""Requests and answers by files, with the agent run by this host's shells: VirtualBox only shares the folders."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from vmwrapper.clock import RunningClock
from vmwrapper.errors import (
    GuestError,
    GuestSilent,
    JobError,
    MachineExited,
    OutputTooLarge,
    SnapshotFailed,
    TransferFailed,
)
from vmwrapper.hypervisor.interface import FileKind
from vmwrapper.hypervisor.virtualbox.guest import VirtualBoxGuest
from vmwrapper.hypervisor.virtualbox.guestcontrol import GuestControl
from vmwrapper.hypervisor.virtualbox.place import Place
from vmwrapper.hypervisor.virtualbox.requests import Requests

LIMIT_S = 20.0
PLENTY = 1 << 30
MOST_BYTES = 1 << 20
SHELLS = [shell for shell in ("dash", "busybox", "bash") if shutil.which(shell)]
END = 'if [ -f "$1" ]; then printf " %s" "$2" >>"$1"; fi'
SOMETIMES_LOOKS_ELSEWHERE = """
there=$in number=0
true() {{ # each look begins with it
    number=$((number + 1))
    if [ $((number % 3)) {when} ]; then in={elsewhere}; else in=$there; fi
}}
"""
HESITATES_TO_TELL_OF_ITS_NAP = """
echo() {
    case $1 in
    [0-9]*) command sleep 0.5 ;;
    esac
    command echo "$@"
}
"""
NAMES = ["plain", "-rf", "two\nlines\n", "ünïcödé ☃", "'quoted' \\ $HOME `x` *", "in/a/folder", " "]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("uuid", tmp_path)


@pytest_asyncio.fixture
async def clock() -> RunningClock:
    return RunningClock()


@pytest_asyncio.fixture
async def requests(place: Place, clock: RunningClock) -> Requests:
    requests = Requests(place, clock, most_bytes=MOST_BYTES)
    requests.begin()
    return requests


@pytest.fixture
def guest(requests: Requests) -> VirtualBoxGuest:
    guest = VirtualBoxGuest(None, requests)
    guest.booted()
    return guest


@contextmanager
def agent(place: Place, shell: str = "dash", *, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """`before` is a script that begins it."""
    home = place.folder / "home"
    home.mkdir()
    argv = [*(["busybox", "sh"] if shell == "busybox" else [shell]), "-c", f"{before}. {place.requests}/agent.sh"]
    environment = {**os.environ, "home": str(home), "in": str(place.requests), "out": str(place.answers)}
    with subprocess.Popen(argv, env=environment, start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(params=SHELLS)
def running(request: pytest.FixtureRequest, place: Place, guest: VirtualBoxGuest) -> Iterator[VirtualBoxGuest]:
    """A guest whose agent is run by one of these shells. Nothing may be left of its answers."""
    with agent(place, request.param):
        yield guest
        assert [path.name for path in place.requests.iterdir()] == ["agent.sh"]
        assert list(place.answers.iterdir()) == []


async def test_a_command(running: VirtualBoxGuest) -> None:
    await running.ready(limit_s=LIMIT_S)
    result = await running.run(
        ["sh", "-c", 'cat >&2; echo out; exit "$1"', "sh", "93"], stdin=b"\0in\xff", limit_s=LIMIT_S
    )
    assert (result.status, result.stdout, result.stderr) == (93, b"out\n", b"\0in\xff")


async def test_words_arrive_as_they_are(running: VirtualBoxGuest) -> None:
    words = ["", "a b", 'it\'s "quoted" \\ $HOME', "two\nlines\n", "☃", "*", "-n"]
    result = await running.run(["printf", "%s|", *words], limit_s=LIMIT_S)
    assert result.stdout.decode() == "".join(f"{word}|" for word in words)


async def test_what_goes_wrong_with_a_command(running: VirtualBoxGuest) -> None:
    with pytest.raises(GuestError, match="no-such-command"):
        await running.run(["no-such-command"], limit_s=LIMIT_S)
    with pytest.raises(GuestError, match="more than 524288 bytes"):
        await running.run(["dd", "if=/dev/zero", "bs=1024", "count=600"], limit_s=LIMIT_S)
    assert (await running.run(["sh", "-c", "kill -KILL $$"], limit_s=LIMIT_S)).status == 128 + 9


async def test_several_at_once_and_one_that_does_not_end(running: VirtualBoxGuest) -> None:
    with pytest.raises(GuestSilent, match="the command 'sleep' in the guest did not end"):
        await running.run(["sleep", "600"], limit_s=0.5)
    said = await asyncio.gather(*(running.run(["sh", "-c", f"sleep 0.3; echo {n}"], limit_s=LIMIT_S) for n in range(5)))
    assert [one.stdout for one in said] == [f"{n}\n".encode() for n in range(5)]


async def test_a_cancellation_does_not_wait_for_all_that_goes_in(
    guest: VirtualBoxGuest, place: Place, tmp_path: Path
) -> None:
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.truncate(1 << 40)
    task = asyncio.create_task(guest.put({"endless": endless}, "/tmp"))
    while not any(path.stat().st_size for path in place.requests.glob("*.body")):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {path.name for path in place.requests.iterdir()} == {"agent.sh"}


async def test_what_a_command_leaves_running_keeps_nobody_waiting(running: VirtualBoxGuest) -> None:
    assert (await running.run(["sh", "-c", "sleep 600 & echo $!"], limit_s=LIMIT_S)).stdout.strip().isdigit()


async def test_an_answer_is_whole_only_at_its_end(guest: VirtualBoxGuest, place: Place) -> None:
    make = 'printf "root\\n%s" "$2" >"$1"; sleep 0.3; printf " 0\\n" >>"$1"; sleep 0.3'  # as where a page ends there
    await _answered_with(guest, place, make)


async def test_looks(running: VirtualBoxGuest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\n0 nonce\xff")
    assert await running.read(str(tmp_path / "file"), limit_bytes=4) == b"\n0 n"
    assert await running.tail(str(tmp_path / "file"), limit_bytes=3) == b"ce\xff"
    assert await running.read(str(tmp_path / "nothing"), limit_bytes=4) is None
    assert await running.tail(str(tmp_path), limit_bytes=4) is None


async def test_files_in_and_out(running: VirtualBoxGuest, tmp_path: Path) -> None:
    contents = {name: random.Random(name).randbytes(number * 70_000) for number, name in enumerate(NAMES)}
    files = {name: tmp_path / f"input {number}" for number, name in enumerate(contents)}
    for name, path in files.items():
        path.write_bytes(contents[name])
    files["plain"].chmod(0o755)
    there = tmp_path / "there"
    there.mkdir()
    await running.put(files, str(there))
    (there / "link").symlink_to("/etc/passwd")
    os.mkfifo(there / "pipe")
    names = [*NAMES, "link", "pipe", "missing", "in"]
    places = {name: tmp_path / f"output {number}" for number, name in enumerate(names)}
    with pytest.raises(OutputTooLarge):
        await running.get(str(there), places, limit_bytes=100_000)
    kinds = await running.get(str(there), places, limit_bytes=PLENTY)
    assert {name: places[name].read_bytes() for name in NAMES} == contents
    assert [kinds[name] for name in names[len(NAMES) :]] == [
        FileKind.LINK,
        FileKind.SPECIAL,
        FileKind.MISSING,
        FileKind.DIRECTORY,
    ]
    assert [os.access(places[name], os.X_OK) for name in NAMES] == [name == "plain" for name in NAMES]


async def test_nothing_is_asked_during_a_snapshot(running: VirtualBoxGuest, place: Place, tmp_path: Path) -> None:
    await running.ready(limit_s=LIMIT_S)
    script = f"sleep 2; touch {tmp_path}/ended"
    asked = asyncio.create_task(running.run(["sh", "-c", script], limit_s=LIMIT_S))
    await asyncio.sleep(1)
    assert list(place.answers.iterdir()) == []  # of a snapshot in the middle of a command
    async with running.nothing_asked(limit_s=LIMIT_S):
        assert (tmp_path / "ended").exists()
        later = asyncio.create_task(running.run(["true"], limit_s=LIMIT_S))
        await asyncio.sleep(0.5)
        assert [path.name for path in place.requests.iterdir()] == ["agent.sh"]
        assert list(place.answers.iterdir()) == []
        assert not later.done()
    assert (await asked).status == (await later).status == 0
    busy = asyncio.create_task(running.run(["sleep", "2"], limit_s=LIMIT_S))
    await asyncio.sleep(0.1)
    with pytest.raises(SnapshotFailed, match="busy with a command"):
        async with running.nothing_asked(limit_s=0.2):
            pass
    assert (await busy).status == 0


async def test_a_second_agent_does_nothing(running: VirtualBoxGuest, place: Place, tmp_path: Path) -> None:
    environment = {"home": str(place.folder / "home"), "in": str(place.requests), "out": str(place.answers)}
    await running.ready(limit_s=LIMIT_S)
    second = await asyncio.create_subprocess_exec(
        "sh", place.requests / "agent.sh", env={**os.environ, **environment}, start_new_session=True
    )
    assert await asyncio.wait_for(second.wait(), LIMIT_S) == 0
    await running.run(["sh", "-c", f"echo x >>{tmp_path}/once"], limit_s=LIMIT_S)
    assert (tmp_path / "once").read_text() == "x\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("finds", "when"), [("nothing", "-ne 0"), ("agent.sh", "-eq 1")])
async def test_a_request_that_looks_have_missed_is_not_taken_twice(
    guest: VirtualBoxGuest, place: Place, tmp_path: Path, shell: str, *, finds: str, when: str
) -> None:
    """Two in a row that find nothing at all, or each third that finds only a part."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / finds).touch()
    with agent(place, shell, before=SOMETIMES_LOOKS_ELSEWHERE.format(when=when, elsewhere=elsewhere)):
        script = f"echo x >>{tmp_path}/once; sleep 3"
        assert (await guest.run(["sh", "-c", script], limit_s=LIMIT_S)).status == 0
    assert (tmp_path / "once").read_text() == "x\n"


@pytest.mark.parametrize("shell", SHELLS)
async def test_an_answer_that_comes_before_the_agent_naps_ends_the_nap(
    guest: VirtualBoxGuest, place: Place, shell: str
) -> None:
    script = place.requests / "agent.sh"
    text = script.read_text()
    assert "long=1\n" in text
    script.write_text(text.replace("long=1\n", "long=60\n"))
    with agent(place, shell, before=HESITATES_TO_TELL_OF_ITS_NAP):
        for _ in range(2):
            assert (await guest.run(["true"], limit_s=LIMIT_S)).status == 0


async def test_an_answer_is_read_while_the_clock_stands(running: VirtualBoxGuest, clock: RunningClock) -> None:
    asked = asyncio.create_task(running.run(["true"], limit_s=LIMIT_S))
    await asyncio.sleep(0.05)
    clock.stop()
    assert (await asyncio.wait_for(asked, LIMIT_S)).status == 0


def test_what_a_guest_has_made_unwritable_is_removed(tmp_path: Path) -> None:
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/inner/file").touch()
    (tmp_path / "folder/inner").chmod(0o500)
    (tmp_path / "folder").chmod(0o500)
    script = "import pathlib, sys, vmwrapper.folders; vmwrapper.folders.remove_tree(pathlib.Path(sys.argv[1]))"
    without_override = ["setpriv", "--bounding-set=-dac_override"]
    subprocess.run([*without_override, sys.executable, "-c", script, tmp_path / "folder"], check=True)
    assert not (tmp_path / "folder").exists()


async def test_no_files_and_no_folder(running: VirtualBoxGuest, tmp_path: Path) -> None:
    await running.put({}, "/no/such")
    assert await running.get("/no/such", {}, limit_bytes=0) == {}
    (tmp_path / "file").touch()
    with pytest.raises(GuestError, match="/no/such"):
        await running.put({"file": tmp_path / "file"}, "/no/such")
    with pytest.raises(GuestError, match="/no/such"):
        await running.get("/no/such", {"file": tmp_path / "output"}, limit_bytes=PLENTY)


async def test_a_guest_that_does_not_answer(guest: VirtualBoxGuest, place: Place) -> None:
    with pytest.raises(GuestSilent, match="did not become ready"):
        await guest.ready(limit_s=0.1)
    assert [path.name for path in place.requests.iterdir()] == ["agent.sh"]


async def test_an_agent_that_the_image_has_started_needs_no_other(requests: Requests, place: Place) -> None:
    class Waiting(GuestControl):
        async def start_agent(self, *, limit_s: float) -> None:
            await asyncio.Event().wait()

    guest = VirtualBoxGuest(Waiting.__new__(Waiting), requests)
    guest.booted()
    with agent(place):
        await asyncio.wait_for(guest.ready(limit_s=LIMIT_S), LIMIT_S)


async def test_an_agent_that_can_t_be_started(requests: Requests) -> None:
    class Failing(GuestControl):
        async def start_agent(self, *, limit_s: float) -> None:
            raise JobError("no such user")

    guest = VirtualBoxGuest(Failing.__new__(Failing), requests)
    guest.booted()
    with pytest.raises(JobError, match="no such user"):
        await asyncio.wait_for(guest.ready(limit_s=LIMIT_S), LIMIT_S)


async def test_a_machine_that_is_off(guest: VirtualBoxGuest) -> None:
    guest.ended()
    with pytest.raises(MachineExited):
        await guest.run(["true"], limit_s=LIMIT_S)


async def _answered_with(guest: VirtualBoxGuest, place: Place, make: str, *, verb: str = "read") -> None:
    """A question to which a hostile guest answers by this script, whose $1 is the answer's file and $2 the nonce."""

    async def answer() -> None:
        while not (found := list(place.requests.glob("*.request"))):
            await asyncio.sleep(0.01)
        nonce = found[0].stem
        made = place.answers / f"{nonce}.answer"
        process = await asyncio.create_subprocess_exec("sh", "-c", f"{make}; {END}", "sh", made, nonce)
        await process.wait()

    async with asyncio.TaskGroup() as both:
        both.create_task(answer())
        if verb == "get":
            await guest.get("/tmp", {"file": place.folder / "output"}, limit_bytes=PLENTY)
        else:
            await guest.read("/etc/passwd", limit_bytes=10)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        ('ln -s /etc/passwd "$1"; exit', "can't be read"),
        ('mkfifo "$1"', "no file"),
        ('mkdir "$1"', "no file|can't be read"),
        (': >"$1"', "no end"),
        ('printf "root\\n0" >"$1"', "no end"),
        ('printf "root\\n%s 77\\nodd" "$2" >"$1"', "can't read '/etc/passwd': odd"),
    ],
)
async def test_hostile_answers(guest: VirtualBoxGuest, place: Place, make: str, error: str) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc((GuestError, TransferFailed), match=error)):
        await _answered_with(guest, place, make)


@pytest.mark.parametrize(
    "make",
    [
        'printf "fff\\n" >"$1"',
        'printf "f\\n81a4:4:x\\nabcd\\n%s 0\\n" "$2" >"$1"',
        'printf "f\\n81a4:99999999999999999999:1\\nabcd\\n%s 0\\n" "$2" >"$1"',
        'printf "f\\n81a4:4:1\\nab" >"$1"',
        'printf "f\\n81a4:4:1\\nabcd\\n%s 0\\nxxh64 0\\n81a4:4:1\\n" "$2" >"$1"',
        'yes >"$1" & sleep 0.1; kill $!',
    ],
)
async def test_hostile_outputs(guest: VirtualBoxGuest, place: Place, make: str) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc((GuestError, TransferFailed))):
        await _answered_with(guest, place, make, verb="get")


async def test_a_guest_may_not_fill_the_host_s_disk(requests: Requests, place: Place) -> None:
    requests.check()
    with (place.answers / "sparse").open("wb") as file:
        file.truncate(MOST_BYTES)
    requests.check()
    (place.answers / "more").write_bytes(b"x")
    with pytest.raises(GuestError, match="fills the host's disk"):
        requests.check()
    requests.begin()
    (place.answers / "folder").mkdir()
    with pytest.raises(GuestError, match="fills the host's disk"):
        requests.check()


async def test_the_next_episode_finds_nothing_of_the_last(requests: Requests, place: Place) -> None:
    for folder in (place.requests, place.answers):
        (folder / "old.request").touch()
        (folder / "folder").mkdir()
    requests.begin()
    assert [path.name for path in place.requests.iterdir()] == ["agent.sh"]
    assert list(place.answers.iterdir()) == []
