import nbformat
import pytest

CLEAN = "value = 1  # a number\nseed = 0  # seed"


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A little house of its own: notebooks, profiles, figures and data under tmp_path."""
    for variable, folder in {"NOTEBOOKS": "notebooks", "FIGURES": "figures", "DATA": "data"}.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(f"TENFOLD_{variable}", str(tmp_path / folder))
    monkeypatch.delenv("TENFOLD_CACHE", raising=False)  # the house's own data folder holds its cache
    (tmp_path / "notebooks" / "profiles").mkdir()
    for profile in ("smoke", "cpu", "gpu"):
        (tmp_path / "notebooks" / "profiles" / f"{profile}.toml").write_text('description = "a profile"\n')
    return tmp_path


@pytest.fixture
def write_notebook(house):
    """Write a notebook of code cells; the first is tagged `parameters` unless said otherwise."""

    def write(*cells, name="05_trap.ipynb", tag_first=True, kernelspec=True):
        notebook = nbformat.v4.new_notebook()
        if kernelspec:
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
        if tag_first:
            notebook.cells[0].metadata["tags"] = ["parameters"]
        path = house / "notebooks" / name
        nbformat.write(notebook, path)
        return path

    return write
