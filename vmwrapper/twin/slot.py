"""The slot directory as the client makes it: links to the project's files, what it tells the app, the shared memory."""

import fcntl
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from vmwrapper.boinc.channels import MEMORY_BYTES, MMAP_FILE, Channel, Channels
from vmwrapper.boinc.init_data import INIT_DATA_FILE, SHARED_BY_FILE
from vmwrapper.boinc.slot_files import FINISH_FILE, LONGEST_LINK, TEMPORARY_EXIT_FILE
from vmwrapper.boinc.slot_lock import slot_lock
from vmwrapper.checkpoint import read_record
from vmwrapper.errors import HostDiskFailed, JobError, SlotBusy
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE
from vmwrapper.hostile import one_line
from vmwrapper.twin.files import TaskFiles

SLOT_FOLDER = ".vmwrapper-slot"
"""Beside the job file; whatever has this name there is ours."""
STDERR_FILE = "stderr.txt"
AUTHENTICATOR = "authenticator-of-the-twin-0d9c6b7e5f"
PROXY_PASSWORD = "proxy-password-of-the-twin-51f8a2"  # noqa: S105  (nobody's)
"""Like the volunteer's own they must never be seen elsewhere."""

_CLIENTS_FILES = {INIT_DATA_FILE, MMAP_FILE, FINISH_FILE, TEMPORARY_EXIT_FILE, STDERR_FILE}
_INIT_DATA = """\
<app_init_data>
<major_version>7</major_version>
<minor_version>20</minor_version>
<release>5</release>
<app_version>100</app_version>
<userid>1</userid>
<teamid>0</teamid>
<hostid>1</hostid>
<app_name>vmwrapper</app_name>
<project_preferences>
</project_preferences>
<user_name>R&D <1> "Zoë"</user_name>
<project_dir>{project_dir}</project_dir>
<boinc_dir>{project_dir}</boinc_dir>
<authenticator>{authenticator}</authenticator>
<wu_name>{name}</wu_name>
<result_name>{result_name}</result_name>
<shm_key>{shm_key}</shm_key>
<slot>0</slot>
<client_pid>{client_pid}</client_pid>
<wu_cpu_time>{cpu_time_s:f}</wu_cpu_time>
<starting_elapsed_time>{elapsed_s:f}</starting_elapsed_time>
<using_sandbox>0</using_sandbox>
<vm_extensions_disabled>0</vm_extensions_disabled>
<user_total_credit>0.000000</user_total_credit>
<user_expavg_credit>0.000000</user_expavg_credit>
<host_total_credit>0.000000</host_total_credit>
<host_expavg_credit>0.000000</host_expavg_credit>
<resource_share_fraction>1.000000</resource_share_fraction>
<checkpoint_period>60.000000</checkpoint_period>
<fraction_done_start>0.000000</fraction_done_start>
<fraction_done_end>1.000000</fraction_done_end>
<gpu_type></gpu_type>
<gpu_device_num>-1</gpu_device_num>
<gpu_opencl_dev_index>-1</gpu_opencl_dev_index>
<gpu_usage>0.000000</gpu_usage>
<ncpus>1.000000</ncpus>
<rsc_fpops_est>1000000000000.000000</rsc_fpops_est>
<rsc_fpops_bound>1000000000000000.000000</rsc_fpops_bound>
<rsc_memory_bound>{memory_bytes:f}</rsc_memory_bound>
<rsc_disk_bound>{disk_bytes:f}</rsc_disk_bound>
<computation_deadline>4102444800.000000</computation_deadline>
<vbox_window>0</vbox_window>
<no_priority_change>0</no_priority_change>
<process_priority>-1</process_priority>
<process_priority_special>-1</process_priority_special>
<host_info>
    <p_ncpus>{cpus}</p_ncpus>
    <m_nbytes>{memory_bytes:f}</m_nbytes>
    <d_free>{disk_bytes:f}</d_free>
    <p_vm_extensions_disabled>0</p_vm_extensions_disabled>
</host_info>
<proxy_info>
    <socks_server_name></socks_server_name>
    <socks_server_port>80</socks_server_port>
    <http_server_name></http_server_name>
    <http_server_port>80</http_server_port>
    <socks5_user_name>twin</socks5_user_name>
    <socks5_user_passwd>{proxy_password}</socks5_user_passwd>
    <socks5_remote_dns>0</socks5_remote_dns>
    <http_user_name>twin</http_user_name>
    <http_user_passwd>{proxy_password}</http_user_passwd>
    <no_proxy></no_proxy>
</proxy_info>
<global_preferences>
    <cpu_usage_limit>100.000000</cpu_usage_limit>
    <leave_apps_in_memory>1</leave_apps_in_memory>
    <disk_interval>60.000000</disk_interval>
</global_preferences>
</app_init_data>
"""


class Memory:
    """The client's end of the shared memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._channels = Channels(memory)

    def clear(self) -> None:
        """As before each start."""
        self._memory[:] = bytes(MEMORY_BYTES)

    def send(self, channel: Channel, text: str) -> bool:
        """Whether there was room for it: the app has read the last one."""
        return self._channels.send(channel, text.encode())

    def receive(self, channel: Channel) -> str:
        """What the app has left there, or nothing."""
        return (self._channels.receive(channel) or b"").decode(errors="replace")


@contextmanager
def _shared_memory(slot: Path) -> Iterator[Memory]:
    with (slot / MMAP_FILE).open("w+b") as file:
        file.truncate(MEMORY_BYTES)
        with mmap.mmap(file.fileno(), MEMORY_BYTES) as memory:
            yield Memory(memory)


class TwinSlot:
    """What the client writes in a slot, and looks for there."""

    def __init__(self, path: Path, files: TaskFiles, memory: Memory) -> None:
        self.path = path
        self.memory = memory
        self.outputs = files.output_paths
        """Where the job's outputs appear."""
        self._files = files

    def link(self) -> None:
        """Make the links, as at a task's first start. Raises JobError where a client can't.

        Source: BOINC's client/app_start.cpp, setup_file and make_soft_link: the target is as seen from the slot, also
        for a name in a folder, and nothing in it is escaped.
        """
        self._link("job.xml", self._files.job_file.name)
        for name in self._files.names:
            self._link(name, name)

    def _link(self, open_name: str, file_name: str) -> None:
        link = f"<soft_link>../{file_name}</soft_link>\n"
        if "\n" in file_name or len(os.fsencode(link)) > LONGEST_LINK:
            raise JobError(f"a BOINC client can't link {one_line(file_name)}: it is too long, or has a line break")
        path = self.path / open_name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.fsencode(link))
        except OSError as error:
            raise JobError(f"can't make the link {one_line(str(path))}: {error.strerror}") from error

    def write_init_data(self, *, client_pid: int, cpu_time_s: float, elapsed_s: float) -> None:
        """As the client does before each start, and when the app is to read it again."""
        disk = shutil.disk_usage(self.path)
        name = self._files.job_file.stem
        text = _INIT_DATA.format(
            project_dir=self._files.project_dir,
            authenticator=AUTHENTICATOR,
            proxy_password=PROXY_PASSWORD,
            name=name,
            result_name=f"{name}_0",
            shm_key=SHARED_BY_FILE,
            client_pid=client_pid,
            cpu_time_s=cpu_time_s,
            elapsed_s=elapsed_s,
            memory_bytes=psutil.virtual_memory().total,
            disk_bytes=disk.free,
            cpus=os.cpu_count() or 1,
        )
        path = self.path / INIT_DATA_FILE
        path.unlink(missing_ok=True)
        path.write_bytes(os.fsencode(text))

    def forget_temporary_exit(self) -> None:
        """As before each start."""
        (self.path / TEMPORARY_EXIT_FILE).unlink(missing_ok=True)

    def left_by_app(self) -> list[str]:
        """What the app has left there that is neither the client's nor for it, nor for the app's next episode."""
        names = {name.partition("/")[0] for name in self._files.names} | {"job.xml", RECORD_FILE} | _CLIENTS_FILES
        record = read_record(self.path)
        if record and record.checkpoints:
            names.add(MACHINE_FOLDER)
        return sorted(path.name for path in self.path.iterdir() if path.name not in names)


@contextmanager
def twin_slot(files: TaskFiles) -> Iterator[TwinSlot]:
    """An empty slot beside the job file, removed with all that is in it. Raises SlotBusy where another twin has it."""
    path = files.project_dir / SLOT_FOLDER
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise HostDiskFailed(f"can't make the slot {path}: {error.strerror}") from error
    try:
        _lock(folder, path)
        _clear(path)
        try:
            with _shared_memory(path) as memory:
                yield TwinSlot(path, files, memory)
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(folder)


def _lock(folder: int, path: Path) -> None:
    """Hold the folder, until it is closed. Its app may outlive a twin that was killed, for some seconds."""
    busy = f"another client's twin is at work in {path}"
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(folder), path.stat()):
            raise SlotBusy(busy)
    except (BlockingIOError, FileNotFoundError) as error:
        raise SlotBusy(busy) from error
    with slot_lock(path):
        pass


def _clear(path: Path) -> None:
    try:
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise HostDiskFailed(f"can't empty the slot {path}: {error.strerror}") from error
