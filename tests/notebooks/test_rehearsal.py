"""The gpu profile's notebooks reach their last cell on tiny stand-ins, every tensor where its model is."""

import json

import pytest

from lib import TenfoldError
from lib.lab import paths, provenance, rehearsal
from lib.zoo import hub

TURNS = 5  # of commits in a row, after which every notebook has been rehearsed; `make rehearse` rehearses all
PAPERS = list(paths.paper_notebooks())


@pytest.mark.notebook
@pytest.mark.timeout(600)
@pytest.mark.parametrize("paper", PAPERS[provenance.commits() % TURNS :: TURNS])
def test_a_gpu_notebook_reaches_its_last_cell(paper, tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_FIGURES", str(tmp_path))
    (outcome,) = rehearsal.rehearse([paper])
    assert outcome.reason == ""


def test_a_tensor_left_on_the_cpu_is_found(tmp_path, monkeypatch):
    """Taking `.to(run.device)` out of one cell turns the rehearsal red."""
    source = paths.notebook_of("grin")
    notebook = json.loads(source.read_text())
    left_out = ".to(run.device)"
    changed = 0
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and left_out in text and not changed:
            cell["source"], changed = text.replace(left_out, "", 1), 1
    assert changed, "the notebook moves nothing to the device"
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("profiles", "rehearsal.toml"):
        (folder / name).symlink_to(paths.notebooks_dir() / name)
    (folder / source.name).write_text(json.dumps(notebook))
    for other in paths.notebooks_dir().glob("*.ipynb"):
        if other.name != source.name:
            (folder / other.name).symlink_to(other)
    monkeypatch.setenv("TENFOLD_NOTEBOOKS", str(folder))
    monkeypatch.setenv("TENFOLD_FIGURES", str(tmp_path / "figures"))
    (outcome,) = rehearsal.rehearse(["grin"])
    assert "Expected all tensors to be on the same device" in outcome.reason


def test_a_model_without_a_stand_in_is_refused(monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(hub, "stand_in", rehearsal.StandIns(rehearsal.script()))
    with pytest.raises(TenfoldError, match="has no stand-in for 'nobody/nothing'"):
        hub.from_hub(AutoModelForCausalLM.from_pretrained, "nobody/nothing", ())


def test_a_stand_in_is_of_the_models_own_class():
    from transformers import AutoModelForCausalLM, MistralForCausalLM

    give = rehearsal.StandIns(rehearsal.script())
    model = give(AutoModelForCausalLM.from_pretrained, "mistralai/Mistral-7B-v0.1")
    assert isinstance(model, MistralForCausalLM)
    assert model.config.sliding_window == 4096
