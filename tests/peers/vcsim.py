"""vCenter and ESX hosts as govmomi's simulator, vcsim, shows them: real SOAP over real TLS, without VMware.

It is built from Debian's source package of 0.24.2, with the files in `vcsim/extension` added to it or put in place of
its own (Go's `-overlay`).

Of the simulator's own are: sessions, the inventory, tasks (which have ended when one gets them), power states, the
tree of snapshots, the property collector, files on datastores. Of the extension are a machine's screen, which is
dark, and guests, which are containers of podman's: their power, tools and heartbeat, all guest operations with their
faults, file transfers, what a snapshot keeps, a revert restores and a clone begins with, and that a host alone can't
clone. Mended are properties that are unset, and tasks of snapshots, both of which made pyvmomi fail.

It is not as a real one in this: a snapshot has no memory, so no program goes on after a revert (/run and /tmp are
there as they were); suspended guests do go on. A guest's boot id is the host's. Tools run as soon as the machine is
on. The end of a program is known at once, where a real one looks every second. CPU usage is unset
(`SET.summary.quickStats.overallCpuUsage` in a machine's extraConfig sets it).

`python -m tests.peers.vcsim` builds it, and prints `vcsim` where that could be done.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.debian_mirror import run
from vmwrapper.folders import cache_folder

from . import podman

ADDRESS = "127.0.0.2"
"""Since pyvmomi doesn't verify the certificate of 127.0.0.1, nor of localhost."""
USER = "administrator@vsphere.local"
PASSWORD = "vSphere's <secret>"
GUEST_ACCOUNTS = dict.fromkeys(("root", podman.USER), "countess' <secret>")
TOOLS = ("go", "openssl", *podman.TOOLS)

_SOURCES = Path(__file__).with_suffix("")
_GOPATH = Path("/usr/share/gocode")
_SIMULATOR = _GOPATH / "src/github.com/vmware/govmomi/simulator"
_ENDS_WITHIN_S = 60
_OURS_BEFORE_SHIPPED = {
    "folder.go": ("CreateVMTask",),
    "snapshot.go": ("RemoveSnapshotTask", "RevertToSnapshotTask"),
    "virtual_machine.go": (
        "CloneVMTask",
        "CreateSnapshotTask",
        "DestroyTask",
        "RemoveAllSnapshotsTask",
        "RevertToCurrentSnapshotTask",
    ),
}
"""Methods of the simulator that the extension answers, which are called by it under a name with `Shipped` before it."""
_MENDED = {
    # A property that is unset made it crash.
    "property_collector.go": (
        "\tif len(obj.PropSet) == 0 {\n",
        (
            "\tif len(obj.PropSet)+len(obj.MissingSet) == 0 {\n"
            "\t\tbody.Res = new(internal.FetchResponse)\n\t\treturn body\n\t}\n"
        ),
    ),
}
"""What is put before a place in a file of the simulator's."""
_TASK_OF_SNAPSHOT = "CreateTask(v, "
"""pyvmomi takes only machines and the like for what a task is about."""

Kind = Literal["vpx", "esx"]


def missing() -> str | None:
    """What keeps this machine from having the simulator, or None."""
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"vcsim needs {', '.join(absent)}: make test installs that for root"
    if os.geteuid() != 0:
        return "podman's containers, which are vcsim's guests, need root"
    if not _SIMULATOR.exists():
        return "vcsim needs Debian's golang-github-vmware-govmomi-dev: make test installs that for root"
    try:
        dict(_changed())
    except (AssertionError, FileNotFoundError) as differs:
        return f"vcsim's extension is for govmomi 0.24.2, and this is another: {differs}"
    return None


class Simulator:
    """One that serves. All that clients see of it is lost when it ends.

    Machines that are cloned from `base_snapshot`, or created, have a guest, with the users of GUEST_ACCOUNTS.
    """

    host = ADDRESS
    user = USER
    password = PASSWORD
    datastore = "LocalDS_0"
    base_snapshot = "installed"

    def __init__(
        self,
        process: subprocess.Popen[str],
        kind: Kind,
        ca_file: Path,
        answer: dict[str, Any],
        containers: podman.Podman | None,
        *,
        files: Path,
    ) -> None:
        self._process = process
        self.process = psutil.Process(process.pid)
        self._files = files
        self.podman = containers
        self.kind = kind
        self.ca_file = ca_file
        self.port: int = answer["port"]
        self.url = f"https://{self.host}:{self.port}/sdk"
        self.datacenter = "DC0" if kind == "vpx" else "ha-datacenter"

    @property
    def base_machine(self) -> str:
        """Inventory path of a machine with a guest, which is off and has `base_snapshot`."""
        return f"{self.datacenter}/vm/linux"

    def files(self) -> set[Path]:
        """All that are in its datastores."""
        return {path for path in self._files.rglob("*") if path.is_file()}

    @property
    def machines(self) -> list[str]:
        """Inventory paths of two machines that have no guest."""
        prefix = "DC0_H0" if self.kind == "vpx" else "ha-host"
        return [f"{self.datacenter}/vm/{prefix}_VM{number}" for number in range(2)]

    @contextmanager
    def away(self) -> Iterator[None]:
        """As while it restarts: connections end and are refused; afterwards everybody must log in again."""
        self._command("away")
        try:
            yield
        finally:
            self._command("back")

    def _command(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert _line(self._process) == command


@contextmanager
def simulator(folder: Path, *, kind: Kind = "vpx", guests: bool = True) -> Iterator[Simulator]:
    """One for as long as the context lasts, whose files are in the folder: `vcsim.log` is what it said."""
    folder.mkdir(parents=True, exist_ok=True)
    cert, key = _certificate(folder)
    settings = {
        "kind": kind,
        "address": f"{ADDRESS}:0",
        "user": USER,
        "password": PASSWORD,
        "cert": str(cert),
        "key": str(key),
        "image": podman.IMAGE if guests else "",
        "accounts": GUEST_ACCOUNTS,
    }
    with ExitStack() as ends:
        containers = ends.enter_context(podman.podman(folder / "podman")) if guests else None
        scratch = ends.enter_context(tempfile.TemporaryDirectory(dir=folder))
        environment = {"TMPDIR": scratch} | (containers.environment if containers else {})
        log = ends.enter_context((folder / "vcsim.log").open("a"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen([program()], env=environment, text=True, **pipes)
        ends.callback(_end, process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings) + "\n")  # not in its arguments, which everybody can read
        process.stdin.flush()
        yield Simulator(process, kind, cert, json.loads(_line(process)), containers, files=Path(scratch))


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "vcsim ended, see vcsim.log"
    return line.removesuffix("\n")


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=vcsim")
    run(*request, "-addext", f"subjectAltName=IP:{ADDRESS}", "-keyout", key, "-out", cert)
    return cert, key


def program() -> Path:
    """The simulator. Building it takes a minute, where it isn't there yet."""
    sources = sorted(_SOURCES.rglob("*.go"))
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in (*sources, *sorted(_SIMULATOR.glob("*.go"))):
        digest.update(source.read_bytes())
    built = cache_folder() / f"test/vcsim-{digest.hexdigest()[:16]}"
    built.parent.mkdir(parents=True, exist_ok=True)
    with (built.parent / "vcsim.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other tests, run at the same time, want it too
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
                _build(Path(scratch)).replace(built)
    return built


def _build(scratch: Path) -> Path:
    replaced = {str(_SIMULATOR / source.name): str(source) for source in (_SOURCES / "extension").glob("*.go")}
    for name, text in _changed():
        (scratch / name).write_text(text)
        replaced[str(_SIMULATOR / name)] = str(scratch / name)
    overlay, made = scratch / "overlay.json", scratch / "vcsim"
    overlay.write_text(json.dumps({"Replace": replaced}))
    settings = {
        "GO111MODULE": "off",
        "GOPATH": str(_GOPATH),
        "GOFLAGS": "",
        "GOPROXY": "off",
        "GOCACHE": str(cache_folder() / "test/go-build"),
        "CGO_ENABLED": "0",
    }
    argv = ("go", "build", "-overlay", overlay, "-ldflags=-s -w", "-o", made, _SOURCES / "main.go")
    built = subprocess.run(argv, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return made


def _changed() -> Iterator[tuple[str, str]]:
    """Files of the simulator in which the extension's methods take the place of its own."""
    for name, methods in _OURS_BEFORE_SHIPPED.items():
        text = (_SIMULATOR / name).read_text()
        for method in methods:
            text, count = re.subn(rf"^(func \(\w+ \*\w+\) )({method}\()", r"\1Shipped\2", text, flags=re.MULTILINE)
            assert count == 1, f"{name} has {method} {count} times"
        yield name, text.replace(_TASK_OF_SNAPSHOT, "CreateTask(v.Vm, ")
    for name, (place, before) in _MENDED.items():
        text = (_SIMULATOR / name).read_text()
        assert text.count(place) == 1, f"{name} is another"
        yield name, text.replace(place, before + place)


def main() -> None:
    if reason := missing():
        print(reason, file=sys.stderr)
        return
    print(program(), file=sys.stderr)
    print("vcsim")


if __name__ == "__main__":
    main()
