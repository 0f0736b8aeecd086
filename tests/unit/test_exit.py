"""How a process of ours ends by signals, and when all hangs: real processes, each with a child."""

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

HANGS = """\
import asyncio, logging, subprocess, sys, time
from pathlib import Path
from vmwrapper.boinc.api import Request
from vmwrapper.boinc.client import Client
from vmwrapper.errors import QuitRequested

logging.basicConfig(format="%(message)s")
where, limit_s = sys.argv[1], float(sys.argv[2])

def hang():
    print("hangs", flush=True)
    time.sleep(60)

async def main():
    if where == "before the episode":
        hang()
    async with client.episode():
        child = subprocess.Popen(["sleep", "60"])
        print(child.pid, flush=True)
        if where != "in an episode that hears nothing":
            async for request in client.requests():
                break
        if where != "after the episode":
            hang()

client = Client(Path(), exit_limit_s=limit_s)
asyncio.run(main())
hang()
sys.exit(client.end(QuitRequested("stopped")))
"""
INIT_DATA = f"""\
<app_init_data>
<project_dir>/boinc/projects/P</project_dir>
<result_name>wu1_0</result_name>
<client_pid>{os.getpid()}</client_pid>
<shm_key>-1</shm_key>
</app_init_data>
"""
LIMIT_S = 0.5


@contextmanager
def app(slot: Path, where: str, *, limit_s: float = LIMIT_S) -> Iterator["subprocess.Popen[str]"]:
    (slot / "init_data.xml").write_text(INIT_DATA)
    (slot / "boinc_mmap_file").write_bytes(bytes(8192))
    argv = [sys.executable, "-c", HANGS, where, str(limit_s)]
    with subprocess.Popen(argv, cwd=slot, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def child_of(process: "subprocess.Popen[str]") -> psutil.Process:
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


def is_gone(process: psutil.Process) -> bool:
    """Perhaps nobody has asked for its exit status yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def ask(slot: Path, message: bytes) -> None:
    with (slot / "boinc_mmap_file").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[: len(message) + 2] = b"\1" + message + b"\0"


@pytest.mark.parametrize("where", ["in the episode", "after the episode"])
@pytest.mark.parametrize(
    ("want", "status"), [(b"<quit/>", 0), (b"<abort/>", 194), (signal.SIGTERM, 0), (signal.SIGINT, 0)]
)
def test_who_hangs_ends_in_time_with_all_below(
    tmp_path: Path, where: str, want: bytes | signal.Signals, status: int
) -> None:
    with app(tmp_path, where) as process:
        child = child_of(process)
        if isinstance(want, bytes):
            ask(tmp_path, want)
        else:
            process.send_signal(want)
        assert read_line(process) == "hangs\n"
        began_s = time.monotonic()
        assert process.wait(timeout=10) == status
        assert time.monotonic() - began_s < LIMIT_S + 2
        assert is_gone(child)
        assert "killed" in (process.stderr.read() if process.stderr else "")


def test_a_signal_is_heard_where_the_event_loop_is_not(tmp_path: Path) -> None:
    with app(tmp_path, "in an episode that hears nothing") as process:
        child = child_of(process)
        assert read_line(process) == "hangs\n"
        process.terminate()
        assert process.wait(timeout=10) == 0
        assert is_gone(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_the_episode_a_signal_does_what_it_does_to_any_program(tmp_path: Path, number: signal.Signals) -> None:
    with app(tmp_path, "before the episode") as process:
        assert read_line(process) == "hangs\n"
        process.send_signal(number)
        assert process.wait(timeout=10) == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_after_the_episode_a_signal_does_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with app(tmp_path, "after the episode", limit_s=1.5) as process:
        child_of(process)
        ask(tmp_path, b"<abort/>")
        assert read_line(process) == "hangs\n"
        process.send_signal(number)
        assert process.wait(timeout=10) == 194


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with app(tmp_path, "in the episode") as process:
            signal.signal(signal.SIGHUP, before)
            child_of(process)
            process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            process.terminate()
            assert process.wait(timeout=10) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_ends_in_time_is_left_alone(tmp_path: Path) -> None:
    ends = HANGS.replace("time.sleep(60)", "time.sleep(0.1)") + "\n"
    ends = ends.replace(
        'sys.exit(client.end(QuitRequested("stopped")))', "client.end(None); time.sleep(1); sys.exit(7)"
    )
    (tmp_path / "init_data.xml").write_text(INIT_DATA)
    (tmp_path / "boinc_mmap_file").write_bytes(bytes(8192))
    argv = [sys.executable, "-c", ends, "after the episode", "0.5"]
    with subprocess.Popen(argv, cwd=tmp_path, text=True, stdout=subprocess.PIPE) as process:
        child = child_of(process)
        ask(tmp_path, b"<quit/>")
        assert process.wait(timeout=10) == 7
        child.kill()
    assert (tmp_path / "boinc_finish_called").exists()
