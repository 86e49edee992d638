"""No test may reach for the hub, open a window, or write into the repository's own folders."""

import os

import nbformat  # noqa: F401 - first, since its import takes a second now and seven beside torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items):
    """Whole notebooks first: what is short then fills the two workers' last minute evenly."""
    items.sort(key=lambda item: item.get_closest_marker("notebook") is None)
