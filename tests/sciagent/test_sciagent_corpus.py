"""The corpus: answers are executed, splits keep families apart, and cross-retrieval never leaks."""

import ast
import random
from dataclasses import replace

import pytest

from lib.sciagent import retriever
from lib.sciagent.program import called_in, checked
from lib.sciagent.study import corpus, formulas, questions
from lib.sciagent.study.evaluation import right


@pytest.fixture(scope="module")
def asked(tools, warm):
    some = [t for t in tools if questions.askable(t)][::3]
    return questions.of_tools(some, tools, sandbox=warm, each=2, split="train", seed=0)


@pytest.fixture(scope="module")
def built(asked, tools):
    return corpus.Corpus.build([*asked[:60], *formulas.of_formulas(10, split="train", seed=0)], tools)


def words(built):
    index = retriever.WordIndex([t.name for t in built.tools], [t.indexed() for t in built.tools])
    return lambda queries: index.search(queries, 30)


def test_every_answer_is_what_its_program_gives(asked, tools, warm):
    found = warm.map([tools.job(q.program, q.functions) for q in asked])
    assert len(asked) > 60
    assert all(right(outcome.value, q.answer) for outcome, q in zip(found, asked, strict=True))


def test_questions_are_the_same_for_one_seed_and_differ_for_another(asked, tools, warm):
    some = [t for t in tools if questions.askable(t)][::3][:10]
    again = questions.of_tools(some, tools, sandbox=warm, each=2, split="train", seed=0)
    other = questions.of_tools(some, tools, sandbox=warm, each=2, split="train", seed=1)
    assert [q.text for q in again] == [q.text for q in asked[: len(again)]]
    assert {q.text for q in again}.isdisjoint({q.text for q in other})


def test_questions_name_every_number_of_their_call_and_not_the_function(asked):
    for q in asked:
        call = q.program.removeprefix("answer = ")
        assert q.functions[0] not in q.text
        for value in call[call.index("(") + 1 : -1].split(", "):
            assert value.rpartition("=")[2].strip("'\"/") in q.text


def test_training_and_test_wordings_share_no_template():
    assert set(questions.TEMPLATES["train"]).isdisjoint(questions.TEMPLATES["test"])
    texts = [{f.text for f in formulas.FORMULAS[s]} for s in ("train", "test")]
    assert texts[0].isdisjoint(texts[1])


def test_rewording_replaces_technical_words():
    draw = random.Random(0)
    assert questions.reworded("velocity of the fluid", draw, 1.0) == "speed of the fluid"
    assert questions.reworded("velocity of the fluid", draw, 0.0) == "velocity of the fluid"


def test_no_family_is_on_both_sides_of_the_split(tools):
    train, test = corpus.split_tools(list(tools))
    assert {corpus.unit_of_split(t) for t in train}.isdisjoint({corpus.unit_of_split(t) for t in test})
    assert len(train) + len(test) == len(tools)
    train, test = corpus.split_tools(list(tools), held_out_libraries=["ht"])
    assert {t.library for t in train} == {"numpy_financial"}


@pytest.mark.parametrize("seed", range(3))
def test_cross_retrieval_never_shows_a_questions_own_function(built, seed):
    own = {q.text: tool.name for q, tool in zip(built.questions, built.own, strict=True) if tool}
    samples = built.samples("cross", words(built), shown=4, seed=seed)
    assert len(samples) > 20
    for sample in samples:
        assert own.get(sample.question.text) not in sample.shown
        assert set(sample.question.functions) <= set(sample.shown)
        assert set(called_in(sample.program, sample.shown)) == set(sample.question.functions)
    others = {name for s in samples for name in s.shown} & set(own.values())
    assert others, "ad-hoc functions of other questions are distractors"


def test_functions_stand_in_the_order_of_their_ranks_unless_they_are_shuffled(built):
    retrieve = words(built)

    def out_of_order(shuffled):
        samples = built.samples("cross", retrieve, shown=4, seed=0, shuffled=shuffled)
        found = retrieve([f"{s.question.text} {s.question.plan}" for s in samples])
        rows = zip(samples, found, strict=True)
        return sum([row.index(n) for n in s.shown] != sorted(row.index(n) for n in s.shown) for s, row in rows)

    assert out_of_order(0.0) == 0 < out_of_order(0.5) < out_of_order(1.0)


def test_candidates_are_all_but_the_own(built):
    for number in range(0, len(built.questions), 7):
        names, own = set(built.candidates(number)), built.own[number]
        assert len(names) == len(built.tools) - (own is not None)
        assert own is None or own.name not in names


def test_own_function_samples_call_it_to_the_same_answer(built, warm):
    samples = [s for s in built.samples("own", words(built), shown=4, seed=0) if s.question.functions]
    found = warm.map([built.tools.job(s.program, s.shown) for s in samples])
    assert len(samples) > 30
    assert all(len(s.shown) == 1 for s in samples)
    wrong = [(s.program, o) for s, o in zip(samples, found, strict=True) if not right(o.value, s.question.answer)]
    assert wrong == []


@pytest.mark.parametrize("text", ["", "[-]", "0.152"])
def test_arguments_that_are_described_by_no_word_have_a_name_too(asked, tools, text):
    question = asked[0]
    tool = tools[question.functions[-1]]
    wordless = replace(tool, parameters=tuple(replace(p, text=text) for p in tool.parameters))
    own = corpus.own_function(question, type(tools)([wordless]), 0)
    ast.parse(own.source)
    assert all(p.name.isidentifier() for p in own.parameters)


def test_function_free_questions_call_nothing_and_are_mixed_in(built):
    free = [q for q in built.questions if not q.functions]
    assert len(free) == 10
    for q in free:
        checked(q.program, functions=())
        assert right(formulas.evaluated(q.program), q.answer)
    kept = [s for s in built.samples("cross", words(built), shown=4, seed=0) if not s.question.functions]
    assert len(kept) == 10
    assert all(s.shown for s in kept), "functions are shown, and not used"


def test_chained_questions_take_two_calls(warm):
    from lib.sciagent import Toolset

    fluids = Toolset.from_package("fluids", sandbox=warm)
    some = [
        t for t in fluids if questions.askable(t) and t.family in ("fluids.friction", "fluids.core", "fluids.fittings")
    ]
    found = questions.of_chains(some, fluids, sandbox=warm, most=8, split="train", seed=0)
    assert found
    for q in found:
        assert len(called_in(q.program, q.functions)) == 2


def test_every_solution_can_be_written_in_its_form_and_runs_to_the_same(built, warm):
    for mode in corpus.MODES:
        samples = built.samples(mode, words(built), shown=4, seed=0)
        written = [corpus.written_out(s, built.tools) for s in samples]
        possible = [(s, "".join(text for text, _ in w)) for s, w in zip(samples, written, strict=True) if w]
        assert len(possible) > 0.9 * len(samples)
        jobs = [built.tools.job(text, s.shown) for s, text in possible]
        for (s, text), outcome in zip(possible, warm.map(jobs), strict=True):
            assert right(outcome.value, s.question.answer), text


def test_an_unknown_mode_is_refused(built):
    with pytest.raises(ValueError, match="neither 'cross' nor 'own'"):
        built.samples("both", words(built), shown=4, seed=0)
