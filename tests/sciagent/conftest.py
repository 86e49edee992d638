"""One sandbox and the tools of two small libraries, harvested once for the session."""

import pytest

from lib.sciagent import Limits, Sandbox, Toolset


@pytest.fixture(scope="session")
def warm():
    with Sandbox(
        preload=["numpy", "pandas", "fluids", "ht", "numpy_financial"],
        allow_weaker=True,
        limits=Limits(seconds=30.0, cpu_seconds=5.0),
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def tools(warm):
    return Toolset.from_package("ht", sandbox=warm) | Toolset.from_package("numpy_financial", sandbox=warm)
