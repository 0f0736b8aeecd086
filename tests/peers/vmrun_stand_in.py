# ruff: noqa: PLC0415
"""A stand-in for vmrun, where no VMware product can run: it speaks vmrun's grammar, and its guests execute programs.

What is real in it: programs are started by argument lists and found by their processes; a guest is a tree of processes
in namespaces of its own, with a root directory of its own, below a process called vmware-vmx; files cross, are damaged
and removed. What is not: VMware. Its words are those that users of vmrun have reported, how it behaves where nobody has
is a guess, and a snapshot's memory is the guest's files: the job's program is started again on them, by what the
launcher left in /run/vmwrapper. Needs root on Linux.

`install` puts it into a folder, which then has `vmrun`, `calls` (each call's words, as a line of JSON) and
`faults/VERB`, which `inject` writes. Each call is a new interpreter: what not every call needs is imported late.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

PASSWORD = "gu3st p$ss'word"
VERSION = "1.17.0 build-20800274"
_SNAPSHOT_VERBS = {"snapshot", "listSnapshots", "revertToSnapshot", "deleteSnapshot", "clone"}
_GUEST_VERBS = {"runProgramInGuest", "CopyFileFromHostToGuest", "CopyFileFromGuestToHost"}
_HARMLESS = (
    "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setuid,+setgid",
    "--inh-caps=-all",  # a guest's root must not set the host's clock
)
_MOUNTS = """\
set -e
root=$1
for folder in usr bin sbin lib lib32 lib64 etc/alternatives; do
    if [ -L "/$folder" ]; then
        [ -e "$root/$folder" ] || cp -P "/$folder" "$root/$folder"
    elif [ -d "/$folder" ]; then
        mkdir -p "$root/$folder"
        mount --bind -o ro "/$folder" "$root/$folder"
    fi
done
for device in null zero urandom; do
    : >>"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
: >>"$root/dev/console"
mount --bind "$2" "$root/dev/console"
mount -t proc proc "$root/proc"
shift 2
exec chroot "$root" setpriv "$@" /bin/sh -c 'while :; do sleep 1; done'
"""
_GO_ON = """\
cd /run/vmwrapper || exit 0
[ -e supervisor ] && [ ! -e exit ] || exit 0
(
    setsid sh ./command
    echo "status=$? user=0m0.10s system=0m0.10s" >exit.new
    mv exit.new exit
) </dev/null >/dev/null 2>&1 &
echo $! >supervisor
"""


def missing() -> str | None:
    """Why it can't be used here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for guests that are namespaces"
    import shutil

    tools = ("unshare", "nsenter", "setpriv", "chroot")
    if absent := [tool for tool in tools if shutil.which(tool) is None]:
        return f"needs {', '.join(absent)}"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"needs namespaces: {tried.stderr.decode()}"


def install(home: Path, *products: str, boot_s: float = 0.2) -> Path:
    """Make the folder; the path of vmrun in it. Its products are as vmrun's option -T has them."""
    (home / "faults").mkdir(parents=True)
    (home / "running").mkdir()
    _write(home / "config", {"products": products, "boot_s": boot_s})
    program = home / "vmrun"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" "{home}" vmrun "$@"\n')
    program.chmod(0o755)
    return program


def inject(home: Path, verb: str, said: str = "", *, status: int = 255, times: int = 1, hang_s: float = 0) -> None:
    """Have vmrun say this at the next calls of the verb, after a while, instead of doing it."""
    _write(home / "faults" / verb, {"said": said, "status": status, "times": times, "hang_s": hang_s})


def calls(home: Path) -> list[list[str]]:
    """The words of all calls so far."""
    return [json.loads(line) for line in (home / "calls").read_text().splitlines()]


def end_all(home: Path) -> None:
    """End all machines that run."""
    for file in (home / "running").iterdir():
        _end(_read(file)["pid"])


class Vmrun:
    """One call."""

    def __init__(self, home: Path, words: Sequence[str]) -> None:
        self.home = home
        self.config = _read(home / "config")
        self.flags: dict[str, str] = {}
        rest = list(words)
        while rest and rest[0] in ("-T", "-gu", "-gp", "-vp"):
            self.flags[rest[0]] = rest[1]
            del rest[:2]
        self.verb, self.words = (rest[0], rest[1:]) if rest else ("", [])

    def run(self) -> None:
        self._maybe_fail()
        if not self.verb:
            print(f"\nvmrun version {VERSION}\n\nUsage: vmrun [AUTHENTICATION-FLAGS] COMMAND [PARAMETERS]")
            sys.exit(255)
        if self.flags.get("-T", "ws") not in self.config["products"]:
            print("Unable to connect to host.")
            _fail("The specified version was not found")
        if self.flags.get("-T") == "player" and self.verb in _SNAPSHOT_VERBS:
            _fail("The operation is not supported")
        if self.verb == "list":
            self.list()
            return
        self.vmx = Path(self.words[0])
        self.guest = self.vmx.parent / "guest"
        self.file = self.home / "running" / str(self.vmx).encode().hex()[-200:]
        if not self.vmx.is_file():
            _fail(f"Cannot open VM: {self.vmx}, The virtual machine cannot be found")
        if self.verb in _GUEST_VERBS:
            self._check_login()
        verb = getattr(self, self.verb, None)
        if verb is None:
            _fail(f"Unrecognized command: {self.verb}")
        verb(*self.words[1:])

    def _maybe_fail(self) -> None:
        file = self.home / "faults" / self.verb
        if not self.verb or not file.exists():
            return
        fault = _read(file)
        fault["times"] -= 1
        if fault["times"]:
            _write(file, fault)
        else:
            file.unlink()
        time.sleep(fault["hang_s"])
        print(fault["said"])
        sys.exit(fault["status"])

    def _check_login(self) -> None:
        running = self._running()
        if time.time() < running["tools_at"]:
            _fail(f"The VMware Tools are not running in the virtual machine: {self.vmx}")
        if (self.flags.get("-gu"), self.flags.get("-gp")) != ("root", PASSWORD):
            _fail("Invalid user name or password for the guest OS")

    def _running(self) -> dict[str, Any]:
        found: dict[str, Any]
        if not self.file.exists() or not _is_alive((found := _read(self.file))["pid"]):
            _fail(f"The virtual machine is not powered on: {self.vmx}")
        return found

    def list(self) -> None:
        found = [_read(file) for file in (self.home / "running").iterdir()]
        files = [one["vmx"] for one in found if _is_alive(one["pid"])]
        print(f"Total running VMs: {len(files)}", *files, sep="\n")

    def start(self, how: str) -> None:
        assert how == "nogui"
        if self.file.exists() and _is_alive(_read(self.file)["pid"]):
            _fail("The file is already in use")
        for disk in _disks(self.vmx):
            if not disk.exists() or disk.read_bytes()[:4] != b"KDMV":
                _fail(f"Cannot open the disk '{disk}' or one of the snapshot disks it depends on.")
        self.file.unlink(missing_ok=True)
        argv = ["vmware-vmx", "-I", "-S", __file__, str(self.home), "vmx", str(self.file), str(self.vmx)]
        with Path(os.devnull).open("r+b") as null, (self.home / "vmx.err").open("ab") as err:
            subprocess.Popen(
                argv, executable=sys.executable, stdin=null, stdout=null, stderr=err, start_new_session=True
            )
        while not self.file.exists():
            time.sleep(0.01)

    def stop(self, how: str) -> None:
        assert how == "hard"
        _end(self._running()["pid"])

    def pause(self) -> None:
        if _is_stopped((running := self._running())["pid"]):
            _fail("The virtual machine is paused")
        _signal_all(running, signal.SIGSTOP)

    def unpause(self) -> None:
        _signal_all(self._running(), signal.SIGCONT)

    def snapshot(self, name: str) -> None:
        running = self._running()
        tree = self._tree()
        if name in tree:
            _fail("A snapshot with the name already exists")
        number = 1 + max((one["number"] for one in tree.values()), default=0)
        state = self.vmx.with_name(f"machine-Snapshot{number}.vmsn")
        was_paused = _is_stopped(running["pid"])
        _signal_all(running, signal.SIGSTOP)
        try:
            _pack(self.guest, state.with_suffix(".vmem"))
        finally:
            if not was_paused:
                _signal_all(running, signal.SIGCONT)
        _write(state, {"name": name})
        tree[name] = {"number": number}
        _write(self.vmx.with_suffix(".vmsd"), tree)

    def listSnapshots(self) -> None:  # noqa: N802
        print(f"Total snapshots: {len(self._tree())}", *self._tree(), sep="\n")

    def deleteSnapshot(self, name: str) -> None:  # noqa: N802
        tree = self._tree()
        state = self._state(name)
        for file in (state, state.with_suffix(".vmem")):
            file.unlink(missing_ok=True)
        del tree[name]
        _write(self.vmx.with_suffix(".vmsd"), tree)

    def revertToSnapshot(self, name: str) -> None:  # noqa: N802
        state = self._state(name)
        if self.file.exists() and _is_alive(pid := _read(self.file)["pid"]):
            _end(pid)
        import shutil
        import tarfile

        shutil.rmtree(self.guest, ignore_errors=True)
        with tarfile.open(state.with_suffix(".vmem")) as tar:
            tar.extractall(self.guest)
        (self.guest / ".resume").touch()

    def _tree(self) -> dict[str, Any]:
        file = self.vmx.with_suffix(".vmsd")
        return _read(file) if file.exists() else {}

    def _state(self, name: str) -> Path:
        if name not in self._tree():
            _fail("The snapshot does not exist")
        return self.vmx.with_name(f"machine-Snapshot{self._tree()[name]['number']}.vmsn")

    def runProgramInGuest(self, *words: str) -> None:  # noqa: N802
        done = self._in_guest("/bin/sh", "-c", " ".join(words))  # as vmrun joins them
        if done.returncode:
            print(f"Guest program exited with non-zero exit code: {done.returncode}")
            sys.exit(255)

    def CopyFileFromHostToGuest(self, here: str, there: str) -> None:  # noqa: N802
        with Path(here).open("rb") as file:
            done = self._in_guest("/bin/sh", "-c", 'cat >"$1"', "sh", there, stdin=file)
        if done.returncode:
            _fail("A file was not found")

    def CopyFileFromGuestToHost(self, there: str, here: str) -> None:  # noqa: N802
        if self._in_guest("/usr/bin/test", "-e", there).returncode:
            _fail("A file was not found")
        with Path(here).open("wb") as file:
            self._in_guest("/bin/cat", there, stdout=file)

    def _in_guest(self, *argv: str, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.DEVNULL) -> Any:
        enter = ["nsenter", "--target", str(self._running()["guest"]), "--mount", "--pid", "--root", "--wd", "--"]
        return subprocess.run(
            [*enter, "setpriv", *_HARMLESS, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "HOME": "/root"},
            check=False,
        )


def run_machine(home: Path, file: Path, vmx: Path) -> None:
    """What vmware-vmx does: a guest, a log, and some CPU time."""
    log, root = vmx.with_name("vmware.log"), vmx.with_name("guest")
    resumes = (root / ".resume").exists()
    _make_root(root, keeps_run=resumes)
    (root / ".resume").unlink(missing_ok=True)
    binder = ["setpriv", "--pdeathsig", "KILL", "--"]
    spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"]
    console = vmx.with_name("console")
    with console.open("ab") as serial:
        serial.write(b"Linux boots\n")
    argv = [*binder, *spaces, "/bin/sh", "-c", _MOUNTS, "sh", str(root), str(console), *_HARMLESS]
    guest = subprocess.Popen(argv)
    pid = _first_child(guest)
    if resumes:
        enter = ["nsenter", "--target", str(pid), "--mount", "--pid", "--root", "--wd", "--"]
        subprocess.run([*enter, "setpriv", *_HARMLESS, "/bin/sh", "-c", _GO_ON], check=True)
    tools_at = time.time() + (0 if resumes else _read(home / "config")["boot_s"])
    _write(file, {"vmx": str(vmx), "pid": os.getpid(), "guest": pid, "tools_at": tools_at})
    with log.open("a") as lines:
        print("2026-11-22T10:00:00.000Z In(05) vmx Log for VMware Workstation", file=lines, flush=True)
        while guest.poll() is None:
            if (root / "poweroff").exists():
                print("2026-11-22T10:00:00.000Z In(05) vcpu-0 PIIX4: PM Soft Off.  Good-bye.", file=lines)
                break
            ends_at = time.monotonic() + 0.01
            while time.monotonic() < ends_at:
                pass
            time.sleep(0.04)
        print("2026-11-22T10:00:00.000Z In(05) vmx VMX has left the building: 0.", file=lines)


def _make_root(root: Path, *, keeps_run: bool) -> None:
    import shutil

    if not keeps_run:
        shutil.rmtree(root / "run", ignore_errors=True)
    for name in ("dev", "proc", "tmp", "run", "root", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    shutil.copy("/etc/ld.so.cache", root / "etc")


def _first_child(process: subprocess.Popen[bytes]) -> int:
    """The first process of the guest, once it has its root directory."""
    while True:
        assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/cmdline").read_bytes().startswith(b"/bin/sh\0-c\0while"):
            return int(children[0])
        time.sleep(0.005)


def _disks(vmx: Path) -> list[Path]:
    lines = [line.split(" = ") for line in vmx.read_text().splitlines()]
    return [vmx.with_name(value.strip('"')) for name, value in lines if value.endswith('.vmdk"')]


def _pack(folder: Path, file: Path) -> None:
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(folder, arcname=".", filter=lambda one: None if one.isfifo() or one.ischr() else one)
    file.write_bytes(packed.getvalue())


def _signal_all(running: dict[str, Any], number: signal.Signals) -> None:
    os.kill(running["pid"], number)
    space = Path(f"/proc/{running['guest']}/ns/pid").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/pid").readlink() == space:
                os.kill(int(process.name), number)
        except OSError:
            continue


def _is_alive(pid: int) -> bool:
    try:
        return b"vmware-vmx\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _is_stopped(pid: int) -> bool:
    return ") T " in Path(f"/proc/{pid}/stat").read_text()


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    while _is_alive(pid):
        time.sleep(0.01)


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def _write(file: Path, content: object) -> None:
    scratch = file.with_name(f"{file.name}.new")
    scratch.write_text(json.dumps(content))
    scratch.replace(file)


def _fail(text: str) -> NoReturn:
    print(f"Error: {text}")
    sys.exit(255)


def main(home: Path, role: str, *words: str) -> None:
    if role == "vmx":
        run_machine(home, Path(words[0]), Path(words[1]))
        return
    with (home / "calls").open("a") as noted:
        print(json.dumps(words), file=noted)
    Vmrun(home, words).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
