import gc
import tracemalloc
import zipfile
from types import SimpleNamespace

import pytest

from lib import TenfoldError, zoo
from lib.usergpt import Annotation, Conversation, load_taxonomy
from lib.usergpt.annotation import Share, annotate_corpus, read_annotations, share_of_process
from lib.usergpt.study.families import evals_families, hub_task_counts, lm_eval_families, summary
from lib.usergpt.study.requests import task_phrase
from lib.usergpt.taxonomy import load_gold


@pytest.fixture(scope="module")
def harness():
    return lm_eval_families()


def test_the_harness_is_read_inside_its_wheel(harness):
    by_id = {family.id: family for family in harness}
    assert len(by_id) == len(harness) > 200
    assert by_id["lm-eval/global_mmlu"].files > 2000
    assert by_id["lm-eval/ifeval"].output_type == "generate_until"
    assert sum(bool(family.prompts) for family in harness) > 60
    assert not any("{{" in prompt or "{%" in prompt for family in harness for prompt in family.prompts)


def test_every_family_of_the_harness_has_a_label_and_a_third_of_evals(harness):
    gold = load_gold(load_taxonomy(), "benchmark_gold")
    assert {family.id for family in harness} == {i for i in gold if i.startswith("lm-eval/")}
    tasks = {f"evals/{task}" for task in set(zoo.load_dataset("evals", "all")["task"])}
    labelled = {i for i in gold if i.startswith("evals/")}
    assert labelled < tasks
    assert len(labelled) == 110


def test_templates_lose_their_markup_and_code_is_not_run(tmp_path):
    wheel = tmp_path / "w.whl"
    template = "Read the passage: {{passage}}{% if x %} now {% endif %}"
    task = f"task: t\ndoc_to_text: '{template}'\nprocess: !function utils.boom\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("lm_eval/tasks/toy/a.yaml", task + "output_type: multiple_choice\n")
        archive.writestr("lm_eval/tasks/toy/b.yaml", "doc_to_text: '{{question}}'\n")
        archive.writestr("lm_eval/tasks/broken/c.yaml", "a: [1\n")
        archive.writestr("lm_eval/tasks/README.md", "no task")
    broken, toy = lm_eval_families(wheel)
    assert (broken.id, broken.prompts, broken.files) == ("lm-eval/broken", (), 1)
    assert (toy.files, toy.output_type, toy.collection) == (2, "multiple_choice", "lm-eval")
    assert toy.prompts == ("Read the passage: … … now …",)


def test_evals_families_keep_their_first_prompts():
    rows = [{"task": "t", "instruction": "Do it.", "input": str(i)} for i in range(9)]
    (family,) = evals_families(rows)
    assert family.files == 9
    assert family.prompts == ("Do it.\n0", "Do it.\n1")
    assert summary([family, family]).to_numpy().tolist() == [["evals", 2, 18, 4]]


def test_hub_categories_become_task_types_and_rare_ones_are_dropped():
    def data(*categories):
        return SimpleNamespace(tags=["language:en", *(f"task_categories:{c}" for c in categories)])

    rows = [data("question-answering", "multiple-choice")] * 12 + [data("summarization")] * 9 + [data("other")] * 30
    assert hub_task_counts([*rows, SimpleNamespace(tags=None)]) == {"QAN": 24}


class PhraseAnnotator:
    """Labels by the phrase of a request, interrupted after a number of parts."""

    def __init__(self, parts=1000):
        self.left = parts

    def annotate(self, conversations):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        for conversation in conversations:
            yield Annotation(conversation.id, tasks=(task_phrase(conversation.requests[0]),))


def people(count):
    return (Conversation(f"c{i}", f"t{i // 2}", (f"write a poem about number {i}",)) for i in range(count))


def test_an_interrupted_corpus_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        annotate_corpus(people(50), PhraseAnnotator(2), tmp_path, part_size=10)
    done = annotate_corpus(people(50), PhraseAnnotator(), tmp_path, part_size=10)
    assert (done.annotated, done.done_before) == (30, 20)
    assert list(read_annotations(tmp_path)) == list(PhraseAnnotator().annotate(people(50)))
    again = annotate_corpus(people(50), PhraseAnnotator(0), tmp_path, part_size=10)
    assert (again.annotated, again.done_before) == (0, 50)


def test_another_corpus_in_the_same_folder_is_refused(tmp_path):
    annotate_corpus(people(20), PhraseAnnotator(), tmp_path, part_size=10)
    with pytest.raises(TenfoldError, match=r"part 000000 of .* holds other conversations"):
        annotate_corpus(people(20), PhraseAnnotator(), tmp_path, part_size=5)


def test_an_annotator_that_drops_one_is_caught(tmp_path):
    class Dropping:
        def annotate(self, conversations):
            yield from (Annotation(c.id) for c in list(conversations)[1:])

    with pytest.raises(TenfoldError, match="one annotation for each conversation"):
        annotate_corpus(people(5), Dropping(), tmp_path)


def test_processes_share_the_work(tmp_path):
    for index in (1, 0):
        done = annotate_corpus(people(50), PhraseAnnotator(), tmp_path, part_size=10, share=Share(index, 2))
        assert done.annotated == (30 if index == 0 else 20)
    assert [a.id for a in read_annotations(tmp_path)] == [f"c{i}" for i in range(50)]
    assert share_of_process() == Share(0, 1)


class Weighed(PhraseAnnotator):
    """Notes what is held in memory before each part."""

    def __init__(self):
        super().__init__()
        self.held = []

    def annotate(self, conversations):
        gc.collect()  # what is garbage is not held, and Python keeps some freed tuples until now
        self.held.append(tracemalloc.get_traced_memory()[0])
        yield from super().annotate(conversations)


def test_memory_stays_flat(tmp_path):
    """What is held grows by less than a tenth of what is read."""
    text = "about a stone " * 150
    long_texts = (Conversation(str(i), str(i), (f"write a poem {i} {text}",)) for i in range(120))
    annotator = Weighed()
    tracemalloc.start()
    annotate_corpus(long_texts, annotator, tmp_path, part_size=10)
    tracemalloc.stop()
    assert len(annotator.held) == 12
    assert annotator.held[-1] - annotator.held[1] < 0.1 * len(text) * 100


def test_two_annotators_that_say_no_settings_do_not_share_a_folder(tmp_path):
    class Others(PhraseAnnotator):
        """Labels of another kind."""

    annotate_corpus(people(5), PhraseAnnotator(), str(tmp_path))
    assert annotate_corpus(people(5), PhraseAnnotator(), tmp_path).done_before == 5
    assert len(list(read_annotations(str(tmp_path)))) == 5
    with pytest.raises(TenfoldError, match="holds labels of another model or form"):
        annotate_corpus(people(5), Others(), tmp_path)
