"""The online loop with several processes, and killed at any moment: nothing is judged, paid or trained twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import root
from lib.preference import ChatJudge, Ledger, Question, Sampling, online, rounds

PROMPTS = 5
TINY = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip


class Words:
    """Tokenizer stub: token i is the word `i`."""

    eos_token_id, pad_token_id = 1, 2

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(str(t) for t in row if t != 1) for row in rows]


class Writing:
    """A judge that notes every prompt that it is asked about in a file of its process."""

    identity = "sum of words"

    def __init__(self, folder):
        self.path = Path(folder) / f"asked-{os.getpid()}"

    def score(self, prompt, responses):
        with self.path.open("a") as file:
            file.write(prompt + "\n")
        return [float(sum(map(int, r.split())) % 23) for r in responses]


def looped(folder, judge, *, count=2, tick=lambda: None):
    """Run two rounds on a tiny policy, whose training adds a little that depends on the pairs alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**TINY)).eval()

    def train(policy, data, number, place):
        tick()
        with torch.no_grad():
            for row in data:
                policy.model.norm.weight += 1e-3 * (sum(row["chosen_ids"]) - sum(row["rejected_ids"])) / 40
        tick()
        return [{"loss": float(policy.model.norm.weight.detach().sum())}]

    asked = [Question(f"prompt {i}", "", (3 + i, 4, 5)) for i in range(PROMPTS)]
    how = Sampling(k=3, max_new_tokens=4, seed=3)
    made = online(policy, Words(), asked, count, judge=judge, train=train, folder=folder, sampling=how, progress=False)
    return [(r.groups, r.counts, r.history) for r in made], policy.model.norm.weight.tolist()


def in_two_processes(folder, fails=""):
    """Run the loop as a launcher starts it: two processes of a gloo group."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "FAILS": fails}
    environment |= {"PYTHONPATH": str(root())}  # the library that is tested, wherever another is installed
    return subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=500)


def asked_in(folder):
    return sorted(line for path in folder.glob("asked-*") for line in path.read_text().splitlines())


@pytest.mark.timeout(600)
def test_two_processes_judge_every_prompt_once_agree_and_resume_what_one_began(tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    alone.mkdir(), two.mkdir()
    expected = looped(alone / "run", Writing(alone))
    broken = in_two_processes(two, fails="prompt 3")  # in round 2, in one of the two
    assert broken.returncode != 0
    assert "could not be judged" in broken.stderr
    assert not (two / "run" / "round-2" / "scores.json").exists()
    again = in_two_processes(two)
    assert again.returncode == 0, again.stderr[-2000:]
    results = [json.loads((two / f"result-{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0] == results[1]  # the ranks agree
    assert results[0] == json.loads(json.dumps(expected[1]))  # and with one process
    assert asked_in(two) == asked_in(alone) == [f"prompt {i}" for i in range(PROMPTS)]
    judge = Writing(tmp_path)
    assert told(looped(two / "run", judge)) == told(expected)  # any number of processes reads it
    assert asked_in(tmp_path) == []


def told(result):
    """What was said, given and learned; its log-probabilities round differently in other batches."""
    groups = [g for part, *_ in result[0] for g in part]
    return [(g.prompt, [r.tokens for r in g.responses], g.scores) for g in groups], result[1]


class Fails(Writing):
    def score(self, prompt, responses):
        if prompt == os.environ["FAILS"]:
            raise RuntimeError("down")
        return super().score(prompt, responses)


def killed_at(moment, folder, url, budget):
    """Run the loop in this process until its so-many-th step, then die as by kill -9."""
    left = [moment]

    def tick():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function):
        def act(*arguments, **options):
            tick()
            value = function(*arguments, **options)
            tick()
            return value

        return act

    rounds._write, rounds.save_policy = around(rounds._write), around(rounds.save_policy)
    judge = ChatJudge.endpoint(url, "m", journal=Ledger(budget, folder / "ledger.sqlite"), concurrency=1)
    judge.ask = around(judge.ask)
    looped(folder / "run", judge, tick=tick)
    (folder / "steps").write_text(str(moment - left[0]))


@pytest.mark.timeout(600)
def test_killed_at_twenty_moments_nothing_is_lost_or_paid_twice(chat_server, tmp_path):
    def grade(request):
        said = request["messages"][-1]["content"].split("Answer:\n")[1].split("\n")[0]
        return f"Verdict: {1 + sum(map(int, said.split())) % 10}"

    chat_server.answer = grade
    most = 3 * PROMPTS
    command = [sys.executable, __file__, "fork", chat_server.url, str(most + 1)]
    environment = os.environ | {"PYTHONPATH": str(root()), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    mother = subprocess.Popen(command, env=environment, **pipes)

    def run(moment, folder):
        mother.stdin.write(f"{moment} {folder}\n")
        return int(mother.stdout.readline())

    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(10**6, whole) == 0
    needed = len({headers["Idempotency-Key"] for headers in chat_server.headers})
    assert Ledger(most, whole / "ledger.sqlite").spent == len(chat_server.headers) == needed >= 2 * PROMPTS
    steps = int((whole / "steps").read_text())
    weights = (whole / "run" / "round-2" / "policy.safetensors").read_bytes()
    for moment in {max(1, round(steps * i / 20)) for i in range(1, 21)}:
        folder = tmp_path / str(moment)
        folder.mkdir()
        chat_server.headers.clear()
        assert run(moment, folder) == -signal.SIGKILL
        assert run(10**6, folder) == 0
        billed = {headers["Idempotency-Key"] for headers in chat_server.headers}
        assert len(billed) == needed  # the server bills a key once
        assert (
            needed <= Ledger(most + 1, folder / "ledger.sqlite").spent <= needed + 1
        )  # a call in mid-air counts twice
        assert (folder / "run" / "round-2" / "policy.safetensors").read_bytes() == weights
    mother.stdin.close()
    assert mother.wait(timeout=60) == 0


def fork_for_each_line(url, budget):
    """Run a process for each line of `moment folder`, and say how it ended; what they need is imported once."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        moment, folder = line.split()
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # the pipe is for exit codes
            killed_at(int(moment), Path(folder), url, budget)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__" and sys.argv[1] == "fork":
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: F401

    fork_for_each_line(sys.argv[2], int(sys.argv[3]))
elif __name__ == "__main__":
    place = Path(sys.argv[1])
    judge = (Fails if os.environ["FAILS"] else Writing)(place)
    _, weight = looped(place / "run", judge)
    (place / f"result-{os.environ['RANK']}.json").write_text(json.dumps(weight))
