"""Labels are read from every shape that models give the asked form, and what is broken is a fault, never a guess."""

import json

import pytest

from lib.core.chat import Reply
from lib.usergpt import Guide, load_taxonomy
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
    found = read_outputs(output(1) + output(2, PLAIN[:-5]), ["a", "b"], cut_off=True)
    assert [a.fault for a in found] == ["", "cut off"]


@pytest.mark.parametrize(
    ("text", "domain", "tasks", "fault"),
    [
        ("E a", "TEC", ("GEN",), ""), ("**E**, **a**", "TEC", ("GEN",), ""), ("W u", None, (), ""),
        ("Task: F\nDomain: j", "LAW", ("DBG",), ""), ('{"task": "E", "domain": "a"}', "TEC", ("GEN",), ""),
        ("debugging, law", "LAW", ("DBG",), ""),
        ("E a\n\nThe request asks for code.", "TEC", ("GEN",), ""),
        *((text, None, (), "no letters of the guide") for text in
          ("This is a request for Code", "E", "Z a", "e a", "", "E or F, a", "debugging or advice, law",
           '{"task": "E"}')),
    ],
)  # fmt: skip
def test_letters_of_the_guide(text, domain, tasks, fault):
    (found,) = Guide(load_taxonomy()).read(Reply((text,)), ["x"])
    assert (found.domain, found.tasks, found.fault) == (domain, tasks, fault)


def test_scores_are_the_log_probabilities_of_the_letters():
    guide = Guide(load_taxonomy())
    told = [
        {
            "token": " E",
            "logprob": -0.1,
            "top_logprobs": [{"token": " E", "logprob": -0.1}, {"token": "F", "logprob": -3.0}],
        }
    ]
    reply = Reply((" E a",), logprobs=(told,))
    scores = guide.scores(reply, "tasks")
    assert scores is not None
    assert (scores[4], scores[5], scores[0], len(scores)) == (-0.1, -3.0, -4.0, 23)
    assert guide.scores(reply, "domains") is None
