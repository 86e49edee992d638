"""The three methods are exact on every family and task of diffusers, or refuse it: the second table of FAMILIES.md."""

import pytest

from tests.families import TABLE
from tests.multilora import families


@pytest.mark.parametrize("task", families.TASKS)
@pytest.mark.parametrize("method", families.METHODS)
def test_a_method_is_exact_on_a_family_or_refuses_it(method, task):
    verdict, _, sentence = families.outcome(method, task).partition(": ")
    page = TABLE.read_text().partition(families.HEADING)[2]
    row = next(line for line in page.splitlines() if line.startswith(f"| {task} |"))
    cell = row.split("|")[2 + list(families.METHODS).index(method)].strip()
    assert cell.split(" ")[0] == verdict, "the table has changed: run `python -m tests.multilora.families`"
    assert not sentence or (sentence in page and "\n" not in sentence)
