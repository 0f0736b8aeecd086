"""How long parsers of what strangers write are fuzzed: more than 10,000 cases in `make test`, and FUZZ of each test."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

_SETTINGS = settings(
    max_examples=int(os.environ.get("FUZZ", "600")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def fuzzed(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a property test of a parser; goes above `given`."""
    marked: Callable[..., Any] = pytest.mark.fuzz(_SETTINGS(test))
    return marked
