"""The browser that pages are opened in."""

from __future__ import annotations

import pytest
from browser import find_chromium


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium."""
    found = find_chromium()
    if found is None:
        pytest.fail("no Chromium here; install it (apt-get install chromium) or name it in CHROMIUM")
    return found
