"""What the client tells an app of its job before it starts it: `init_data.xml`, which is not XML.

Source: BOINC's lib/app_ipc.cpp, write_init_data_file, with lib/hostinfo.cpp, lib/proxy_info.cpp and lib/prefs.cpp.
"""

from dataclasses import dataclass
from pathlib import Path

from vmwrapper.boinc.elements import escaped, read, scan, sound, tagged
from vmwrapper.boinc.secret import Secret
from vmwrapper.errors import ClientUnreachable

INIT_DATA_FILE = "init_data.xml"
SHARED_BY_FILE = -1
"""The `shm_key` of an app version whose channels are a file."""

_LARGEST_BYTES = 1 << 18
_BEGIN, _END = b"<app_init_data>", b"</app_init_data>"
_PREFERENCES, _PREFERENCES_END = b"<project_preferences>", b"</project_preferences>"
_NAMES = (b"team_name", b"user_name")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """The computer, as the client sees it. Speeds are per CPU; 0 and "" where it doesn't say it."""

    timezone: int = 0
    """Seconds east of Greenwich."""
    domain_name: str = ""
    ip_addr: str = ""
    host_cpid: str = ""
    p_ncpus: int = 0
    p_vendor: str = escaped()
    p_model: str = escaped()
    p_features: str = escaped()
    """Separated by spaces; vmx or svm among them where the CPU can virtualize."""
    p_fpops: float = 0.0
    """Floating-point operations per second."""
    p_iops: float = 0.0
    """Integer operations per second."""
    p_membw: float = 0.0
    p_calculated: float = 0.0
    """When the speeds were measured, in seconds since 1970."""
    p_vm_extensions_disabled: bool = False
    m_nbytes: float = 0.0
    """Bytes of memory."""
    m_cache: float = 0.0
    m_swap: float = 0.0
    d_total: float = 0.0
    """Bytes of the disk on which the client's directory is."""
    d_free: float = 0.0
    os_name: str = escaped()
    os_version: str = escaped()
    n_usable_coprocs: int = 0
    product_name: str | None = escaped(None)
    mac_address: str | None = None
    virtualbox_version: str | None = escaped(None)
    docker_version: str | None = None
    docker_type: int | None = None
    docker_compose_version: str | None = None
    docker_compose_type: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyInfo:
    """The proxies by which the volunteer's computer reaches the Internet."""

    use_http_proxy: bool = False
    use_socks_proxy: bool = False
    use_http_auth: bool = False
    socks_server_name: str = ""
    socks_server_port: int = 80
    http_server_name: str = ""
    http_server_port: int = 80
    socks5_user_name: str = escaped()
    socks5_user_passwd: Secret | None = escaped(None)  # noqa: RUF009  (a field)
    socks5_remote_dns: bool = False
    http_user_name: str = escaped()
    http_user_passwd: Secret | None = escaped(None)  # noqa: RUF009  (a field)
    no_proxy: str = ""
    """Hosts that are reached without, separated by commas."""
    no_autodetect: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalPreferences:
    """What the volunteer allows, as it is in force. The defaults are the client's; hours are 0 to 24, local time."""

    source_project: str = ""
    mod_time: float = 0.0
    battery_charge_min_pct: float = 90.0
    battery_max_temperature: float = 40.0
    """Degrees Celsius."""
    run_on_batteries: bool = True
    run_if_user_active: bool = True
    run_gpu_if_user_active: bool = False
    suspend_if_no_recent_input: float = 0.0
    """Minutes; 0 for never."""
    suspend_cpu_usage: float = 25.0
    """Percent of use by others at which computing stands still; 0 for never."""
    start_hour: float = 0.0
    end_hour: float = 0.0
    net_start_hour: float = 0.0
    net_end_hour: float = 0.0
    leave_apps_in_memory: bool = False
    """Suspended apps are not asked to quit."""
    confirm_before_connecting: bool = True
    hangup_if_dialed: bool = False
    dont_verify_images: bool = False
    work_buf_min_days: float = 0.1
    work_buf_additional_days: float = 0.5
    max_ncpus_pct: float = 0.0
    """Percent of the CPUs; 0 for all."""
    niu_max_ncpus_pct: float = 100.0
    """niu: while the computer is not in use."""
    niu_cpu_usage_limit: float = 100.0
    niu_suspend_cpu_usage: float = 50.0
    cpu_scheduling_period_minutes: float = 60.0
    disk_interval: float = 60.0
    """Seconds between an app's writes to the disk, at least."""
    disk_max_used_gb: float = 0.0
    """0 for no limit."""
    disk_max_used_pct: float = 90.0
    disk_min_free_gb: float = 0.1
    vm_max_used_pct: float = 75.0
    """Percent of the swap space."""
    ram_max_used_busy_pct: float = 50.0
    ram_max_used_idle_pct: float = 90.0
    idle_time_to_run: float = 3.0
    """Minutes without input after which the computer is not in use."""
    max_bytes_sec_up: float = 0.0
    """0 for no limit."""
    max_bytes_sec_down: float = 0.0
    """0 for no limit."""
    cpu_usage_limit: float = 100.0
    """Percent of the time."""
    daily_xfer_limit_mb: float = 0.0
    """Megabytes in `daily_xfer_period_days`; 0 for no limit."""
    daily_xfer_period_days: int = 0
    override_file_present: bool = False
    network_wifi_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InitData:
    """All that the client says. Fields have the names of its elements, with a unit where those have none."""

    project_dir: Path
    """Absolute."""
    result_name: str

    major_version: int = 0
    """The client's."""
    minor_version: int = 0
    release: int = 0
    app_version: int = 0
    userid: int = 0
    teamid: int = 0
    hostid: int = 0
    app_name: str = ""
    plan_class: str | None = None
    symstore: str | None = None
    acct_mgr_url: str | None = None
    project_preferences: bytes | None = None
    """The volunteer's for this project, as the project's server sent it; should be XML."""
    team_name: str | None = escaped(None)
    user_name: str | None = escaped(None)
    boinc_dir: Path | None = None
    """Absolute."""
    authenticator: Secret | None = None
    """With it anyone is the volunteer, on the project's server."""
    wu_name: str = ""
    shm_key: int = sound(0)
    comm_obj_name: str | None = None
    """On Windows, in place of `shm_key`."""
    slot: int = 0
    client_pid: int = sound(0)
    """0 where the client doesn't say it."""

    checkpoint_cpu_time_s: float = tagged("wu_cpu_time", 0.0)
    """As of the last checkpoint that the client knows of, over all episodes."""
    starting_elapsed_time_s: float = tagged("starting_elapsed_time", 0.0)
    """As of the same checkpoint."""
    using_sandbox: bool = False
    vm_extensions_disabled: bool = False
    user_total_credit: float = 0.0
    user_expavg_credit: float = 0.0
    host_total_credit: float = 0.0
    host_expavg_credit: float = 0.0
    resource_share_fraction: float = 0.0
    """Of the computer's time, this project's."""
    checkpoint_period_s: float = tagged("checkpoint_period", 300.0)
    """The volunteer's `disk_interval`."""
    fraction_done_start: float = 0.0
    """Where this app's share of the job begins."""
    fraction_done_end: float = 1.0
    gpu_type: str = ""
    gpu_device_num: int = -1
    gpu_opencl_dev_index: int = -1
    gpu_usage: float = 0.0
    """GPUs, of which there may be a fraction."""
    ncpus: float = 0.0
    """CPUs that the job is counted with, of which there may be a fraction."""
    rsc_fpops_est: float = 0.0
    """Floating-point operations that the job takes."""
    rsc_fpops_bound: float = 0.0
    """And at most; 0 where nothing is said, as for the next ones."""
    rsc_memory_bound_bytes: float = tagged("rsc_memory_bound", 0.0)
    rsc_disk_bound_bytes: float = tagged("rsc_disk_bound", 0.0)
    computation_deadline: float = 0.0
    """In seconds since 1970."""
    vbox_window: bool = False
    """The volunteer wants to see the machine's screen."""
    no_priority_change: bool = False
    process_priority: int = -1
    """-1 where the volunteer leaves it to the client; else 0, the lowest, to 5."""
    process_priority_special: int = -1

    host_info: HostInfo = HostInfo()
    proxy_info: ProxyInfo = ProxyInfo()
    global_preferences: GlobalPreferences = GlobalPreferences()
    app_files: tuple[str, ...] = tagged("app_file", ())
    """The app version's files, by the names that they have in the project's directory."""


def read_init_data(slot: Path) -> InitData:
    """What the client says of the slot's job. Raises ClientUnreachable with the reason why it can't be used."""
    path = slot / INIT_DATA_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES)
    except OSError as error:
        raise ClientUnreachable(f"can't read {path}: {error.strerror}") from error
    try:
        return parse_init_data(content)
    except ValueError as error:
        raise ClientUnreachable(f"{path} is not as the client writes it: {error}") from error


def parse_init_data(content: bytes) -> InitData:
    """Raises ValueError with what is wrong, which tells nothing secret.

    An element that we can do without, and that makes no sense, is taken for missing.
    """
    begin, end = content.find(_BEGIN), content.rfind(_END)
    if not 0 <= begin < end:
        raise ValueError("it is cut short")
    said, names = _apart(content[begin + len(_BEGIN) : end])
    elements, named = scan(said), scan(names)
    data = read(InitData, {**elements, **{name: named[name] for name in _NAMES if name in named}})
    if data.client_pid < 0:
        raise ValueError("<client_pid> is no integer of at least 0")
    return data


def _apart(content: bytes) -> tuple[bytes, bytes]:
    """What the client says, and what strangers called a team and a user.

    Older clients don't escape these two, which stand side by side, behind the project's preferences: so all between the
    first begin and the last end of them may be made up.
    """
    preferences, after = content.find(_PREFERENCES), 0
    if 0 <= preferences < min(_places(content, 0), default=0):
        after = content.find(_PREFERENCES_END, preferences)
    begins = _places(content, after)
    ends = [at + len(name) + 3 for name in _NAMES if (at := content.rfind(b"</%b>" % name)) >= 0]
    if not begins or not ends or max(ends) < min(begins):
        return content, b""
    return content[: min(begins)] + content[max(ends) :], content[min(begins) : max(ends)]


def _places(content: bytes, after: int) -> list[int]:
    return [at for name in _NAMES if (at := content.find(b"<%b>" % name, after)) >= 0]
