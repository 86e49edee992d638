"""Tiny random models of every family people use, and what each public method does with them: exact, or refused.

`python -m tests.families` writes the table `tests/FAMILIES.md`; `tests/test_families.py` compares it.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig

from lib import TenfoldError, root

TABLE = Path(__file__).with_name("FAMILIES.md")
VOCABULARY, WINDOW = 61, 6
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
# What follows a family's name is what it does that Llama does not.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Mistral, window": ("mistral", {"sliding_window": WINDOW}),
    "Qwen2, biases": ("qwen2", {}),
    "Qwen2, window": (
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "Qwen3, QK-norm": ("qwen3", {}),
    "Gemma-2, softcaps, windows": (
        "gemma2", {"sliding_window": WINDOW, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    ),
    "Gemma-3, windows": ("gemma3_text", {"sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "Granite, multipliers": (
        "granite", {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    ),
    "Cohere, logit scale": ("cohere", {"logit_scale": 0.25}),
    "Cohere-2, windows": ("cohere2", {"logit_scale": 0.25, "sliding_window": WINDOW}),
    "Phi-3, fused QKV": ("phi3", {"original_max_position_embeddings": 256}),
    "OLMo-2, QK-norm": ("olmo2", {}),
    "SmolLM3, NoPE layers": ("smollm3", {}),
    "Mixtral, experts": ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "GPT-NeoX, fused QKV": ("gpt_neox", {}),
    "Falcon, one KV head": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True}),
}  # fmt: skip
WITHOUT = {"gpt_neox": ("num_key_value_heads", "head_dim"), "falcon": ("num_key_value_heads", "head_dim")}

EXACT, REFUSED = "exact", "refused"


def tiny(family: str, *, seed: int = 0, **others: Any) -> PreTrainedModel:
    """Make a family's random model in float32, of other sizes where asked; the same seed gives the same weights."""
    kind, changes = FAMILIES[family]
    changes = changes | others
    sizes = {name: value for name, value in SIZES.items() if name not in WITHOUT.get(kind, ())}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | changes)))
    return model.float().eval()


def prompts(rows: int = 3, *, longest: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged prompts, padded on the left, and their attention mask."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCABULARY, (rows, longest), generator=generator)
    lengths = torch.linspace(longest, 4, rows).long()
    mask = torch.arange(longest) >= longest - lengths[:, None]
    return tokens * mask, mask.long()


@torch.inference_mode()
def alone(model: Any, row: torch.Tensor, *, new: int, stops: bool = True) -> list[int]:
    """Greedy continuation of one unpadded prompt by whole passes without a cache: what every method has to give."""
    tokens = row.tolist()
    for _ in range(new):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if stops and tokens[-1] == SIZES["eos_token_id"]:
            break
    return tokens[len(row) :]


def rows_alone(model: Any, tokens: torch.Tensor, mask: torch.Tensor, *, new: int) -> list[list[int]]:
    """`alone`, row by row."""
    return [alone(model, row[kept.bool()], new=new) for row, kept in zip(tokens, mask, strict=True)]


def decodes_speculatively(family: str) -> None:
    """TempSpec at T = 0: ragged prompts in one batch, two kinds of drafter, rollbacks, past the window."""
    from lib.tempspec import ModelDrafter, PromptLookupDrafter, SpeculativeDecoder

    target, tokens_and_mask = tiny(family), prompts()
    tokens, mask = tokens_and_mask
    wanted = rows_alone(target, tokens, mask, new=24)
    other = tiny(family, seed=1)
    with torch.no_grad():  # near enough to be accepted at times
        for mine, theirs in zip(other.parameters(), target.parameters(), strict=True):
            mine.copy_(theirs + 0.02 * mine)
    for drafter in (ModelDrafter(other), PromptLookupDrafter()):
        decoder = SpeculativeDecoder(target, drafter, gamma=3, temperature=0.0)
        output = decoder.generate(tokens, mask, max_new_tokens=24)
        for row, (length, want) in enumerate(zip(output.new_tokens.tolist(), wanted, strict=True)):
            made = output.sequences[row, tokens.shape[1] :][:length].tolist()
            assert made == want, f"row {row} is {made}, not {want}"


def compresses_the_cache(family: str) -> None:
    """LoRC: what the latent cache decodes is what the model with low-rank weights computes without one."""
    from lib import lorc

    model = tiny(family)
    plan = lorc.plan(model, 0.5, budget="uniform")
    reference = lorc.replace_weights(tiny(family), plan)
    tokens, mask = prompts()
    wanted = rows_alone(reference, tokens, mask, new=16)
    lorc.compress(model, ranks=plan)
    made = model.generate(tokens, attention_mask=mask, max_new_tokens=16, do_sample=False)
    for row, want in zip(made[:, tokens.shape[1] :].tolist(), wanted, strict=True):
        assert row[: len(want)] == want, f"{row} is not {want}"


def becomes_a_mixture(family: str) -> None:
    """GRIN's upcycling: one expert survives every choice, so the logits are the dense model's; and it can be copied."""
    import copy

    from lib import grin

    dense = tiny(family)
    tokens, mask = prompts()
    mixture = grin.upcycle(dense, 4, router_jitter_noise=0.0).eval()
    with torch.no_grad():
        made = mixture(tokens, attention_mask=mask).logits[mask.bool()]
        wanted = dense(tokens, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    mixture.train()(tokens, attention_mask=mask, labels=tokens).loss.backward()
    assert mixture.model.layers[0].mlp.router.weight.grad.abs().sum() > 0
    copied = copy.deepcopy(mixture).eval()(tokens, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(copied, wanted, rtol=1e-4, atol=1e-4)


def scores_continuations(family: str) -> None:
    """Log-probabilities of continuations, ragged rows in one batch, as a pass of each row alone gives them."""
    from lib.core import scoring

    model = tiny(family)
    tokens, mask = prompts(4)
    rows = [row[kept.bool()].tolist() for row, kept in zip(tokens, mask, strict=True)]
    batch = scoring.scored_batch(rows, [2] * len(rows))
    with torch.no_grad():
        made = batch.sums(scoring.log_probs(model, scoring.scored_states(model, batch), batch.targets))
        for total, row in zip(made.tolist(), rows, strict=True):
            scores = model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)
            wanted = sum(float(scores[at - 1, row[at]]) for at in range(2, len(row)))
            assert abs(total - wanted) < 1e-3, f"{total} is not {wanted}"


def samples_answers(family: str) -> None:
    """Greedy answers of many prompts at once, as preference pairs and Auto-Instruct's labels are made."""
    from lib.core import generation

    model = tiny(family)
    tokens, mask = prompts()
    rows = [row[kept.bool()].tolist() for row, kept in zip(tokens, mask, strict=True)]
    with torch.inference_mode():
        context, hidden = generation.read_groups(model, [[row, row[:-1] + [9]] for row in rows])
        made = generation.decode(context, hidden, max_new_tokens=12, stops=[SIZES["eos_token_id"]]).tokens
    for number, row in enumerate(rows):
        for twin, text in enumerate((row, row[:-1] + [9])):
            wanted = alone(model, torch.tensor(text), new=12)
            assert made[2 * number + twin] == wanted, f"{made[2 * number + twin]} is not {wanted}"


METHODS: dict[str, Callable[[str], None]] = {
    "TempSpec decodes": decodes_speculatively,
    "LoRC compresses": compresses_the_cache,
    "GRIN upcycles": becomes_a_mixture,
    "scores (core)": scores_continuations,
    "samples (core)": samples_answers,
}


def outcome(method: str, family: str) -> str:
    """Say "exact", or "refused: " and the sentence; a wrong answer, and an error from elsewhere, goes on up."""
    try:
        METHODS[method](family)
    except (ValueError, TenfoldError) as refusal:
        place = Path(traceback.extract_tb(refusal.__traceback__)[-1].filename)
        if root() / "lib" not in place.parents:  # a library's own complaint is no refusal of ours
            raise
        return f"{REFUSED}: {str(refusal).splitlines()[0]}"
    return EXACT


def table(outcomes: dict[tuple[str, str], str]) -> str:
    """Render outcomes as the page that is kept."""
    lines = [
        "# Families",
        "",
        "What each method does with a tiny random model of each family, ragged prompts in one padded batch, longer",
        f"than the window of {WINDOW} tokens where the family has one: **exact** (the same tokens, or numbers within",
        "rounding, as whole passes of each row alone give), or **refused** in one sentence.",
        "Written by `python -m tests.families`.",
        "",
        f"| family | {' | '.join(METHODS)} |",
        "|---|" + "---|" * len(METHODS),
    ]
    notes: list[str] = []
    for family in FAMILIES:
        cells = []
        for method in METHODS:
            verdict = outcomes[method, family]
            if verdict != EXACT:
                sentence = verdict.removeprefix(f"{REFUSED}: ")
                if sentence not in notes:
                    notes.append(sentence)
                verdict = f"refused ({notes.index(sentence) + 1})"
            cells.append(verdict)
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {sentence}" for number, sentence in enumerate(notes, start=1)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    found, wrong = {}, 0
    for a_method in METHODS:
        for a_family in FAMILIES:
            try:
                found[a_method, a_family] = outcome(a_method, a_family)
            except Exception as error:  # shown, and counted as wrong
                wrong += 1
                found[a_method, a_family] = f"WRONG {type(error).__name__}: {str(error).splitlines()[0][:100]}"
            print(f"{a_method:18s} {a_family:28s} {found[a_method, a_family][:150]}", flush=True)
    if wrong:
        sys.exit(f"{wrong} cells are wrong: the table was not written.")
    _, heading, others = TABLE.read_text(encoding="utf8").partition("\n## ")  # sections that others write
    TABLE.write_text(table(found) + heading + others, encoding="utf8")
