"""A new paper's first files: `make new PAPER=name` writes a room, its record, a notebook that runs, its profiles."""

import re
from pathlib import Path

import nbformat

import lib
from lib import TenfoldError
from lib.lab import parameters, paths, profiles

NAME = re.compile(r"[a-z][a-z0-9_]*")

RECORD = '''title = "Title of the paper"
short = "{paper}"
arxiv = "0000.00000"
venue = "arXiv preprint"
idea = "The idea, in one sentence."
bibtex = """
@article{{{paper},
  title = {{Title of the paper}}
}}
"""
not_reproduced = []
# What was found, at which scale: results fill the places.
finding = "On {{answers:.0f}} real answers the model needs {{first-claim:ci}} nats per token: {{first-claim:verdict}}."

# A claim of the paper. smallest_effect is the smallest effect worth finding, in the claim's unit; planned_count is the
# count that finds it with a power of at least .8 (simulate it before you size the experiment).
[[claims]]
id = "first-claim"
quote = "the paper's words"
place = "abstract"
estimate = "what is measured, in words: here nats per token of real answers under the model"
rule = "below"
threshold = 3.0
unit = "nats/token"
gates = ["better-than-chance"]
smallest_effect = 0.5
planned_count = "8 answers"

# A precondition: where its estimate breaks the rule, the claims that name it are "not testable here".
[[gates]]
id = "better-than-chance"
what = "The model has learned the language: it beats a uniform guess by far."
estimate = "nats per token of the model minus those of a uniform guess over its vocabulary"
rule = "below"
threshold = -2.0
unit = "nats/token"

# An identity or a bound of our own code; it says nothing about the paper.
[[checks]]
id = "loss-is-the-mean-log-probability"
what = "The loss that the library returns is the mean log-probability of the next tokens, with its sign turned."
estimate = "largest difference between the two, over answers"
rule = "below"
threshold = 1e-3
unit = "nats/token"
'''

TITLE = """# {paper}: say what it is

**Paper**: *Title*, [arXiv:0000.00000](https://arxiv.org/abs/0000.00000).

**Idea.** Two sentences, an equation, and a table of the claims tested here.
"""

PARAMETERS = """model = "smollm2-135m-instruct"  # language model: a short name, a folder or a hub name
dataset = "sharegpt"  # real conversations
answers = 8  # answers that are scored [>= 2]
tokens = 64  # longest of them, in tokens
dtype = "float32"  # the model's numbers [float32, bfloat16, float16]
device = "auto"  # cpu, cuda, or auto
seed = 0  # seed of every draw
"""

SETUP = """import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from lib import lab, zoo

run = lab.start("{paper}", globals())
"""

MEASURE = """lm, tokenizer = zoo.load_lm(model, dtype=dtype, device=run.device)
records = zoo.load_dataset(dataset, split="test", limit=4 * answers)
said = [t["value"] for r in records for t in r["conversations"] if t["from"] == "gpt"][:answers]


def measure():
    rows = []
    for text in said:
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens].to(run.device)
        with torch.no_grad():
            out = lm(ids, labels=ids)
        told = out.logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])
        rows.append({{"nats": float(out.loss), "minus log-probability": -float(told.mean())}})
    return pd.DataFrame(rows)


measured = run.stage("measure", measure)
fig, axis = plt.subplots(figsize=(5, 2.6))
axis.hist(measured["nats"], bins=8)
axis.set(xlabel="nats per token", ylabel="answers", title="how well the model predicts real answers")
run.figure(fig, "first", data=measured, caption=f"{{len(measured)}} real answers.")
"""

CLAIMS = """nats = measured["nats"].to_numpy()
run.metric("answers", float(len(nats)))
run.gate("better-than-chance", estimate=nats.mean() - np.log(lm.config.vocab_size))
apart = (measured["nats"] - measured["minus log-probability"]).abs().max()
run.check("loss-is-the-mean-log-probability", estimate=apart, n=f"{{len(nats)}} answers")
run.claim("first-claim", **lab.statistics.bootstrap(nats, seed=seed, unit="answers").as_claim())
run.finish()
"""

LAST = """## Deviations, limits, what to try next

- **Deviation**: say what differs from the paper, and why.
"""

NEXT = """{notebook} runs: make reproduce PAPERS={paper} PROFILE=smoke
Then: write the method in lib/{paper}/ and its tests in tests/{paper}/; the paper's facts and claims, their gates, your
checks and the finding in paper.toml; add lib.{paper} to the import contract `rooms` in pyproject.toml and a row to
README.md; and record its golden numbers from a clean commit: make record PAPERS={paper}. `make test` says what is still
missing.
"""


def create(paper: str) -> str:
    """Write the files of a new paper and return what to do next; nothing that exists is written over.

    Raises TenfoldError for a name that is taken or cannot be imported.
    """
    if not NAME.fullmatch(paper):
        raise TenfoldError(f"{paper!r} cannot be a package: use small letters, digits and _, a letter first.")
    if paper in (*paths.paper_notebooks(), *paths.GUIDES, "lab", "zoo") or room(paper).exists():
        raise TenfoldError(f"{paper} is here already: choose another name.")
    numbers = [int(path.name[:2]) for path in paths.paper_notebooks().values()]
    notebook = paths.notebooks_dir() / f"{_free(numbers):02d}_{paper}.ipynb"
    room(paper).mkdir(parents=True)
    (room(paper) / "__init__.py").write_text(f'"""{paper}: say what it is (arXiv:0000.00000)."""\n', encoding="utf8")
    (room(paper) / "paper.toml").write_text(RECORD.format(paper=paper), encoding="utf8")
    nbformat.write(_notebook(paper), notebook)
    stated = profiles.as_toml({p.name: p.default for p in parameters.parse(PARAMETERS, notebook.name).values()})
    for profile in profiles.names():
        with (paths.notebooks_dir() / "profiles" / f"{profile}.toml").open("a", encoding="utf8") as file:
            file.write(f"\n[cost.{paper}]\nminutes = 1\nmemory_gib = 2\n\n[parameters.{paper}]\n{stated}")
    return NEXT.format(paper=paper, notebook=notebook.name)


def room(paper: str) -> Path:
    """Folder of a paper's method."""
    return Path(lib.__file__).parent / paper


def _free(numbers: list[int]) -> int:
    taken = {*numbers, *(int(path.name[:2]) for path in paths.guide_notebooks().values())}
    return next(n for n in range(1, 100) if n not in taken)


def _notebook(paper: str) -> nbformat.NotebookNode:
    v4, cells = nbformat.v4, []
    code = {"parameters": PARAMETERS, "setup": SETUP, "": MEASURE, "claims": CLAIMS}
    for tag, source in code.items():
        text = source if tag == "parameters" else source.format(paper=paper)
        cells.append(v4.new_code_cell(text.strip(), metadata={"tags": [tag]} if tag else {}))
    title, last = TITLE.format(paper=paper).strip(), LAST.strip()
    cells = [v4.new_markdown_cell(title), *cells, v4.new_markdown_cell(last)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    found = v4.new_notebook(cells=cells)
    found.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    found.metadata["language_info"] = {"name": "python"}
    return found
