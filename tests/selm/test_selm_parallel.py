"""Two gloo processes under DDP train as one process does: same weights, same metrics."""

import copy
import json
import os
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def trained(folder, rows, batch):
    """Train a tiny policy for three steps in this process's world; keep weights and metrics of the main process."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lib.preference import config, train
    from lib.selm import SELMConfig, SELMTrainer
    from lib.zoo.models import converted

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(converted("smollm2-135m-instruct"))
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.05, tie_word_embeddings=True,
        )
    )  # fmt: skip
    args = config(
        folder, cls=SELMConfig, alpha=0.7, beta=0.3, learning_rate=1e-2, per_device_train_batch_size=batch,
        num_train_epochs=1.0, lr_scheduler_type="constant",
    )  # fmt: skip
    data = datasets.Dataset.from_list(rows)
    history = train(policy, tokenizer, data, args, trainer=SELMTrainer, ref_model=copy.deepcopy(policy), progress=False)
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save({"weights": policy.state_dict(), "history": history}, folder / "trained.pt")


def worker(rank, folder, rows):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",  # asked for; the group is joined already
    }  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    trained(Path(folder), json.loads(rows), 2)
    dist.destroy_process_group()


@pytest.mark.timeout(600)
def test_two_processes_train_as_one(triples, tmp_path):
    rows = [dict(row) for row in triples] * 2  # of every kind: in some batches one process has no y of its own
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    mp.start_processes(worker, args=(str(two), json.dumps(rows)), nprocs=2, start_method="forkserver")
    trained(one, rows, 4)
    a, b = (torch.load(f / "trained.pt") for f in (one, two))
    start = max(float(w.abs().max()) for w in a["weights"].values())
    assert start > 0
    for name, weight in a["weights"].items():
        assert torch.allclose(b["weights"][name], weight, atol=2e-5), name
    assert len(a["history"]) == len(b["history"]) == 3
    for first, second in zip(a["history"], b["history"], strict=True):
        for name in ("loss", "logps/response", "logps/ref_response", "rewards/response", "rewards/margins"):
            assert second[name] == pytest.approx(first[name], abs=1e-3), name
