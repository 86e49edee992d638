"""README and guides: their Python as it stands there, on layers of the zoo's model, their links and their form."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from lib import preference, root, zoo
from lib.lab import guides, papers, paths, report

PAGES = [root() / "README.md", *sorted((root() / "docs").glob("*.md"))]
TEXTS = {path: path.read_text(encoding="utf8") for path in PAGES}
BLOCKS = [
    (path, text[: m.start()].count("\n") + 1, m[1])
    for path, text in TEXTS.items() for m in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
]  # fmt: skip
LAYERS = 2
QUESTIONS = [f"What is {a} and {b}, and how did you find it out?" for a in range(2, 40) for b in range(2, 50)]
PREPARED = {}


def prepares(function):
    """Register what gives a paper's block the names that its reader would have."""
    PREPARED[function.__name__] = function
    return function


def papers_of(source):
    return [paper for paper in paths.paper_notebooks() if re.search(rf"^(from|import) .*\b{paper}\b", source, re.M)]


@pytest.fixture(scope="module")
def real():
    return zoo.load_lm("smollm2-135m-instruct", dtype="float32")


@pytest.fixture
def cut(real):
    """Make a language model of the first layers of the zoo's."""
    whole, _ = real

    def cut(layers=LAYERS):
        config = copy.deepcopy(whole.config)
        config.num_hidden_layers = layers
        small = type(whole)(config).eval()
        small.load_state_dict(whole.state_dict(), strict=False)
        return small

    return cut


@pytest.mark.parametrize(("path", "number", "source"), BLOCKS, ids=[f"{p.stem} {n}" for p, n, _ in BLOCKS])
@pytest.mark.timeout(300)
def test_a_block_runs_as_it_stands(path, number, source, real, cut, tmp_path, monkeypatch, chat_server):
    monkeypatch.chdir(tmp_path)
    _, tokenizer = real
    (paper,) = papers_of(source)
    names = {"tokenizer": tokenizer, "torch": torch, "url": chat_server.url}
    names |= PREPARED[paper](cut, tokenizer, chat_server)
    source = source.replace("http://localhost:8000/v1", chat_server.url)
    exec(compile("\n" * number + source, path, "exec"), names)


@pytest.mark.parametrize("paper", paths.paper_notebooks())
def test_every_paper_has_its_guide(paper):
    guide = guides.load(paper)
    assert guide, f"write docs/{paper}.md in the form of the others"
    assert guide.short == papers.load(paper).short
    assert guide.paper == paper
    assert [papers_of(source) for path, _, source in BLOCKS if path.stem == paper] == [[paper]], "one example"


@pytest.mark.parametrize("path", [*PAGES, root() / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading_of_it(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf8")):
        file, _, place = target.partition("#")
        goal = path.parent / file if file else path
        assert goal.exists(), target
        headings = re.findall(r"^#+ (.+)$", goal.read_text(encoding="utf8"), re.M) if place else []
        assert not place or place in map(report.anchor, headings), target


def test_the_readme_can_be_read_through():
    assert len(TEXTS[root() / "README.md"]) <= 9000


@prepares
def lorc(cut, tokenizer, _):
    cut().save_pretrained("your/llama-like-model")
    tokenizer.save_pretrained("your/llama-like-model")
    return {"some_text": " ".join(QUESTIONS)[:4000]}


@prepares
def tempspec(cut, tokenizer, _):
    prompts = [tokenizer(question).input_ids for question in QUESTIONS[:3]]
    return {"target": cut(), "small_model": cut(1), "prompts": prompts, "questions": QUESTIONS[:2]}


@prepares
def grin(cut, tokenizer, _):
    return {"model": cut(), "ids": tokenizer(QUESTIONS[:2], return_tensors="pt", padding=True).input_ids}


@prepares
def proxy_reward(cut, tokenizer, _):
    k = 20  # nine times as many pairs as 200 labels would give take 90 prompts
    prompts = [question for question in QUESTIONS[:90] for _ in range(k)]
    responses = [f"{i} and {i + j}" for i in range(90) for j in range(k)]
    exchanges = [tokenizer(f"{p}\n{r}").input_ids for p, r in zip(prompts, responses, strict=True)]
    judge = preference.RougeJudge(dict.fromkeys(prompts, "7 and 9 and 12 and 40"))
    names = {"judge": judge, "policy": cut(1), "token_ids_of_exchanges": exchanges, "k": k}
    return names | {"prompts": prompts, "responses": responses}


@prepares
def multilora(*_):
    place = root() / "tests" / "multilora" / "conftest.py"
    spec = importlib.util.spec_from_file_location("pipelines", place)
    pipelines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pipelines)
    for name in ("hero", "coat"):
        donor = pipelines.make("sd15", adapters=1)
        layers = {key: w for key, w in donor.unet.state_dict().items() if "lora" in key}
        layers = {key.replace(f".{pipelines.NAMES[0]}", ""): w for key, w in layers.items()}
        donor.save_lora_weights("loras", unet_lora_layers=layers, weight_name=f"{name}.safetensors")
    return {"pipe": pipelines.make("sd15", adapters=0), "folder": "loras"}


@prepares
def autoinstruct(cut, *_):
    from lib.core.chat import Reply

    class Writer:
        model = "scripted"

        def complete(self, messages, decoding=None, *, attempt=0):
            asked = f"{messages[-1]['content'][-40:]} {messages[0]['content'][:20]}"
            return Reply(tuple(f"Give the sum, way {i}. {asked}" for i in range(decoding.n)))

    sums = [(task, n) for task in (1, 2) for n in range(60)]
    asked = [{"task": f"add {t}", "instruction": f"Add, and say {t}.", "input": f"{n} and {n + t}"} for t, n in sums]
    rows = [row | {"answers": str(2 * n + t)} for row, (t, n) in zip(asked, sums, strict=True)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"path": Path("rows.jsonl"), "model": cut(), "labels": Path("labels.sqlite"), "chat": Writer()}


@prepares
def sciagent(cut, tokenizer, _):
    from lib.sciagent import Sandbox, Toolset, trainer

    model = cut()
    model.save_pretrained("your/model")
    tokenizer.save_pretrained("your/model")
    trainer.with_adapter(model, trainer.LoraRecipe()).save_pretrained("adapter")
    with Sandbox(workers=1) as sandbox:
        return {"your_toolset": Toolset.from_package("numpy_financial", sandbox=sandbox)}


@prepares
def selm(cut, tokenizer, server):
    server.answer = lambda request: f"{len(server.asked) % 10}"
    return {"model": cut(10), "questions": QUESTIONS[:3]}


@prepares
def seqboat(*_):
    return {"width": 16, "your_module": torch.nn.Linear(16, 16)}


@prepares
def usergpt(_, __, server):
    server.answer = lambda request: "- [tasks]: discussion\n- [domains]: technology"
    turns = [{"from": "human", "value": QUESTIONS[0]}, {"from": "gpt", "value": "4."}]
    return {"rows": [{"id": str(i), "conversations": turns} for i in range(3)], "folder": Path("annotated")}
