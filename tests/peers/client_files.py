"""What a client finds in its directory: an account, preferences, and tasks whose files it takes for downloaded.

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
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAIN = "vmwrapper"
SECRET = "secret-of-the-volunteer"

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
<suspend_cpu_usage>0</suspend_cpu_usage><cpu_usage_limit>{cpu_usage_limit}</cpu_usage_limit>
<max_ncpus_pct>100</max_ncpus_pct>
<leave_apps_in_memory>{leave_apps_in_memory:d}</leave_apps_in_memory>
<disk_max_used_gb>0</disk_max_used_gb><disk_max_used_pct>100</disk_max_used_pct><disk_min_free_gb>0.1</disk_min_free_gb>
<ram_max_used_busy_frac>90</ram_max_used_busy_frac><ram_max_used_idle_frac>90</ram_max_used_idle_frac>
</global_preferences>
"""
_ACCOUNT = """\
<account>
<master_url>{url}</master_url>
<authenticator>{secret}</authenticator>
<project_name>stub</project_name>
</account>
"""
_STATE = """\
<client_state>
<project>
<master_url>{url}</master_url><project_name>stub</project_name>
<user_name>R&amp;D &lt;1> "Zoë"</user_name>
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
{workunits}
{results}
<platform_name>x86_64-pc-linux-gnu</platform_name>
<core_client_major_version>7</core_client_major_version>
<core_client_minor_version>20</core_client_minor_version>
<core_client_release>5</core_client_release>
<user_run_request>1</user_run_request>
<user_network_request>2</user_network_request>
</client_state>
"""
_WORKUNIT = """\
<workunit>
<name>{name}</name><app_name>app</app_name><version_num>100</version_num>
<rsc_fpops_est>1e12</rsc_fpops_est><rsc_fpops_bound>1e15</rsc_fpops_bound>
<rsc_memory_bound>1e9</rsc_memory_bound><rsc_disk_bound>{disk_bound_bytes}</rsc_disk_bound>
{input_refs}
</workunit>
"""
_RESULT = """\
<result>
<name>{name}</name><state>2</state><platform>x86_64-pc-linux-gnu</platform><version_num>100</version_num>
<plan_class></plan_class><wu_name>{workunit}</wu_name>
<report_deadline>{deadline}</report_deadline><received_time>{now}</received_time>
{output_refs}
</result>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workunit:
    """A job for the app. Files have other names than those under which the app opens them."""

    inputs: Mapping[str, bytes]
    outputs: Sequence[str]
    disk_bound_bytes: int = 4_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What the volunteer has chosen."""

    leave_apps_in_memory: bool = False
    cpu_usage_limit: int = 100
    """In percent of the time."""


class ClientFiles:
    """The files of a client in its directory."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self._url = url
        self._project = re.sub(r"[^\w.]", "_", url.removeprefix("http://").rstrip("/"))
        self.project_dir = directory / "projects" / self._project

    def write(self, app_files: Mapping[str, bytes], workunits: Sequence[Workunit], preferences: Preferences) -> None:
        """The result of the first workunit is `wu1_0`, and so on; its outputs `wu1_0_0` and so on. MAIN is executed."""
        self.project_dir.mkdir(parents=True)
        app_names = {name: f"app_1_{name}" for name in app_files}
        files = [self._stored(app_names[name], content) for name, content in app_files.items()]
        jobs, results = [], []
        for number, workunit in enumerate(workunits, start=1):
            name = f"wu{number}"
            inputs = {opened: f"{name}_{opened}" for opened in workunit.inputs}
            outputs = {opened: f"{name}_0_{place}" for place, opened in enumerate(workunit.outputs)}
            files += [self._stored(inputs[opened], content) for opened, content in workunit.inputs.items()]
            files += [self._uploaded(output) for output in outputs.values()]
            bound = workunit.disk_bound_bytes
            jobs.append(_WORKUNIT.format(name=name, disk_bound_bytes=bound, input_refs=_references(inputs.items())))
            result = {"name": f"{name}_0", "workunit": name, "output_refs": _references(outputs.items())}
            results.append(_RESULT.format(**result, now=time.time(), deadline=time.time() + 86400))
        state = _STATE.format(
            url=self._url,
            files="\n".join(files),
            app_refs=_references(app_names.items()),
            workunits="\n".join(jobs),
            results="\n".join(results),
        )
        chosen = _PREFERENCES.format(
            cpu_usage_limit=preferences.cpu_usage_limit, leave_apps_in_memory=preferences.leave_apps_in_memory
        )
        for name, text in {
            "client_state.xml": _one_tag_a_line(state),
            f"account_{self._project}.xml": _ACCOUNT.format(url=self._url, secret=SECRET),
            "cc_config.xml": _one_tag_a_line(_CONFIGURATION),
            "global_prefs_override.xml": _one_tag_a_line(chosen),
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
            f"{'<executable/>' if is_main else ''}<download_url>{self._url}{name}</download_url>\n</file>"
        )

    def _uploaded(self, name: str) -> str:
        return (
            f"<file>\n<name>{name}</name><max_nbytes>1e8</max_nbytes><status>0</status>"
            f"<upload_url>{self._url}upload</upload_url>\n</file>"
        )


def _references(names: Iterable[tuple[str, str]]) -> str:
    """Of files that the app opens by the first name of each pair."""
    return "\n".join(
        f"<file_ref>\n<file_name>{name}</file_name>"
        f"{'<main_program/>' if opened == MAIN else f'<open_name>{opened}</open_name>'}\n</file_ref>"
        for opened, name in names
    )


def _one_tag_a_line(text: str) -> str:
    """As the client's reader of old wants it."""
    return re.sub(r"(/>|</\w+>)(?=<)", r"\1\n", text)
