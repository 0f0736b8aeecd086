"""`vmwrapper run --keep` and `vmwrapper shell`, with real QEMU guests and from the outside."""

import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .test_job import LIMIT_S, VMWRAPPER, job, machine_of, read_until, start, task, vmwrapper, write_job
from .test_mishaps import end_of, ends_with

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

KEPT = "removes all of it"
"""The end of what is said of a kept machine."""


@contextmanager
def kept(folder: Path, script: str, *tags: str, until: str = KEPT) -> Iterator[subprocess.Popen[str]]:
    """A wrapper that keeps the machine in which this script has run."""
    process = start("run", "--keep", write_job(folder, job(task("try.sh", *tags)), **{"try": script}))
    try:
        read_until(process, until)
        yield process
    finally:
        process.kill()
        process.communicate()


def let_go(process: subprocess.Popen[str], status: int, *sentences: str) -> None:
    process.send_signal(signal.SIGINT)
    ends_with(end_of(process, limit_s=10), status, *sentences)


def shell(folder: Path, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [VMWRAPPER, "shell", folder, *words]
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def commands_in_guest(folder: Path) -> str:
    return shell(folder, "--", "ps", "-o", "args").stdout


class Terminal:
    """A person's terminal with a shell in the guest."""

    def __init__(self, folder: Path) -> None:
        self._end, theirs = os.openpty()
        environment = os.environ | {"TERM": "dumb"}
        argv = [VMWRAPPER, "shell", folder]
        self.process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)

    def types(self, words: str) -> None:
        os.write(self._end, words.encode())

    def shows(self, pattern: str) -> str:
        """What it shows until a pattern is there."""
        shown = ""
        ends_at = time.monotonic() + 30
        while not re.search(pattern, shown):
            assert time.monotonic() < ends_at, shown
            if select.select([self._end], [], [], 0.1)[0]:
                shown += os.read(self._end, 4096).decode()
        return shown


def test_done_job_is_looked_into_and_let_go(tmp_path: Path) -> None:
    slot = tmp_path / ("a long name, " * 15)
    slot.mkdir()
    (slot / "in.dat").write_text("input\n")
    with kept(slot, "tr a-z A-Z <in.dat >out", "<data>in.dat</data><output>out</output>") as process:
        assert (slot / "out").read_text() == "INPUT\n"
        assert shell(slot, "--", "cat", "in.dat").stdout == "input\n"
        assert shell(slot, "--", "printf '\\033[31m\\0'; exit 5").stdout == "\x1b[31m\0"
        assert shell(slot, "--", "exit 5").returncode == 5
        lines = shell(slot, stdin="cd /etc; pwd\npwd\nls nothing\n")
        assert (lines.stdout, lines.returncode) == ("/etc\n/etc\n", 1)
        assert "nothing: No such file" in lines.stderr
        converse(slot)
        let_go(process, 0, "Finish called")
    ends_with(shell(slot, "--", "true"), 75, "no `vmwrapper run --keep` has a machine in")


def converse(slot: Path) -> None:
    with Terminal(slot) as terminal:
        terminal.shows(r"guest:/tmp# $")
        terminal.types("cd /proc; printf 'a\\tb\\033]0;title\\007'\n")
        assert "a       b\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}" in terminal.shows(
            r"guest:/proc# $"
        )
        terminal.types("echo until then; sleep 50\n")
        terminal.shows(r"sleep 50\r\n")
        time.sleep(1)
        terminal.process.send_signal(signal.SIGINT)
        assert "until then" in terminal.shows(r"\nguest:/proc# $")
        terminal.types("not fini")
        terminal.shows("fini")
        terminal.process.send_signal(signal.SIGINT)
        terminal.shows(r"guest:/proc# $")
        terminal.types("sh -c 'exit 4'\n")
        terminal.shows(r"guest:/proc# $")
        terminal.types("\x04")
        assert terminal.process.wait(timeout=5) == 4


def test_failed_job_is_kept_and_ends_as_it_failed(tmp_path: Path) -> None:
    with kept(tmp_path, "sleep 1234 & echo broken >trace; exit 3") as process:
        assert shell(tmp_path, "--", "cat trace").stdout == "broken\n"
        dying = subprocess.Popen([VMWRAPPER, "shell", tmp_path, "--", "sleep 4321"])
        while "sleep 4321" not in commands_in_guest(tmp_path):
            assert dying.poll() is None
        dying.kill()
        dying.wait()
        ends_at = time.monotonic() + 20
        while "sleep 4321" in commands_in_guest(tmp_path):
            assert time.monotonic() < ends_at
        limited = shell(tmp_path, "--limit", "1", "--", "trap '' INT; echo so far; sleep 100")
        assert (limited.stdout, limited.returncode) == ("so far\n", 137)
        assert "Ending the command after its 1 s" in limited.stderr
        much = shell(tmp_path, "--", "head -c 3000000 /dev/zero")
        ends_with(much, 195, "too much was asked for")
        assert shell(tmp_path, "--", "echo on").stdout == "on\n"
        let_go(process, 195, "try.sh failed: exit status 3")


def test_program_that_runs_and_then_hangs_is_looked_into(tmp_path: Path) -> None:
    with kept(tmp_path, "sleep 1234", "<time_limit>6</time_limit>", until="Running the program") as process:
        assert "sleep 1234" in commands_in_guest(tmp_path)
        read_until(process, KEPT)
        assert "sleep 1234" in commands_in_guest(tmp_path)
        let_go(process, 197, "ran for longer than its 6 s")


def test_panicked_guest_leaves_its_console(tmp_path: Path) -> None:
    with kept(tmp_path, "echo c >/proc/sysrq-trigger; sleep 60") as process:
        assert "sysrq triggered crash" in (tmp_path / ".vmwrapper/console.txt").read_text()
        ends_with(shell(tmp_path, "--", "true"), 195, "no guest any more: the guest's kernel panicked")
        process.terminate()
        ends_with(end_of(process, limit_s=10), 195, "the guest's kernel panicked")


def test_guest_that_dies_while_it_is_kept_ends_a_done_job(tmp_path: Path) -> None:
    with kept(tmp_path, "true") as process:
        shell(tmp_path, "--limit", "1", "--", "poweroff -f; sleep 50")
        ends_with(end_of(process, limit_s=10), 0, "The kept machine ended by itself", "Finish called")


def test_killed_wrapper_leaves_nobody_there_and_the_next_run_succeeds(tmp_path: Path) -> None:
    with kept(tmp_path, "true") as process:
        machine = machine_of(process)
        asking = subprocess.Popen([VMWRAPPER, "shell", tmp_path, "--", "sleep 50"], stderr=subprocess.PIPE, text=True)
        while "sleep 50" not in commands_in_guest(tmp_path):
            assert asking.poll() is None
        process.kill()
        ends_with(end_of(asking, limit_s=10), 75, "is gone")
        machine.wait(timeout=5)
    assert (tmp_path / ".vmwrapper/shell").is_socket()
    ends_with(shell(tmp_path), 75, "no `vmwrapper run --keep` has a machine in", "Connection refused")
    ends_with(vmwrapper("run", tmp_path / "job.xml"), 0)


def test_second_interruption_of_a_kept_machine_ends_it_at_once(tmp_path: Path) -> None:
    with kept(tmp_path, "true") as process:
        machine = machine_of(process)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=5)
        assert process.returncode in (0, -signal.SIGINT)
        machine.wait(timeout=5)
    shutil.rmtree(tmp_path / ".vmwrapper", ignore_errors=True)
    (tmp_path / "boinc_lockfile").unlink(missing_ok=True)
