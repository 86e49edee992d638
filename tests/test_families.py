"""A method that takes a user's model is exact on every family, or refuses it in one sentence: `tests/FAMILIES.md`."""

import pytest
import torch

from lib import grin
from tests import families

OUTCOMES: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("method", families.METHODS)
def test_a_method_is_exact_on_a_family_or_refuses_it(method, family):
    verdict = families.outcome(method, family)
    sentence = verdict.removeprefix(f"{families.REFUSED}: ")
    assert verdict == families.EXACT or (len(sentence) < 200 and sentence)
    row = next(line for line in families.TABLE.read_text().splitlines() if line.startswith(f"| {family} |"))
    cell = row.split("|")[2 + list(families.METHODS).index(method)].strip()
    assert cell.split(" ")[0] == verdict.split(":")[0], "the table has changed: run `python -m tests.families`"
    assert verdict == families.EXACT or sentence in families.TABLE.read_text()


def test_a_wrong_answer_is_neither(monkeypatch):
    made = families.tiny
    monkeypatch.setattr(families, "alone", lambda model, row, **options: [0])
    with pytest.raises(AssertionError):
        families.outcome("samples (core)", "Llama")
    assert made("Llama").config.model_type == "llama"


def test_an_error_from_elsewhere_is_no_refusal(monkeypatch):
    def stub(family):
        raise NotImplementedError("later")

    def complaint(family):
        torch.zeros(2).numpy().reshape(3)  # numpy's ValueError

    for made, error in ((stub, NotImplementedError), (complaint, ValueError)):
        monkeypatch.setitem(families.METHODS, "samples (core)", made)
        with pytest.raises(error):
            families.outcome("samples (core)", "Llama")


def test_grin_refuses_reentrant_checkpointing_and_is_exact_with_the_other():
    tokens, mask = families.prompts()
    gradients = []
    for checkpointed in (False, True):
        model = grin.upcycle(families.tiny("Llama"), 4, router_jitter_noise=0.0).train()
        with pytest.raises(ValueError, match="use_reentrant=False"):
            model.activation_checkpointing_enable({"use_reentrant": True})
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model(tokens, attention_mask=mask, labels=tokens).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-6)
