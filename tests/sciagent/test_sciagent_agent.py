"""Constrained decoding, training and generation at tiny size, and the agent's loop with a scripted model."""

import ast
from dataclasses import replace

import pytest
import torch

from lib.core.chat import Decoding, Reply
from lib.core.local_chat import LocalChat
from lib.sciagent import Execution, Toolset, agent, decoding, retriever, trainer
from lib.sciagent.grammar import ARITHMETIC, Choice, Free, ProgramGrammar, choices_of
from lib.sciagent.program import called_in, checked
from lib.sciagent.study import science_tasks

POSSIBLE = [
    "", "2", "l", "2 * pi * 3**2", "sqrt(2) / (1 +", "[1, 2", "round(sq", "step1 + st", "step1 if step1 > 1 else 2",
]  # fmt: skip
IMPOSSIBLE = [
    " 2", "\n", "os.", "y + 1", "3;", "(lambda", "{", "2)", "'a'.", "open(", "round(x=", "2 = 3", "step2 + 1",
]  # fmt: skip


def arithmetic():
    """What the line of an expression allows, after a line that assigned step1."""
    steps = ProgramGrammar([], "").steps()
    next(steps)
    for picked in (ARITHMETIC, "step1 = ", "1\n", ARITHMETIC):
        steps.send(picked)
    return steps.send("answer = ").allows


@pytest.mark.parametrize("text", POSSIBLE)
def test_what_can_still_become_an_expression_goes_on(text):
    assert arithmetic()(text)


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_what_names_something_else_is_stopped_at_once(text):
    assert not arithmetic()(text)


def test_every_prefix_of_an_expression_is_allowed_and_it_may_end_only_when_complete():
    allows, expression = arithmetic(), "round(2 * sqrt(step1), 2) + max([1, 2.5e-3])"
    assert all(allows(expression[:i]) for i in range(len(expression) + 1))
    assert allows(expression + "\n")
    for unfinished in ("", "3 +", "round(2", "st", "1 2", "round"):
        assert not allows(unfinished + "\n")


class Tokenizer:
    """Characters as tokens, in the shape that `decoding.generate` asks for."""

    pad_token_id, eos_token_id, eos_token = 0, 1, "<eos>"

    def __call__(self, texts, *, padding=False, add_special_tokens=False, return_tensors=None):
        from transformers import BatchEncoding

        rows = [self.encode(t) for t in ([texts] if isinstance(texts, str) else texts)]
        if return_tensors is None:
            return BatchEncoding({"input_ids": rows[0]})
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def encode(self, text, *, add_special_tokens=False):
        parts = text.split(self.eos_token)
        ids = [[ord(c) % 126 + 2 for c in part] for part in parts]
        return [i for n, part in enumerate(ids) for i in ([1] if n else []) + part]

    def decode(self, ids):
        return "".join(self.eos_token if i == 1 else chr(max(i - 2, 0)) for i in ids)

    def batch_decode(self, rows, *, skip_special_tokens):
        return [self.decode([i for i in row if i > 1]) for row in rows]


@pytest.fixture(scope="module")
def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=130, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), Tokenizer()


QUESTIONS = ["x 30.5, y 25, z 10 and w 20", "Mean difference? The values are 1, 2, 3.25 and 4."]


def test_constrained_generation_writes_programs_of_shown_functions_only(tiny, tools):
    model, tokenizer = tiny
    grammars = [ProgramGrammar([tools["LMTD"]], q) for q in QUESTIONS]
    held = decoding.generate(model, tokenizer, QUESTIONS, grammars)
    for text, grammar in zip(held, grammars, strict=True):
        tree = checked(text, functions=["LMTD"])
        assert "".join(part for part, _ in choices_of(text, grammar)) == text
        assert ast.unparse(tree).splitlines()[-1].startswith("answer = ")


def slow(model, tokenizer, prompt, grammar):
    """The same choices with the whole text read anew at every token."""
    text, steps = prompt, grammar.steps()
    step = next(steps)
    while True:
        line = ""
        while (
            line == ""
            or (isinstance(step, Free) and not line.endswith("\n"))
            or (isinstance(step, Choice) and line not in step.options)
        ):
            logits = model(torch.tensor([tokenizer.encode(text + line)])).logits[0, -1]
            for token in logits.argsort(descending=True).tolist():
                tried = line + tokenizer.decode([token])
                fits = isinstance(step, Choice) and any(o.startswith(tried) for o in step.options)
                if fits or (isinstance(step, Free) and step.allows(tried)):
                    break
            line = tried
        text += line
        try:
            step = steps.send(line)
        except StopIteration:
            return text[len(prompt) :]


def test_forced_text_in_batches_gives_what_token_by_token_gives(tiny, tools):
    model, tokenizer = tiny
    shown = [tools["LMTD"], tools["fv"]]
    grammars = [ProgramGrammar(shown, q) for q in QUESTIONS]
    together = decoding.generate(model, tokenizer, QUESTIONS, grammars)
    assert together == [slow(model, tokenizer, q, g) for q, g in zip(QUESTIONS, grammars, strict=True)]


def test_odds_of_the_ranks_weigh_in_the_choice_of_a_function(tiny, tools):
    model, tokenizer = tiny
    shown = [tools["LMTD"], tools["fv"]]

    def chosen(odds):
        (text,) = decoding.generate(model, tokenizer, QUESTIONS[:1], [ProgramGrammar(shown, QUESTIONS[0], odds)])
        return called_in(text, ["LMTD", "fv"])[:1]

    assert chosen((1.0, 1e-9)) == ("LMTD",)
    assert chosen((1e-9, 1.0)) == ("fv",)
    assert chosen((0.2, 0.2)) == chosen(())  # odds that say nothing
    action = agent.Action(model, tokenizer, constrained=True, rank_odds=(0.6, 0.2))
    with pytest.raises(ValueError, match="each must be above 0"):
        replace(action, rank_odds=(0.6, 0.0))
    assert [action._odds(n) for n in (0, 1, 2, 4)] == [(), (0.6,), (0.6, 0.2), (0.6, 0.2, 0.2, 0.2)]


def test_training_teaches_the_completion_and_saves_the_adapter(tiny, tmp_path):
    import copy

    model, tokenizer = tiny
    pairs = [
        trainer.PromptCompletion(f"Question: {a}\nPlan:", ((f" {b}", ()),)) for a, b in (("a", "first"), ("b", "other"))
    ] * 4
    recipe = trainer.LoraRecipe(rank=8, learning_rate=1e-2, epochs=80, batch_size=4)
    adapted = trainer.train(copy.deepcopy(model), tokenizer, pairs, recipe, seed=0)
    assert completed(adapted, tokenizer, pairs[:2]) == [" first", " other"]
    trainer.save(adapted, tmp_path)
    again = trainer.load(copy.deepcopy(model), tmp_path)
    assert completed(again, tokenizer, pairs[:2]) == [" first", " other"]


def completed(model, tokenizer, pairs):
    greedy = Decoding(temperature=0.0, max_tokens=10)
    local = LocalChat(model, tokenizer, template=False)
    return [reply.text for reply in local.complete_many([pair.prompt for pair in pairs], greedy)]


def test_the_loss_is_the_learned_tokens_cross_entropy_whatever_the_padding(tiny):
    model, tokenizer = tiny
    rows = [([5, 6, 7], [8, 9], [True, True]), ([5], [6, 7, 8, 9, 10], [False, True, True, False, True])]
    found = trainer.completion_loss(model, rows, pad=0)
    terms = []
    for prompt, completion, learned in rows:
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids).logits[0]
        losses = [-logits[len(prompt) + i - 1].log_softmax(-1)[t] for i, t in enumerate(completion)]
        terms += [loss for loss, use in zip(losses, learned, strict=True) if use]
    torch.testing.assert_close(found, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)


def test_gradients_by_parts_are_the_batchs(tiny):
    import copy

    model, tokenizer = tiny
    rows = [(list(range(5, 5 + n)), [8, 9, 10][:m], [True, True, False][:m]) for n, m in ((9, 3), (3, 2), (20, 3))]
    found = []
    given = ([4, 5], [6, 7], [False, False])  # nothing of it is learned, not even as a part of its own
    for tokens_at_once in (10_000, 24, 4):
        own = copy.deepcopy(model)
        parts = list(trainer.loss_parts(own, [*rows, given], pad=0, tokens_at_once=tokens_at_once))
        assert len(parts) == {10_000: 1, 24: 2, 4: 3}[tokens_at_once]
        sum(parts).backward()
        found.append((float(sum(parts).detach()), [p.grad for p in own.parameters() if p.grad is not None]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        torch.testing.assert_close(gradients, found[0][1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        found[0][0], float(trainer.completion_loss(model, rows, pad=0).detach()), atol=1e-6, rtol=0
    )


def test_only_tokens_that_tell_options_apart_are_learned(tiny):
    pair = trainer.PromptCompletion(
        "p", (("answer = ", ("answer = ",)), ("abc\n", ("abc\n", "abd\n", "x\n")), ("1+1\n", ()))
    )
    _, ids, learned = trainer._encoded(tiny[1], pair)
    assert len(ids) == len("answer = abc\n1+1\n") + 1
    assert learned == [False] * 9 + [True, False, True, False] + [True] * 5
    _, _, learned = trainer._encoded(tiny[1], trainer.PromptCompletion("p", (("a\n", ("a\n", "b\n")),)))
    assert learned == [True, False, False], "the end follows from the form"


def test_nothing_to_train_on_is_refused(tiny):
    with pytest.raises(ValueError, match="no pairs"):
        trainer.train(*tiny, [], trainer.LoraRecipe(), seed=0)


class Scripted:
    """Stands for a model, held to a grammar or free: says what it is told, and keeps the prompts."""

    def __init__(self, monkeypatch, answers):
        self.answers, self.prompts = list(answers), []
        monkeypatch.setattr(decoding, "generate", self)
        monkeypatch.setattr(agent, "LocalChat", lambda *_, **__: self)

    def __call__(self, model, tokenizer, prompts, grammars, **_):
        self.prompts += prompts
        return [self.answers.pop(0) for _ in prompts]

    def complete_many(self, prompts, _):
        self.prompts += prompts
        return [Reply((self.answers.pop(0),)) for _ in prompts]


def words_index(tools):
    return retriever.WordIndex([t.name for t in tools], [t.indexed() for t in tools])


def new_agent(tools, warm, *, constrained=True):
    action = agent.Action(None, None, constrained=constrained, instruction="")
    return agent.SciAgent(agent.Planner(None, None), action, tools, warm, words_index)


FREE = """Here it is:
```python
import math
total = 0
for i in range(3):
    total += LMTD(100, 60, 30, 40.2)
print(total / 3)
```"""


def test_a_free_program_is_taken_from_its_fences_and_may_loop_import_and_print(monkeypatch, tools, warm):
    script = Scripted(monkeypatch, ["a plan", "```python\nimport os\n```", FREE])
    trace = new_agent(tools, warm, constrained=False).solve("Log mean temperature difference?")
    assert [a.execution.kind for a in trace.attempts] == ["error", "ok"]
    assert "Failed program:\nimport os\nError: ImportError: os may not be imported" in script.prompts[2]
    assert trace.answer == pytest.approx(43.200409294131525)
    assert trace.attempts[1].called == ("LMTD",)
    assert "Thi: " in script.prompts[1], "a free program's functions are shown whole"


def test_a_shown_function_defined_anew_does_not_hide_the_real_one(monkeypatch, tools, warm):
    anew = "def LMTD(Thi, Tho, Tci, Tco):\n    return 0\n\nanswer = LMTD(100, 60, 30, 40.2)"
    Scripted(monkeypatch, ["a plan", anew])
    trace = new_agent(tools, warm, constrained=False).solve("Log mean temperature difference?")
    assert trace.answer == pytest.approx(43.200409294131525)
    assert trace.program.strip() == "answer = LMTD(100, 60, 30, 40.2)"


class Chat:
    """An endpoint that says what it is told, and keeps what it is asked."""

    model = "scripted"

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def complete(self, messages, decoding=None, *, attempt=0):
        self.asked.append((messages, decoding))
        return Reply((self.texts.pop(0),))


def test_any_chat_model_plans_and_acts(tools, warm):
    chat = Chat("Use the log mean difference.", FREE)
    told = agent.SciAgent(agent.Planner(chat, instruction=agent.TO_PLAN), agent.Action(chat), tools, warm, words_index)
    assert told.solve("Log mean temperature difference?").answer == pytest.approx(43.200409294131525)
    assert chat.asked[0][0].startswith(agent.TO_PLAN)
    assert chat.asked[1][0].startswith(agent.TO_ACT)
    assert {decoding.temperature for _, decoding in chat.asked} == {0.0}


def test_a_question_goes_from_plan_to_answer(monkeypatch, tools, warm):
    call = "# mean difference\nanswer = LMTD(Thi=100, Tho=60, Tci=30, Tco=40.2)"
    script = Scripted(monkeypatch, [" log-mean temperature difference of a heat exchanger\nmore", call])
    trace = new_agent(tools, warm).solve("Log mean temperature difference?")
    assert trace.plan == "log-mean temperature difference of a heat exchanger"
    assert "LMTD" in trace.functions
    assert len(trace.functions) == 3
    assert trace.answer == pytest.approx(43.200409294131525)
    assert trace.attempts[0].called == ("LMTD",)
    assert "LMTD(" in script.prompts[1]
    assert str(trace).splitlines()[-1].startswith("Output     43.2")


def test_an_error_is_shown_to_the_model_once(monkeypatch, tools, warm):
    script = Scripted(monkeypatch, ["p", "answer = 1 / 0", "answer = 2"])
    trace = new_agent(tools, warm).solve("q")
    assert [a.execution.kind for a in trace.attempts] == ["error", "ok"]
    assert trace.answer == 2
    assert "Failed program:\nanswer = 1 / 0\nError: ZeroDivisionError" in script.prompts[2]
    assert "Corrected  answer = 2" in str(trace)
    script = Scripted(monkeypatch, ["p", "# only words", "answer = 3"])
    assert new_agent(tools, warm).solve("q").answer == 3
    assert "Error: the program gives no answer" in script.prompts[2]
    Scripted(monkeypatch, ["p", "answer = 1 / 0", "answer = 1 / 0"])
    assert new_agent(tools, warm).solve("q").output.startswith("ZeroDivisionError")


def test_an_instruction_goes_before_the_actions_prompt(monkeypatch, tools, warm):
    script, told = Scripted(monkeypatch, ["p", "answer = 2"]), new_agent(tools, warm)
    told.action = replace(told.action, instruction="Be exact.")
    told.solve("q")
    assert [prompt.startswith("Be exact.\n\nFunctions:") for prompt in script.prompts] == [False, True]


def test_swapping_the_toolset_needs_nothing_else(monkeypatch, tools, warm, as_installed):
    Scripted(monkeypatch, ["p", "answer = fv(0.1, 2, -1, -10)"])
    assert new_agent(tools, warm).swap(tools.subset({"fv"})).solve("future value").answer == pytest.approx(14.2)
    with pytest.raises(ValueError, match="the toolset is empty"):
        new_agent(Toolset(), warm)
    with pytest.raises(ValueError, match="not a list: use solve_all"):
        new_agent(tools, warm).solve(["one", "two"])
    with pytest.raises(ValueError, match="this is one text: use solve"):
        new_agent(tools, warm).solve_all("one")
    with pytest.raises(ValueError, match="a question is empty"):
        new_agent(tools, warm).solve("  ")


def test_a_program_that_calls_what_was_not_shown_never_runs(monkeypatch, tools, warm):
    Scripted(monkeypatch, ["p", "answer = irr([1])", "import os"])
    trace = new_agent(tools.subset({"fv"}), warm).solve("q")
    assert [a.execution.kind for a in trace.attempts] == ["refused", "refused"]
    assert trace.answer is None
    assert isinstance(trace.attempts[0].execution, Execution)


def test_science_tools_answer_science_tasks(warm):
    tools = science_tasks.science_toolset(warm)
    rows = science_tasks.science_tasks(2, seed=0)
    assert {row["function"] for row in rows} == {tool.name for tool in tools}
    first = next(row for row in rows if row["task"] == "ph_calculation")
    wanted = float(first["ideals"][0])
    assert science_tasks.solved(first, wanted)
    assert not science_tasks.solved(first, wanted + 0.2)
    assert not science_tasks.solved(first, None)
    assert called_in("answer = ph_of_acid(molarity=0.1, dissociation=1)", ["ph_of_acid"])
