"""The real model and real tasks, loaded once."""

import pytest

from lib import zoo


@pytest.fixture(scope="session")
def lm():
    return zoo.load_lm("smollm2-135m-instruct", dtype="float32")
