"""Debian's BOINC client with a project of its own, and no other."""

import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from vmwrapper.checkpoint import read_record
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE

from .client_files import ClientFiles, Preferences, Workunit
from .project_server import ProjectServer

RESULT = "wu1_0"
_LIMIT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What boinccmd tells of a task."""

    state: str
    activity: str
    """EXECUTING, SUSPENDED, UNINITIALIZED where no app runs, …"""
    suspended_by_user: bool
    slot: int | None
    pid: int | None
    """Of its app."""
    exit_status: int | None
    checkpoint_cpu_time_s: float | None

    @classmethod
    def of(cls, told: Mapping[str, str]) -> "Task":
        checkpoint = told.get("CPU time at last checkpoint")
        return cls(
            state=told["state"],
            activity=told["active_task_state"],
            suspended_by_user="suspended via GUI" in told,
            slot=_integer(told.get("slot")),
            pid=_integer(told.get("PID")),
            exit_status=_integer(told.get("exit_status")),
            checkpoint_cpu_time_s=None if checkpoint is None else float(checkpoint),
        )


class BoincClient:
    """A client in a directory of its own. `stop` ends it and what it has started."""

    def __init__(self, directory: Path, server: ProjectServer) -> None:
        self._directory = directory
        self._server = server
        self._files = ClientFiles(directory, server.url)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self.slot = directory / "slots" / "0"

    @property
    def project_dir(self) -> Path:
        return self._files.project_dir

    def prepare(
        self,
        *workunits: Workunit,
        app_files: Mapping[str, bytes],
        preferences: Preferences = Preferences(),  # noqa: B008  (it is frozen)
    ) -> None:
        """Give it tasks: see `ClientFiles.write`."""
        self._directory.mkdir(exist_ok=True)
        self._files.write(app_files, workunits, preferences)

    def start(self) -> None:
        with (self._directory / "client.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["boinc", "--dir", self._directory, "--no_gpus", "--gui_rpc_port", str(self._port)],
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        self.wait_until(lambda: self._answers("--client_version"))

    def stop(self) -> None:
        """SIGTERM, as a shutdown of the host has it; does nothing to one that does not run."""
        if self._process is not None:
            self._process.terminate()
            self._ended()

    def quit(self) -> None:
        """As its user has it."""
        self.say("--quit")
        self._ended()

    def kill(self) -> None:
        """Let it end with no word to its task."""
        assert self._process is not None
        self._process.kill()
        self._ended()

    def _ended(self) -> None:
        assert self._process is not None
        self._process.wait(_LIMIT_S)
        self._process = None

    def ask(self, wish: str) -> None:
        """`suspend`, `resume` or `abort` its task."""
        self.say("--task", self._server.url, RESULT, wish)

    def say(self, *words: str) -> str:
        """What it answers to boinccmd."""
        done = self._asked(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _answers(self, *words: str) -> bool:
        return self._asked(*words).returncode == 0

    def _asked(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["boinccmd", "--host", f"127.0.0.1:{self._port}", "--passwd", "password", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_LIMIT_S)

    def tasks(self) -> dict[str, Task]:
        """By the names of their results."""
        _, *tasks = re.split(r"^\d+\) -+$", self.say("--get_tasks"), flags=re.MULTILINE)
        told = [dict(re.findall(r"^   ([^:]+): (.*)$", task, re.MULTILINE)) for task in tasks]
        return {task["name"]: Task.of(task) for task in told}

    def task(self) -> Task:
        return self.tasks()[RESULT]

    def wait_until(self, holds: Callable[[], object], *, limit_s: float = _LIMIT_S) -> None:
        ends_at_s = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < ends_at_s, f"{self.log}\n{self.stderr}"
            time.sleep(0.2)

    def report(self, result: str = RESULT, *, limit_s: float = _LIMIT_S) -> str:
        """What the client tells its project of the task, once it does; the task has ended within `limit_s`."""
        self.wait_until(lambda: f"Computation for task {result} finished" in self.log, limit_s=limit_s)
        if "COMPUTE_ERROR" in self.log:  # of which it tells its project when it likes to
            self.say("--project", self._server.url, "update")
        self.wait_until(lambda: result in self._server.reports)
        return self._server.reports[result]

    @property
    def log(self) -> str:
        return (self._directory / "client.log").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What the app in the first slot has said until now."""
        try:
            return (self.slot / "stderr.txt").read_text()
        except FileNotFoundError:
            return ""

    def processes(self) -> list[psutil.Process]:
        """Apps and what they have started, also of a client that is gone: who works in the slots."""
        slots = self._directory / "slots"
        return [process for process in psutil.process_iter() if _is_in(process, slots)]

    def machines(self) -> list[psutil.Process]:
        """Of these, the hypervisor's."""
        return [process for process in self.processes() if _name(process).startswith("qemu-system")]

    def left_behind(self) -> list[str]:
        """A wrapper's files in a slot, but those of the next episode, and what is no task's in the project's folder."""
        ours = (".vmwrapper", "boinc_lockfile")
        in_slots = [str(path) for path in self._directory.glob("slots/*/*") if path.name.startswith(ours)]
        for slot in self._directory.glob("slots/*"):
            record = read_record(slot)
            kept = (RECORD_FILE, MACHINE_FOLDER) if record and record.checkpoints else (RECORD_FILE,)
            in_slots = [path for path in in_slots if path not in {str(slot / name) for name in kept}]
        in_project = [path.name for path in self.project_dir.iterdir() if not path.name.startswith(("app_1_", "wu"))]
        return in_slots + in_project


def _is_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder) or any(str(folder) in word for word in process.cmdline())
    except (psutil.Error, OSError):
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _integer(told: str | None) -> int | None:
    return None if told is None else int(told)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
