"""One sandbox and the tools of two small libraries, harvested once for the session."""

import pytest

from lib.sciagent import Sandbox, Toolset


@pytest.fixture(scope="session")
def warm():
    with Sandbox(preload=["numpy", "pandas", "fluids", "ht", "numpy_financial"], allow_weaker=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def tools(warm):
    return Toolset.from_package("ht", sandbox=warm) | Toolset.from_package("numpy_financial", sandbox=warm)
