"""For all tests: a run can demand that tests with a marker really ran, and the end says what was skipped."""

import signal
from collections import Counter

import hypothesis
import pytest

from .turns import take_turns


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="MARKER",
        help="fail unless tests with this marker passed and none of them was skipped",
    )


class RequiredMarkers:
    """Counts how the tests of each required marker ended, and fails the run that could not run them."""

    def __init__(self, markers: list[str]) -> None:
        self._outcomes: dict[str, Counter[str]] = {marker: Counter() for marker in markers}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            for marker in self._outcomes.keys() & report.keywords.keys():
                self._outcomes[marker][report.outcome] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for marker, outcomes in self._outcomes.items():
            if outcomes["skipped"] or not outcomes["passed"]:
                print(f"\nrequired marker {marker!r}: {outcomes['passed']} passed, {outcomes['skipped']} skipped")
                session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    # In the background a shell starts us deaf to Ctrl-C, and nohup to a closed terminal; what we start must hear both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    hypothesis.settings.register_profile("unhurried", deadline=None)  # no test is timed
    hypothesis.settings.load_profile("unhurried")
    take_turns(config)
    is_worker = hasattr(config, "workerinput")  # one of pytest-xdist's, whose controller hears how every test ended
    if not is_worker and (markers := config.getoption("--require")):
        config.pluginmanager.register(RequiredMarkers(markers))
