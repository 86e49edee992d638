"""A stage's key follows what the stage is made from: each thing that can change a result, and nothing else."""

import functools
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch

from lib import TenfoldError
from lib.lab import keys

PREAMBLE = """
import functools
import numpy as np
import pandas as pd
import torch
from lib import lorc, selm
alpha = 0.1
table = pd.DataFrame({"a": [1.0, 2.0]})
"""


def parts(source, stage="compute"):
    """Parts of the key of a notebook's stage function, the notebook being a source text."""
    namespace = {"__name__": "__main__"}
    exec(compile(PREAMBLE + textwrap.dedent(source), "notebook", "exec"), namespace)
    return keys.parts_of("s", namespace[stage], namespace)


BASE = """
def helper(x):
    return x + alpha

def compute():
    return helper(float(table["a"].sum()))
"""


def test_the_same_source_gives_the_same_key_whatever_its_comments_and_docstrings():
    commented = '''
    # a comment
    def helper(x):
        """A docstring."""

        return x + alpha  # another

    def compute():
        """And another."""
        return helper(
            float(table["a"].sum())
        )
    '''
    assert parts(BASE) == parts(commented)


@pytest.mark.parametrize(
    "changed",
    [
        BASE.replace("x + alpha", "x - alpha"),
        BASE.replace("sum()", "mean()"),
        BASE + "\nalpha = 0.2",
        BASE + "\ntable.loc[0, 'a'] = 3.0",
    ],
    ids=["code of a helper", "own code", "a value", "a table"],
)
def test_a_change_in_anything_read_gives_another_key(changed):
    assert parts(changed) != parts(BASE)


def test_a_class_of_the_notebook_may_be_abstract_or_fill_in_one_that_is():
    source = """
    import abc

    class Judge(abc.ABC):
        @abc.abstractmethod
        def score(self): ...

    class Known(Judge):
        def score(self):
            return alpha

    def compute():
        return Known().score()
    """
    assert parts(source) == parts(source)
    assert parts(source.replace("return alpha", "return -alpha")) != parts(source)


def test_what_is_not_read_does_not_count():
    assert parts(BASE + "\nbeta = 3\ndef unrelated():\n    return beta") == parts(BASE)


def test_the_modules_are_those_that_can_be_reached():
    found = parts("def compute():\n    return selm.pool_loss(0.1, beta=1.0)")["modules"]
    assert "lib.selm.objective" in found or any(name.startswith("lib.selm.") for name in found)
    assert not any(name.startswith(("lib.lorc", "lib.lab", "lib.grin")) for name in found)
    assert parts(BASE)["modules"] == {}


@pytest.mark.parametrize("steps", ["run.progress", "functools.partial(run.progress, label='x')", "[run]"])
def test_the_run_itself_does_not_count(steps):
    """A stage that shows its progress is not made from the lab's code, nor from what the run has noted so far."""
    source = "from lib.lab.run import Run\nrun = Run.__new__(Run)\nrun.metrics = {}\ndef compute():\n    return steps"
    namespace = f"{source}\nsteps = {steps}"
    assert parts(namespace)["modules"] == {}
    assert parts(namespace) == parts(f"{namespace}\nrun.metrics['noted'] = 1.0")


def test_the_libraries_are_those_that_the_code_imports():
    found = parts("def compute():\n    return lorc.compress")["versions"]
    assert {"python", "torch", "transformers"} <= found.keys()
    assert "diffusers" not in found


def test_assets_count_by_their_bytes():
    found = parts("model = 'smollm2-135m-instruct'\ndef compute():\n    return model")["assets"]
    assert list(found) == ["smollm2-135m-instruct"]
    assert found["smollm2-135m-instruct"].startswith("smollm2-135m-instruct:")


def test_an_attribute_is_read_alone_where_it_is_plain():
    source = """
    class Thing:
        def __init__(self):
            self.size, self.weight = 3, {weight}
    thing = Thing()
    def compute():
        return thing.size
    """
    assert parts(source.format(weight=1)) == parts(source.format(weight=2))
    whole = source.replace("thing.size", "str(thing)")
    assert parts(whole.format(weight=1)) != parts(whole.format(weight=2))


def test_partials_closures_defaults_and_lambdas():
    made = """
    def make(n):
        def build(scale={scale}):
            return n * scale
        return build
    compute = functools.partial({what})
    """
    keys_of = {
        (scale, what): str(parts(made.format(scale=scale, what=what)))
        for scale in (1, 2)
        for what in ("make(1)", "make(2)", "lambda x: x, 1", "lambda x: x, 2", "lambda x: -x, 1")
    }
    first = [keys_of[1, what] for what in ("make(1)", "make(2)", "lambda x: x, 1", "lambda x: x, 2", "lambda x: -x, 1")]
    assert len(set(first)) == 5
    assert keys_of[1, "make(1)"] != keys_of[2, "make(1)"], "a default counts"


def test_functions_that_call_each_other_end():
    source = """
    def even(n):
        return n == 0 or odd(n - 1)
    @functools.cache
    def odd(n):
        return n != 0 and even(n - {step})
    def compute():
        return even(4)
    """
    assert parts(source.format(step=1)) == parts(source.format(step=1))
    assert parts(source.format(step=1)) != parts(source.format(step=3))


def digest(value):
    return keys.Reads({"__name__": "__main__"}).digest(value)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: torch.arange(4.0), lambda: torch.arange(4.0).double()),
        (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
        (lambda: np.arange(3), lambda: np.arange(3)[::-1]),
        (lambda: np.array([["a"], [None]], object), lambda: np.array([["a"], [1]], object)),
        (lambda: pd.DataFrame({"a": [1]}), lambda: pd.DataFrame({"b": [1]})),
        (lambda: pd.DataFrame({"a": [[1], [2]]}), lambda: pd.DataFrame({"a": [[1], [3]]})),
        (lambda: pd.Series([1, 2], index=[0, 1]), lambda: pd.Series([1, 2], index=[1, 2])),
        (lambda: {"a": {1, 2}}, lambda: {"a": {1, 3}}),
        (lambda: [1] * 500, lambda: [1] * 499 + [2]),
        (lambda: 1, lambda: True),
        (lambda: layer(bias=True), lambda: layer(bias=False)),
        (lambda: torch.Generator().manual_seed(1), lambda: torch.Generator().manual_seed(2)),
        (lambda: np.random.default_rng(1), lambda: np.random.default_rng(2)),
        (lambda: functools.partial(max, 1), lambda: functools.partial(min, 1)),
        (lambda: {"a": 1}.get, lambda: {"a": 2}.get),
        (lambda: torch.float32, lambda: torch.float16),
    ],
)  # fmt: skip
def test_values_count_by_content(make, other):
    assert digest(make()) == digest(make())
    assert digest(make()) != digest(other())


def layer(bias):
    made = torch.nn.Linear(2, 2, bias=bias)
    for weight in made.parameters():
        torch.nn.init.constant_(weight, 0.5)
    return made


def network(**settings):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, **settings))


def test_a_network_counts_by_its_weights_and_settings_whatever_their_names():
    assert "id2label" in network().config.to_dict()  # its names are numbers
    assert digest(network()) == digest(network())
    assert digest(network()) != digest(network(rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    changed = network()
    torch.nn.init.zeros_(changed.model.norm.weight)
    assert digest(network()) != digest(changed)


def test_a_dataset_counts_by_its_rows():
    from datasets import Dataset

    rows = [{"a": i, "t": str(i)} for i in range(5)]
    assert digest(Dataset.from_list(rows)) == digest(Dataset.from_list(rows))
    assert digest(Dataset.from_list(rows).select([0, 1])) == digest(Dataset.from_list(rows[:2]))
    assert digest(Dataset.from_list(rows)) != digest(Dataset.from_list(rows[::-1]))


def test_equal_values_count_alike_shared_or_not():
    inner = [1, 2]
    assert digest([inner, inner]) == digest([[1, 2], [1, 2]])
    loop = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop)


def test_folders_of_the_cache_count_by_name_and_files_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "p" / "model-abc"
    kept.mkdir(parents=True)
    before = digest(kept)
    (kept / "weights").write_text("1")
    assert digest(kept) == before
    elsewhere = tmp_path / "file"
    elsewhere.write_text("1")
    first = digest(elsewhere)
    elsewhere.write_text("2")
    assert digest(elsewhere) != first


def test_a_card_of_shipped_weights_counts_for_nothing(tmp_path):
    (tmp_path / "base.safetensors").write_text("1")
    before = digest(tmp_path)
    (tmp_path / "base.safetensors.card.json").write_text('{"commit": "a"}')
    assert digest(tmp_path) == before
    (tmp_path / "base.safetensors").write_text("2")
    assert digest(tmp_path) != before


def test_what_has_no_content_is_refused_by_name():
    with pytest.raises(TenfoldError, match="stage 's': a _thread.lock has no content .* `fingerprint\\(\\)`"):
        parts("import threading\nlock = threading.Lock()\ndef compute():\n    return lock")


def test_an_object_may_say_what_identifies_it():
    source = """
    import threading
    class Pool:
        def __init__(self, size):
            self.size, self.lock = size, threading.Lock()
        def fingerprint(self):
            return ["pool", self.size]
    pool = Pool({size})
    def compute():
        return pool
    """
    assert parts(source.format(size=1)) == parts(source.format(size=1))
    assert parts(source.format(size=1)) != parts(source.format(size=2))


def test_an_imitated_processor_has_keys_of_its_own(monkeypatch):
    for variable in keys.IMITATED:
        monkeypatch.delenv(variable, raising=False)
    before = parts(BASE)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert parts(BASE) != before


def test_keys_do_not_depend_on_the_process():
    script = """
        from tests.lab.test_keys import BASE, digest, parts
        print(parts(BASE), digest({"b", "a", "c"}), digest(frozenset("xyz")))
    """
    runs = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": "."}, cwd=keys.lib.root(),
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


MODULE = '"""Docs."""\n\ndef f(x):\n    """More docs."""\n    # why\n    return x + 1  # how\n'


def test_a_modules_digest_ignores_comments_docstrings_and_layout_only(tmp_path):
    def of(text):
        path = tmp_path / "m.py"
        path.write_text(text)
        return keys._file_digest.__wrapped__(path, 0)[0]

    plain = of("def f(x):\n    return (x +\n        1)\n")
    assert of(MODULE) == plain
    assert of(MODULE.replace("+", "-")) != plain
    assert of("def f(x):\n    return 'text'\n") != of("def f(x):\n    return 'other'\n")


def test_a_data_file_that_a_module_names_counts(tmp_path):
    module, table = tmp_path / "m.py", tmp_path / "rules.toml"
    module.write_text("PLACE = 'rules.toml'\n")
    table.write_text("a = 1")
    before = keys._file_digest.__wrapped__(module, 0)
    table.write_text("a = 2")
    assert keys._file_digest.__wrapped__(module, 0) != before


def test_a_module_edited_after_its_import_is_noticed(monkeypatch):
    found = parts("def compute():\n    return selm.SELMConfig")
    assert keys.changed_under_us(found) == []
    monkeypatch.setattr(keys, "STARTED", 0.0)
    assert "lib.selm.configuration" in keys.changed_under_us(found)


def test_a_module_of_the_readers_own_counts_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_own_module.py"
    file.write_text("def f():\n    return 1\n")
    source = "from my_own_module import f\ndef compute():\n    return f()"
    before = parts(source)
    file.write_text("# said\ndef f():\n    return 1\n")
    assert parts(source) == before
    file.write_text("def f():\n    return 2\n")
    assert parts(source) != before


def test_a_tokenizer_counts_by_its_vocabulary_whatever_it_was_last_asked():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def made(words):
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="a")

    first, other = made(["a", "b"]), made(["a", "c"])
    before = digest(first)
    first(["a", "a b"], padding=True, truncation=True, max_length=1)
    assert digest(first) == before == digest(made(["a", "b"]))
    assert digest(other) != before
    first.add_tokens(["d"])
    assert digest(first) != before


RUN = """
from lib.lab.run import Run
run = Run.__new__(Run)
run.device, run.parameters = {device!r}, {{"documents": {documents}}}
def size(run):
    return run.parameters["documents"], run.device
def compute():
    return {body}
"""


@pytest.mark.parametrize("body", ["run.parameters['documents']", "size(run)"])
def test_a_parameter_counts_that_a_stage_takes_from_the_run(body):
    first = parts(RUN.format(device="cpu", documents=1, body=body))
    assert first == parts(RUN.format(device="cpu", documents=1, body=body))
    assert first != parts(RUN.format(device="cpu", documents=2, body=body))
    assert parts(RUN.format(device="cpu", documents=1, body="size(run)")) != parts(
        RUN.format(device="cuda", documents=1, body="size(run)")
    )


CLASSES = {
    "a named tuple": "from typing import NamedTuple\nclass Kind(NamedTuple):\n    x: int = 1\n{method}\nmade = Kind()",
    "a dict": "class Kind(dict):\n{method}\nmade = Kind(x=1)",
    "a list": "class Kind(list):\n{method}\nmade = Kind([1])",
    "a string": "class Kind(str):\n{method}\nmade = Kind('x')",
    "an enumeration of numbers": "import enum\nclass Kind(enum.IntEnum):\n    A = 1\n{method}\nmade = Kind.A",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_of_the_notebook_counts_by_its_code_whatever_it_is_built_upon(kind):
    def of(number):
        method = f"    def score(self):\n        return {number}"
        return parts(CLASSES[kind].format(method=method) + "\ndef compute():\n    return made.score()")

    assert of(1) == of(1)
    assert of(1) != of(2)


DECORATED = """
def scaled(factor):
    def around(function):
        @functools.wraps(function)
        def inner():
            return factor * function()
        return inner
    return around

@scaled({factor})
def measure():
    return 1

def compute():
    return measure()
"""


def test_what_a_decorator_of_the_notebook_does_counts():
    first = DECORATED.format(factor=2)
    assert parts(first) == parts(first)
    assert parts(first) != parts(DECORATED.format(factor=3))
    assert parts(first) != parts(first.replace("factor * function", "factor + function"))
    plain = "@torch.inference_mode()\ndef compute():\n    return alpha"
    assert parts(plain) == parts(plain)


@pytest.mark.parametrize("how", ["property", "classmethod", "staticmethod", "functools.cached_property"])
def test_each_kind_of_method_counts_by_its_code(how):
    source = f"""
    class Thing:
        @{how}
        def size(*whose):
            return [1]
    thing = Thing()
    def helper(any):
        return any.size
    def compute():
        return helper(thing)
    """
    assert parts(source) == parts(source)
    assert parts(source) != parts(source.replace("[1]", "[2]"))


@pytest.mark.parametrize(
    ("made", "other"),
    [
        ("range(3)", "range(4)"),
        ("__import__('collections').deque([1, 2])", "__import__('collections').deque([1, 3])"),
        ("__import__('datetime').date(2020, 1, 1)", "__import__('datetime').date(2020, 1, 2)"),
        ("__import__('collections').defaultdict(lambda: 1)", "__import__('collections').defaultdict(lambda: 2)"),
        ("np.ma.array([1.0, 2.0], mask=[0, 1])", "np.ma.array([1.0, 2.0], mask=[1, 0])"),
    ],
)
def test_values_of_pythons_own_kinds_count_by_content(made, other):
    source = "thing = {}\ndef compute():\n    return thing"
    assert parts(source.format(made)) == parts(source.format(made))
    assert parts(source.format(made)) != parts(source.format(other))


@pytest.mark.parametrize(
    ("made", "other"),
    [
        ("torch.nn.Conv2d(1, 1, 3)", "torch.nn.Conv2d(1, 1, 3, stride=2)"),
        ("torch.nn.Conv2d(1, 1, 3, padding=1)", "torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode='circular')"),
        ("torch.nn.Sequential(torch.nn.GELU())", "torch.nn.Sequential(torch.nn.GELU(approximate='tanh'))"),
        ("Net(torch.relu)", "Net(torch.tanh)"),
    ],
)
def test_a_network_of_the_notebook_counts_by_all_that_its_layers_hold(made, other):
    source = """
    class Net(torch.nn.Module):
        def __init__(self, act):
            super().__init__()
            self.act = act
    torch.manual_seed(0)
    net = {}
    def compute():
        return net(torch.ones(1, 1, 9, 9))
    """
    assert parts(source.format(made)) == parts(source.format(made))
    assert parts(source.format(made)) == parts(source.format(f"{made}.eval()"))
    assert parts(source.format(made)) != parts(source.format(other))


def test_what_a_module_of_the_readers_own_imports_counts_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_outer_module.py").write_text("import my_inner_module\nfrom lib import lorc\nf = lambda: 1\n")
    inner = tmp_path / "my_inner_module.py"
    inner.write_text("import my_outer_module\nvalue = 1\n")
    source = "from my_outer_module import f\ndef compute():\n    return f()"
    before = parts(source)
    assert "lib.lorc.modeling" in before["modules"]
    inner.write_text("import my_outer_module\nvalue = 2\n")
    assert parts(source) != before
