"""Labels are read from every shape that models give the asked form, and what is broken is a fault, never a guess."""

import json

import numpy as np
import pytest

from lib.core.chat import Reply
from lib.usergpt import Guide, load_taxonomy
from lib.usergpt.chat_annotator import name_scores
from lib.usergpt.replies import read_outputs

WANTED = ("technology", ("coding assistance", "debugging"), "The user wants a bug found.")
PLAIN = "[domain] technology\n[summary] The user wants a bug found.\n[task type] coding assistance, debugging"
ROW = {"domain": "Technology", "summary": WANTED[2], "task types": ["coding assistance", "debugging"]}
SHAPES = [
    PLAIN, f"** Output 1 **\n{PLAIN}", f"### Output 1:\n{PLAIN}", f"**Output #1:**\n\n{PLAIN}",
    f"Sure!\n\nOutput 1\n{PLAIN}",
    "**[domain]** technology\n**[summary]** The user wants a bug found.\n**[task type]** coding assistance, debugging",
    "- [domain] technology\n- [summary] The user wants a bug found.\n- [task type] coding assistance, debugging",
    "[domain]: technology\n[summary]: The user wants a bug found.\n[task type]: coding assistance, debugging",
    "**Domain:** Technology\n**Summary:** The user wants a bug found.\n**Task types:** Coding assistance; Debugging",
    "1. Domain: technology\n2. Summary: The user wants a bug found.\n3. Task type: coding assistance > debugging",
    "[Domain] [technology]\n[Summary] The user wants a bug found.\n[Task Type] [coding assistance], [debugging]",
    "`[domain]` \"technology\"\n`[summary]` The user wants a bug found.\n`[task_type]` coding assistance -> debugging",
    "[domain]\ntechnology\n[summary]\nThe user wants a bug found.\n[task types]\n- coding assistance\n- debugging",
    "> [domain] technology.\n> [summary] The user wants a bug found.\n> [tasks] coding assistance / debugging",
    "<think>[domain] none yet</think>" + PLAIN, json.dumps(ROW), "```json\n" + json.dumps([ROW]) + "\n```",
    json.dumps({"outputs": [ROW]}),
    "Here it is: "
    + json.dumps({"Domain": "technology", "Summary": WANTED[2], "task_type": "coding assistance, debugging"}),
]  # fmt: skip


@pytest.mark.parametrize("text", SHAPES)
def test_every_shape_is_read(text):
    (found,) = read_outputs(text, ["a"])
    assert (found.domain, found.tasks, found.summary, found.fault) == (*WANTED, "")


def output(number, body=PLAIN):
    return f"** Output {number} **\n{body}\n\n"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (output(1) + output(2), ["", ""]),
        (output(2) + output(1), ["", ""]),
        (f"{PLAIN}\n\n{PLAIN}", ["", ""]),
        (
            f"Sure!\n{PLAIN}\n[task type] again\n\n1. Domain: law\nSummary: s\nTask: advice",
            ["more than one [task type]", ""],
        ),
        ("\n\n".join([PLAIN] * 3), ["no output", "no output"]),
        (f"** Input 1 **\nx\n{output(1)}** Input 2 **\ny\n{output(2)}", ["", ""]),
        (f"{output(1)}{output(2)}** Input 1 **\nmade up\n{output(1)}", ["", ""]),
        (output(1), ["", "no output"]),
        (output(1) + output(2, PLAIN.replace("coding assistance, debugging", " ")), ["", "no [task type]"]),
        (output(1) + output(2, PLAIN.replace("technology", "...")), ["", "no [domain]"]),
        (output(1) + output(2, PLAIN.split("\n", 1)[1]), ["", "no [domain]"]),
        (output(1) + output(2) + output(2), ["", "more than one output"]),
        (output(1) + output(2, PLAIN + "\n[summary] again"), ["", "more than one [summary]"]),
        ("I cannot help with that.", ["no output", "no output"]),
        ("", ["no output", "no output"]),
        (json.dumps([ROW]), ["1 outputs for 2 inputs"] * 2),
        (json.dumps([ROW, {"domain": "law"}]), ["", "no [summary]"]),
        ("The domain is technology and the task debugging.\n" * 2, ["no output", "no output"]),
    ],
)
def test_a_fault_is_a_fault_and_costs_its_own_conversation(text, faults):
    found = read_outputs(text, ["a", "b"])
    assert [a.fault for a in found] == faults
    assert all(bool(a.tasks) != bool(a.fault) for a in found)


def test_the_last_output_of_a_reply_that_was_cut_off_is_not_believed():
    made_up = read_outputs(
        output(1) + output(2) + "** Input 1 **\nmade up\n" + output(1, PLAIN[:-5]), ["a", "b"], cut_off=True
    )
    assert [(a.fault, a.tasks) for a in made_up] == [("", WANTED[1])] * 2
    for text in (output(1) + output(2, PLAIN[:-5]), f"{PLAIN}\n\n{PLAIN[:-5]}"):
        assert [a.fault for a in read_outputs(text, ["a", "b"], cut_off=True)] == ["", "cut off"]


@pytest.mark.parametrize(
    ("text", "domain", "tasks", "fault"),
    [
        ("code generation, technology", "TEC", ("GEN",), ""), ("**Debugging**, **Law**.", "LAW", ("DBG",), ""),
        ("design, art and design", "ART", ("DES",), ""), ("other or unclear, other or unclear", None, (), ""),
        ("Task: debugging, domain: law", "LAW", ("DBG",), ""), ("other or unclear, law", "LAW", (), ""),
        ('{"task": "code generation", "domain": "technology"}', "TEC", ("GEN",), ""),
        ("e-mail writing and editing, business\nThe request asks for a letter.", "BUS", ("EML",), ""),
        *((text, None, (), "no names of the guide") for text in
          ("This is a request for code generation, technology", "debugging", "law, debugging", "", "E, a",
           "debugging or advice, law", "debugging, advice, law", '{"task": "debugging"}')),
    ],
)  # fmt: skip
def test_names_of_the_guide(text, domain, tasks, fault):
    (found,) = Guide(load_taxonomy()).read(Reply((text,)), ["x"])
    assert (found.domain, found.tasks, found.fault) == (domain, tasks, fault)


def place(token, **told):
    rows = [{"token": name.replace("_", " "), "logprob": float(np.log(share))} for name, share in told.items()]
    return {"token": token, "logprob": float(np.log(told[token.replace(" ", "_")])), "top_logprobs": rows}


def test_scores_multiply_along_the_name_and_share_what_begins_alike():
    names = ["code generation", "code explanation", "debugging", "design", "advice"]
    told = [place("code", code=0.5, de=0.2, deb=0.1, de_x=0.05), place(" explanation", _explanation=0.6, _gen=0.3)]
    shares = np.exp(name_scores(told, names))
    # "de" may go on as either of two: half of .2 each, and "deb" only as one
    assert shares == pytest.approx([0.5 * 0.3, 0.5 * 0.6, 0.2 / 2 + 0.1, 0.2 / 2, 0.05 / np.e])
    assert np.exp(name_scores(told[:1], names))[:2] == pytest.approx([0.25, 0.25])  # cut off: the rest is not told
    astray = np.exp(name_scores([place("I", I=0.7, advice=0.2)], names))
    assert astray == pytest.approx([0.2 / np.e] * 4 + [0.2])


def test_the_domain_is_scored_where_it_stands_and_nothing_without_what_was_told():
    guide = Guide(load_taxonomy())
    told = [place("law", law=0.9, de=0.1), place(",", **{",": 1.0}), place(" law", _law=0.8, _te=0.2)]
    tasks, domains = (guide.scores(Reply(("",), logprobs=(told,)), kind) for kind in ("tasks", "domains"))
    assert tasks is not None
    assert domains is not None
    assert (len(tasks), len(domains)) == (23, 21)
    codes = list(guide.names["domains"])
    assert np.exp(domains[codes.index("LAW")]) == pytest.approx(0.8)
    assert np.exp(domains[codes.index("TEC")]) == pytest.approx(0.2)
    assert guide.scores(Reply(("x",)), "tasks") is None
    assert guide.scores(Reply(("x",), logprobs=(told[:1],)), "domains") is None


def test_the_guide_shows_the_labelled_requests_as_turns_and_asks_the_same_way():
    taxonomy = load_taxonomy()
    messages = Guide(taxonomy).messages(["mend my loop"])
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * len(taxonomy.shown), "user"]
    assert messages[2]["content"] == "code generation, technology"
    assert messages[-1]["content"] == messages[1]["content"].replace(taxonomy.shown[0].request, "mend my loop")
    answers = [Guide(taxonomy).read(Reply((m["content"],)), ["x"])[0].fault for m in messages[2::2]]
    assert answers == [""] * len(taxonomy.shown)
