from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_plots() -> None:
    """Here they are drawn."""
