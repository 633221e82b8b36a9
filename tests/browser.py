"""A real browser for the tests of pages: where it is, and where what it saw is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).resolve().parent.parent / ".screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium_path() -> str:
    """Chromium or Chrome on the PATH; a machine without one skips, CI does not."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is not None:
        return found
    missing = "no Chromium or Chrome on the PATH: pages are not looked at (Debian: apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def playwright_api() -> Any:
    """Playwright, which drives the browser; a machine without it skips the module that asks, CI does not."""
    if os.environ.get("CI"):
        from playwright import sync_api

        return sync_api
    return pytest.importorskip("playwright.sync_api", reason="pages are driven by Playwright: pip install 'taia-lens[test]'")
