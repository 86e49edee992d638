"""Balance loss: closed forms, global equals single-process (shards, gloo workers, micro-batches), statistics."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lib import grin


def routed(tokens=240, experts=6, seed=0, top_k=2):
    z = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return z, grin.sparsemixer_v2(z, top_k=top_k, jitter_eps=0.1, training=False)


def part(routing, rows):
    fields = {name: getattr(routing, name)[rows] for name in ("weights", "indices", "probs", "survivors", "scores")}
    return grin.Routing(**fields)


def test_it_is_one_when_even_and_the_number_of_experts_when_collapsed():
    even = grin.gshard(torch.eye(4).repeat(5, 1) * 20, top_k=1, jitter_eps=0.0, training=False)
    assert float(grin.balance_loss(even)) == pytest.approx(1.0, abs=1e-6)
    collapsed = grin.gshard(torch.tensor([[40.0, 0, 0, 0]]).expand(20, -1), top_k=1, jitter_eps=0.0, training=False)
    assert float(grin.balance_loss(collapsed)) == pytest.approx(4.0, abs=1e-5)


def test_with_global_counts_sharded_values_and_gradients_equal_the_single_process_ones_and_local_ones_do_not():
    z, routing = routed()
    whole = grin.balance_loss(routing)
    (wanted,) = torch.autograd.grad(whole, z, retain_graph=True)
    counts, shards = grin.dispatch_counts(routing), [slice(0, 120), slice(120, 240)]
    sharded = torch.stack([grin.balance_loss(part(routing, rows), counts=counts) for rows in shards]).mean()
    (found,) = torch.autograd.grad(sharded, z, retain_graph=True)
    torch.testing.assert_close(sharded, whole)
    torch.testing.assert_close(found, wanted)
    local = torch.stack([grin.balance_loss(part(routing, rows)) for rows in shards]).mean()
    assert abs((local - whole).item()) > 1e-4
    torch.testing.assert_close(grin.balance_loss(routing, shards=2), local)


def test_masked_tokens_do_not_count():
    _, routing = routed()
    mask = torch.arange(240) < 100
    torch.testing.assert_close(grin.balance_loss(routing, mask=mask), grin.balance_loss(part(routing, mask)))


def test_an_attention_mask_of_integers_and_rows_is_the_flat_mask_of_booleans():
    _, routing = routed()
    mask = torch.arange(240) < 100
    rows = mask.long().view(8, 30)
    torch.testing.assert_close(grin.balance_loss(routing, mask=rows), grin.balance_loss(routing, mask=mask))
    assert torch.equal(grin.dispatch_counts(routing, mask=rows), grin.dispatch_counts(part(routing, mask)))
    for function in (grin.balance_loss, grin.dispatch_counts):
        with pytest.raises(ValueError, match="a mask of 210 tokens does not fit a routing of 240"):
            function(routing, mask=rows[:-1])


def _worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    z, routing = routed()
    rows = slice(0, 90) if rank == 0 else slice(90, 240)  # unequal shares
    loss = grin.balance_loss(part(routing, rows))
    (gradient,) = torch.autograd.grad(loss, z)
    for value in (loss, gradient):
        dist.all_reduce(value.detach_())
    torch.save({"loss": loss / world, "gradient": gradient / world}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_gloo_workers_of_unequal_size_average_to_the_single_process_loss(tmp_path):
    z, routing = routed()
    whole = grin.balance_loss(routing)
    (wanted,) = torch.autograd.grad(whole, z)
    mp.spawn(_worker, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["loss"], whole.detach())
        torch.testing.assert_close(found["gradient"], wanted)


def test_z_loss_and_statistics():
    assert float(grin.z_loss(torch.zeros(3, 4))) == pytest.approx(math.log(4) ** 2)
    _, routing = routed()
    (stats,) = grin.routing_statistics([routing])
    torch.testing.assert_close(stats.load.sum(), torch.tensor(1.0))
    assert stats.max_load == pytest.approx(float(stats.load.max()))
    assert stats.choice == pytest.approx(float((routing.survivors[:, 0] > 1).float().mean()))
    assert stats.entropy <= math.log(6) + 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: grin.balance_loss(r, shards=7), "cannot be split into 7 equal shards"),
        (lambda r: grin.balance_loss(r, shards=2, mask=torch.ones(240, dtype=torch.bool)), "neither a mask nor counts"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(routed()[1])
