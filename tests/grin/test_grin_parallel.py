"""Data, tensor and pipeline parallelism on 2 and 4 gloo processes against one process: losses, gradients, training."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lib import grin, root
from lib.core.training import parameter_groups
from lib.grin import parallel, trainer
from lib.grin.sharding import stage_layers

SIZES = {
    "vocab_size": 53, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None, "router_jitter_noise": 0.4, "router_aux_loss_coef": 0.5,
    "router_z_loss_coef": 0.01,
}  # fmt: skip
LAYOUTS = {
    2: [
        parallel.Layout(data=2),
        parallel.Layout(data=2, micro_batches=2),
        parallel.Layout(tensor=2),
        parallel.Layout(pipeline=2, micro_batches=4),
    ],
    4: [
        parallel.Layout(data=2, tensor=2),
        parallel.Layout(data=4),
        parallel.Layout(tensor=4),
        parallel.Layout(pipeline=2, data=2, micro_batches=2),
        parallel.Layout(pipeline=2, tensor=2, micro_batches=2),
    ],
}
CASES = [(world, index) for world, layouts in LAYOUTS.items() for index in range(len(layouts))]
STEPS, SEED = 3, 7
RESUMED = [(2, 0), (2, 2), (2, 3), (4, 0), (4, 4)]
RECIPES = {"code": {}, "algorithm": {"expert_gradient": "algorithm"}, "gshard": {"router": "gshard"}}


def tiny(**changes):
    torch.manual_seed(0)
    model = grin.GrinForCausalLM(grin.GrinConfig(**(SIZES | changes)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5 * (3 if "router" in name else 1))
    return model.train()


def windows():
    return torch.randint(0, 53, (8, 9), generator=torch.Generator().manual_seed(1))


def trained(made, *, path=None, resume=False):
    """Train for all steps; with a path, write a checkpoint after the first step, or go on from there."""
    optimizer = torch.optim.AdamW(made.parameter_groups(0.1), lr=1e-2, betas=(0.9, 0.95))
    norms = []
    for step in range(made.load(path, optimizer) if resume else 0, STEPS):
        made.gradients(windows(), step=step)
        norms.append(made.clip(1.0))
        optimizer.step()
        optimizer.zero_grad()
        if path is not None and step == 0:
            made.save(path, optimizer, step=1)
    return {"weights": made.gathered(), "norms": norms}


def worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    found = {}
    for index, layout in enumerate(LAYOUTS[world]):
        for name, changes in RECIPES.items():
            model = tiny(**changes)
            if rank % (layout.data * layout.tensor):  # replicas take the first one's weights, whatever they began with
                for weight in model.parameters():
                    weight.data += 1.0
            made = parallel.ParallelGrin(model, layout, seed=SEED)
            losses = made.gradients(windows(), step=5)
            found[index, name] = {"losses": losses, "gradients": made.gathered("gradients")}
        made = parallel.ParallelGrin(tiny(), layout, seed=SEED)
        path = f"{folder}/{world}-{index}.checkpoint"
        found[index, "trained"] = trained(made, path=path)
        found[index, "names"] = sorted(made.gathered())
        if (world, index) in RESUMED:  # other weights to begin with, and the file of another layout
            made = parallel.ParallelGrin(tiny(initializer_range=0.3), layout, seed=SEED)
            found[index, "resumed"] = trained(made, path=f"{folder}/{world}-0.checkpoint", resume=True)
    with pytest.raises(ValueError, match=f"needs 3 processes, but {world} are running"):
        parallel.ParallelGrin(tiny(), parallel.Layout(data=3))
    torch.save(found, f"{folder}/{world}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.get_context("forkserver").set_forkserver_preload(["lib.grin.parallel"])  # imported once for all processes
    for world in LAYOUTS:
        mp.start_processes(worker, args=(world, str(folder)), nprocs=world, start_method="forkserver")
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt", weights_only=False) for rank in range(world)]
        for world in LAYOUTS
    }


def single(name):
    """Loss, auxiliary loss and gradients of the plain model on the whole batch, with the same draws."""
    model = tiny(**RECIPES[name])
    parallel.WindowDraws(model, seed=SEED).at(5, range(8))
    out = model(windows(), labels=windows())
    out.loss.backward()
    return out, {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("world", "index"), CASES)
def test_loss_and_gradients_equal_one_process(results, world, index, name):
    out, wanted = single(name)
    for rank in range(world):
        found = results[world][rank][index, name]
        assert found["losses"].total == pytest.approx(out.loss.item(), abs=1e-5)
        assert found["losses"].balance == pytest.approx(out.aux_loss.item(), abs=1e-5)
        assert found["gradients"].keys() == wanted.keys()
        for key, gradient in wanted.items():
            torch.testing.assert_close(found["gradients"][key], gradient, atol=1e-5, rtol=0, msg=lambda m, k=key: k + m)


def test_the_gradients_are_worth_comparing():
    out, wanted = single("code")
    assert out.aux_loss.item() > 1.001
    assert min(float(g.abs().max()) for g in wanted.values()) > 1e-3  # far above the tolerance
    model = tiny()
    draws = parallel.WindowDraws(model, seed=SEED)
    draws.at(5, range(8))
    model(windows())
    first = [r.indices.clone() for r in model.routings()]
    assert min(stats.choice for stats in grin.routing_statistics(model.routings())) > 0.3
    draws.at(6, range(8))
    model(windows())
    assert any((a != r.indices).any() for a, r in zip(first, model.routings(), strict=True))


@pytest.mark.parametrize(("world", "index"), CASES)
def test_clipped_training_steps_equal_one_process(results, world, index):
    model = tiny()
    draws = parallel.WindowDraws(model, seed=SEED)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.95))
    norms = []
    for step in range(STEPS):
        draws.at(step, range(8))
        model(windows(), labels=windows()).loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    for rank in range(world):
        found = results[world][rank][index, "trained"]
        assert found["norms"] == pytest.approx(norms, rel=1e-4)
        for key, weight in model.named_parameters():
            # Adam divides by the gradient's size: elements whose gradient is rounding noise may move either way.
            apart = (found["weights"][key] - weight.detach()).abs()
            assert float(apart.mean()) < 1e-5
    assert results[world][0][index, "names"] == sorted(n for n, _ in model.named_parameters())


@pytest.mark.parametrize(("world", "index"), RESUMED)
def test_a_run_resumed_under_any_layout_ends_where_the_uninterrupted_one_does(results, world, index):
    whole = results[world][0][0, "trained"]
    for rank in range(world):
        found = results[world][rank][index, "resumed"]
        assert found["norms"] == pytest.approx(whole["norms"][1:], rel=1e-4)
        assert max(float((found["weights"][name] - w).abs().mean()) for name, w in whole["weights"].items()) < 1e-5


def accelerated(rank, folder):
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "ACCELERATE_USE_CPU": "yes"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}  # asked for; the group is joined already
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(two_steps_by_accelerate(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def two_steps_by_accelerate(accumulation=2):
    # one expert survives, so that workers draw the same experts as one process
    model = tiny(router_jitter_noise=0.0, router_z_loss_coef=0.0)
    plan = trainer.TrainingPlan(steps=2, batch_size=8, learning_rate=1e-2, accumulation=accumulation)
    points = trainer.train(model, windows(), plan, progress=False, measure_at=[2], measure=lambda m: {**m.state_dict()})
    return points[0].measured


def test_training_by_accelerate_on_two_workers_equals_one(tmp_path):
    mp.start_processes(accelerated, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    wanted = two_steps_by_accelerate()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, weight in wanted.items():
            assert float((found[name] - weight).abs().mean()) < 1e-5
    whole = two_steps_by_accelerate(accumulation=1)
    assert all(float((whole[name] - weight).abs().mean()) < 1e-5 for name, weight in wanted.items())


def test_a_local_balance_loss_would_not_have_passed():
    model = tiny()
    parallel.WindowDraws(model, seed=SEED).at(5, range(8))
    model(windows())
    whole = torch.stack([grin.balance_loss(r) for r in model.routings()]).mean()
    local = torch.stack([grin.balance_loss(r, shards=2) for r in model.routings()]).mean()
    assert abs((whole - local).item()) > 1e-3


def test_draws_do_not_depend_on_who_draws_and_stay_random():
    model = tiny()
    draws = parallel.WindowDraws(model, seed=SEED)
    route, scores = model.model.layers[0].mlp.router.route, torch.randn(4 * 50, 4)
    options = {"top_k": 2, "jitter_eps": 0.4}
    draws.at(0, [3, 5, 2, 9])
    whole = route(scores, training=True, **options)
    draws.at(0, [2, 9])
    assert torch.equal(route(scores[100:], training=True, **options).indices, whole.indices[100:])
    draws.at(0, [3])
    assert not torch.equal(route(scores[100:150], training=True, **options).indices, whole.indices[100:150])
    calm = grin.sparsemixer_v2(scores, training=False, **options)
    assert torch.equal(route(scores, training=False, **options).indices, calm.indices)
    draws.at(0, [1, 2])
    with pytest.raises(ValueError, match="call `at` before the pass"):
        route(scores[:99], training=True, **options)


def test_layers_are_spread_evenly():
    assert [list(part) for part in stage_layers(5, 2)] == [[0, 1], [2, 3, 4]]
    assert sum((list(part) for part in stage_layers(32, 5)), []) == list(range(32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parallel.Layout(tensor=0), "at least 1"),
        (lambda: parallel.Layout(tensor=5).check_model(tiny().config), "cannot be shared by 5 processes"),
        (lambda: parallel.Layout(pipeline=4).check_model(tiny().config), "cannot fill 4 pipeline stages"),
        (lambda: parallel.Layout(pipeline=2).check_model(tiny(tie_word_embeddings=True).config), "untie them"),
        (lambda: parallel.Layout().check_model(tiny(balance_shards=2).config), "balances over the global batch"),
        (lambda: parallel.Layout(data=2, micro_batches=3).check_batch(8), "cannot be cut into 2 x 3 micro-batches"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def run_parallel(processes, *options):
    """The entry point under torchrun, or alone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RANK", None)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "lib.grin.study.parallel", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=root(), env=environment, timeout=300)


def test_the_entry_point_trains_under_torchrun_as_one_process_does_and_resumes_under_another_layout(tmp_path):
    sizes = ["--vocabulary", "300", "--width", "32", "--inner", "32", "--window", "32", "--experts", "4"]
    done = run_parallel(2, "--tensor", "2", "--checkpoint", str(tmp_path / "half"), *sizes)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["layout"]["processes"] == 2
    assert report["loss_difference"] < 1e-5
    assert 0 < report["gradient_difference"] < 1e-5
    assert len(report["next_token_losses"]) == 4
    alone = run_parallel(1, "--resume", str(tmp_path / "half"), *sizes)
    assert alone.returncode == 0, alone.stderr[-2000:]
    resumed = json.loads(alone.stdout.strip().splitlines()[-1])["next_token_losses"]
    assert resumed == pytest.approx(report["next_token_losses"][2:], abs=1e-5)


def test_the_entry_point_says_how_many_processes_a_layout_needs():
    done = run_parallel(1, "--data", "2")
    assert done.returncode == 2
    assert "needs 2 processes, but 1 are running" in done.stderr
