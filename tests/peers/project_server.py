"""As much of a BOINC project's server as a client with one task needs: it takes its outputs and its report."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_RESULT = re.compile(r"<result>\s*<name>([^<]*)</name>\s*<final_cpu_time>.*?</result>", re.DOTALL)
_TRICKLE_UP = re.compile(r"<msg_from_host>.*?</msg_from_host>", re.DOTALL)
_RESULT_NAME = re.compile(r"<result_name>([^<]*)</result_name>")
_FILE_NAME = re.compile(rb"<name>([^<]*)</name>")


class ProjectServer(ThreadingHTTPServer):
    """Source of its protocol: BOINC's sched/ and client/, as version 7.20.5 of the client was seen to use it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/stub/"
        self.uploads: dict[str, bytes] = {}
        self.reports: dict[str, str] = {}
        """What the client said of each result that it reported."""
        self.trickles_up: list[str] = []
        self.trickle_down: str | None = None
        """What the app of each trickle-up is answered."""

    def answer_upload(self, request: bytes) -> str:
        if b"<get_file_size>" in request:
            return "<data_server_reply><status>0</status><file_size>0</file_size></data_server_reply>\n"
        head, _, content = request.partition(b"<data>\n")
        name = _FILE_NAME.search(head)
        assert name is not None
        self.uploads[name[1].decode()] = content
        return "<data_server_reply>\n    <status>0</status>\n</data_server_reply>\n"

    def answer_schedule(self, request: bytes) -> str:
        text = request.decode(errors="replace")
        reports = {found[1]: found[0] for found in _RESULT.finditer(text)}
        trickles = _TRICKLE_UP.findall(text)
        self.reports |= reports
        self.trickles_up += trickles
        taken = "".join(f"<result_ack>\n<name>{name}</name>\n</result_ack>\n" for name in reports)
        return f"""\
<scheduler_reply>
<scheduler_version>800</scheduler_version>
<master_url>{self.url}</master_url>
<request_delay>2</request_delay>
<project_name>stub</project_name>
<userid>1</userid>
<hostid>1</hostid>
{taken}{"".join(map(self._answer, trickles))}</scheduler_reply>
"""

    def _answer(self, trickle: str) -> str:
        name = _RESULT_NAME.search(trickle)
        if self.trickle_down is None or name is None:
            return ""
        return (
            f"<message_ack/>\n<trickle_down>\n<result_name>{name[1]}</result_name>\n<time>{time.time():.0f}</time>\n"
            f"{self.trickle_down}\n</trickle_down>\n"
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ProjectServer

    def do_GET(self) -> None:
        self._send(f"<html><head></head><body><!--\n<scheduler>{self.server.url}sched</scheduler>\n--></body></html>\n")

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.answer_upload if self.path.endswith("/upload") else self.server.answer_schedule
        self._send(answer(request))

    def _send(self, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def project_server() -> Iterator[ProjectServer]:
    """A server on the loopback, for the length of the block."""
    with ProjectServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
