"""vCenter and ESX hosts as govmomi's simulator, vcsim, shows them: real SOAP over real TLS, without VMware.

It is built from Debian's source package, with the files in `vcsim/extension` added to it or put in place of its own
(Go's `-overlay`).

`python -m tests.peers.vcsim` builds it, and prints `vcsim` where that could be done.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.debian_mirror import run
from vmwrapper.folders import cache_folder

ADDRESS = "127.0.0.2"
"""Since pyvmomi doesn't verify the certificate of 127.0.0.1, nor of localhost."""
USER = "administrator@vsphere.local"
PASSWORD = "vSphere's <secret>"
TOOLS = ("go", "openssl")

_SOURCES = Path(__file__).with_suffix("")
_GOPATH = Path("/usr/share/gocode")
_SIMULATOR = _GOPATH / "src/github.com/vmware/govmomi/simulator"
_ENDS_WITHIN_S = 30

Kind = Literal["vpx", "esx"]


def missing() -> str | None:
    """What keeps this machine from having the simulator, or None."""
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"vcsim needs {', '.join(absent)}: make test installs that for root"
    if not _SIMULATOR.exists():
        return "vcsim needs Debian's golang-github-vmware-govmomi-dev: make test installs that for root"
    return None


class Simulator:
    """One that serves. All that clients see of it is lost when it ends."""

    host = ADDRESS
    user = USER
    password = PASSWORD
    datastore = "LocalDS_0"

    def __init__(self, process: subprocess.Popen[str], kind: Kind, ca_file: Path, answer: dict[str, Any]) -> None:
        self._process = process
        self.kind = kind
        self.ca_file = ca_file
        self.port: int = answer["port"]
        self.url = f"https://{self.host}:{self.port}/sdk"
        self.datacenter = "DC0" if kind == "vpx" else "ha-datacenter"

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
def simulator(folder: Path, *, kind: Kind = "vpx") -> Iterator[Simulator]:
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
    }
    scratch = folder / "scratch"
    scratch.mkdir()
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(scratch)}
    with (folder / "vcsim.log").open("a") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen([program()], env=environment, text=True, **pipes)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings) + "\n")  # not in its arguments, which everybody can read
        process.stdin.flush()
        yield Simulator(process, kind, cert, json.loads(_line(process)))
    finally:
        _end(process)
        shutil.rmtree(scratch)


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


def main() -> None:
    if reason := missing():
        print(reason, file=sys.stderr)
        return
    print(program(), file=sys.stderr)
    print("vcsim")


if __name__ == "__main__":
    main()
