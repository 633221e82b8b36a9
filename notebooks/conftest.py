"""Notebooks are tests of their own, and each is done in three minutes: a tour that takes longer is not taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

MOST = 180.0  # seconds, on two cores


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.passed and call.duration > MOST:
        report.outcome = "failed"
        report.longrepr = f"{item.name} took {call.duration:.0f} s, and a notebook is to take {MOST:.0f} at most"
