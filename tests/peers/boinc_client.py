"""Debian's BOINC client with one task, whose files it takes for downloaded, and no other project.

What its files must say was found out with version 7.20.5:

- Files need no signature as long as none is asked for; their MD5 must be right.
- `<unsigned_apps_ok>` would have the client suspend all of its network.
- `<api_version>` must be at least 6.0, or there is no file for the channels.
- The status of an output is 0, that of a file which is there 1; a result in state 2 is ready to start.
- `cpu_usage_limit` 100 and `suspend_cpu_usage` 0, or it suspends tasks at will.
- `<no_priority_change>`, or the apps starve beside other tests.
"""

import hashlib
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from .project_server import ProjectServer

RESULT = "wu1_0"
MAIN = "vmwrapper"
_LIMIT_S = 120

_CONFIGURATION = """\
<cc_config>
<log_flags>
<task>1</task><task_debug>1</task_debug><app_msg_send>1</app_msg_send><unparsed_xml>1</unparsed_xml>
</log_flags>
<options>
<skip_cpu_benchmarks>1</skip_cpu_benchmarks><dont_contact_ref_site>1</dont_contact_ref_site>
<no_info_fetch>1</no_info_fetch><suppress_net_info>1</suppress_net_info>
<allow_multiple_clients>1</allow_multiple_clients><start_delay>0</start_delay>
<report_results_immediately>1</report_results_immediately><ncpus>2</ncpus>
<no_priority_change>1</no_priority_change>
</options>
</cc_config>
"""
_PREFERENCES = """\
<global_preferences>
<run_on_batteries>1</run_on_batteries><run_if_user_active>1</run_if_user_active>
<suspend_cpu_usage>0</suspend_cpu_usage><cpu_usage_limit>100</cpu_usage_limit><max_ncpus_pct>100</max_ncpus_pct>
<leave_apps_in_memory>0</leave_apps_in_memory>
<disk_max_used_gb>0</disk_max_used_gb><disk_max_used_pct>100</disk_max_used_pct><disk_min_free_gb>0.1</disk_min_free_gb>
<ram_max_used_busy_frac>90</ram_max_used_busy_frac><ram_max_used_idle_frac>90</ram_max_used_idle_frac>
</global_preferences>
"""
_STATE = """\
<client_state>
<project>
<master_url>{url}</master_url><project_name>stub</project_name><user_name>R&D <1> "Zoë"</user_name>
<userid>1</userid><hostid>1</hostid><rpc_seqno>1</rpc_seqno><resource_share>100</resource_share>
<dont_request_more_work/>
<scheduler_url>{url}sched</scheduler_url>
</project>
<app>
<name>app</name><user_friendly_name>app</user_friendly_name>
</app>
{files}
<app_version>
<app_name>app</app_name><version_num>100</version_num><platform>x86_64-pc-linux-gnu</platform>
<avg_ncpus>1</avg_ncpus><flops>1e9</flops><plan_class></plan_class><api_version>8.1.0</api_version>
{app_refs}
</app_version>
<workunit>
<name>wu1</name><app_name>app</app_name><version_num>100</version_num>
<rsc_fpops_est>1e12</rsc_fpops_est><rsc_fpops_bound>1e15</rsc_fpops_bound>
<rsc_memory_bound>1e9</rsc_memory_bound><rsc_disk_bound>4e9</rsc_disk_bound>
{input_refs}
</workunit>
<result>
<name>wu1_0</name><state>2</state><platform>x86_64-pc-linux-gnu</platform><version_num>100</version_num>
<plan_class></plan_class><wu_name>wu1</wu_name>
<report_deadline>{deadline}</report_deadline><received_time>{now}</received_time>
{output_refs}
</result>
<platform_name>x86_64-pc-linux-gnu</platform_name>
<core_client_major_version>7</core_client_major_version>
<core_client_minor_version>20</core_client_minor_version>
<core_client_release>5</core_client_release>
<user_run_request>1</user_run_request>
<user_network_request>2</user_network_request>
</client_state>
"""


class BoincClient:
    """A client in a directory of its own. `stop` ends it and what it has started."""

    def __init__(self, directory: Path, server: ProjectServer) -> None:
        self._directory = directory
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self._project_name = f"127.0.0.1_{server.server_port}_stub"
        self.project_dir = directory / "projects" / self._project_name
        self.slot = directory / "slots" / "0"

    def prepare(
        self, *, app_files: Mapping[str, bytes], input_files: Mapping[str, bytes], outputs: Sequence[str]
    ) -> None:
        """Give it a task. Files have other names than those under which the app opens them; MAIN is executed."""
        self.project_dir.mkdir(parents=True)
        app = {f"app_1_{name}": content for name, content in app_files.items()}
        inputs = {f"wu1_{name}": content for name, content in input_files.items()}
        files = [self._stored(name, content) for name, content in {**app, **inputs}.items()]
        output_files = [f"{RESULT}_{number}" for number in range(len(outputs))]
        uploaded = [
            f"<file>\n<name>{name}</name><max_nbytes>1e8</max_nbytes><status>0</status>"
            f"<upload_url>{self._server.url}upload</upload_url>\n</file>"
            for name in output_files
        ]
        state = _STATE.format(
            url=self._server.url,
            files="\n".join([*files, *uploaded]),
            app_refs=_references(zip(app, app_files, strict=True)),
            input_refs=_references(zip(inputs, input_files, strict=True)),
            output_refs=_references(zip(output_files, outputs, strict=True)),
            now=time.time(),
            deadline=time.time() + 86400,
        )
        account = (
            f"<account>\n<master_url>{self._server.url}</master_url>\n<authenticator>secret-of-the-volunteer"
            "</authenticator>\n<project_name>stub</project_name>\n</account>\n"
        )
        for name, text in {
            "client_state.xml": _one_tag_a_line(state),
            f"account_{self._project_name}.xml": account,
            "cc_config.xml": _one_tag_a_line(_CONFIGURATION),
            "global_prefs_override.xml": _one_tag_a_line(_PREFERENCES),
            "gui_rpc_auth.cfg": "password\n",
        }.items():
            (self._directory / name).write_text(text)
        (self._directory / "gui_rpc_auth.cfg").chmod(0o600)

    def _stored(self, name: str, content: bytes) -> str:
        path = self.project_dir / name
        path.write_bytes(content)
        is_main = name.endswith(f"_{MAIN}")
        path.chmod(0o755 if is_main else 0o644)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return (
            f"<file>\n<name>{name}</name><nbytes>{len(content)}</nbytes><md5_cksum>{md5}</md5_cksum><status>1</status>"
            f"{'<executable/>' if is_main else ''}<download_url>{self._server.url}{name}</download_url>\n</file>"
        )

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
            self._process.wait(_LIMIT_S)
            self._process = None

    def kill(self) -> None:
        """Let it end with no word to its task."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_LIMIT_S)
        self._process = None

    def ask(self, wish: str) -> None:
        """`suspend`, `resume` or `abort` its task."""
        assert self._answers("--task", self._server.url, RESULT, wish)

    def said(self, *words: str) -> str:
        """What it answers to boinccmd."""
        return self._asked(*words).stdout

    def _answers(self, *words: str) -> bool:
        return self._asked(*words).returncode == 0

    def _asked(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["boinccmd", "--host", f"127.0.0.1:{self._port}", "--passwd", "password", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_LIMIT_S)

    def wait_until(self, holds: Callable[[], object], *, limit_s: float = _LIMIT_S) -> None:
        ends_at_s = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < ends_at_s, f"{self.log}\n{self.stderr}"
            time.sleep(0.2)

    def report(self) -> str:
        """What the client tells its project of the task, once it does."""
        self.wait_until(lambda: f"Computation for task {RESULT} finished" in self.log)
        if "COMPUTE_ERROR" in self.log:  # of which it tells its project when it likes to
            assert self._answers("--project", self._server.url, "update")
        self.wait_until(lambda: RESULT in self._server.reports)
        return self._server.reports[RESULT]

    @property
    def log(self) -> str:
        return (self._directory / "client.log").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What the app has said until now."""
        try:
            return (self.slot / "stderr.txt").read_text()
        except FileNotFoundError:
            return ""

    def processes(self) -> list[psutil.Process]:
        """Apps and what they have started, also of a client that is gone: who works in the slot."""
        return [process for process in psutil.process_iter() if _is_in(process, self.slot)]


def _is_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder) or any(str(folder) in word for word in process.cmdline())
    except (psutil.Error, OSError):
        return False


def _references(names: "zip[tuple[str, str]]") -> str:
    return "\n".join(
        f"<file_ref>\n<file_name>{name}</file_name>"
        f"{'<main_program/>' if opened_as == MAIN else f'<open_name>{opened_as}</open_name>'}\n</file_ref>"
        for name, opened_as in names
    )


def _one_tag_a_line(text: str) -> str:
    """As the client's reader of old wants it."""
    return re.sub(r"(/>|</\w+>)(?=<)", r"\1\n", text)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
