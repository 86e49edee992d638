"""The language model: PhiMoE's logits by name, saving, generating, upcycling, losses, training."""

import copy
import pickle

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from lib import grin
from lib.grin import trainer

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": 1,
    "eos_token_id": None,
}  # fmt: skip
MOE = SIZES | {"num_local_experts": 6}


def large(model):
    """Weights large enough that attention and routing are far from uniform."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5 * (3 if "router" in name else 1))
    return model


def tokens(batch=3, length=19, seed=0):
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def phimoe():
    torch.manual_seed(0)
    return large(PhimoeForCausalLM(PhimoeConfig(**MOE, router_jitter_noise=0.2))).eval()


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_phimoe_weights_load_by_name_with_equal_logits(phimoe, place, tmp_path):
    if place == "folder":
        phimoe.save_pretrained(tmp_path)
    model = grin.from_phimoe(str(tmp_path) if place == "folder" else phimoe).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()).logits, phimoe(tokens()).logits, atol=1e-5, rtol=1e-5)
    choice = [stats.choice for stats in grin.routing_statistics(model.routings())]
    assert min(choice) > 0.2  # the masked softmax mattered


def test_padding_on_the_left_and_the_cache_change_nothing(phimoe):
    model, ids = grin.from_phimoe(phimoe).eval(), tokens(batch=2)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        alone = model(ids[:1, 4:]).logits
    torch.testing.assert_close(padded[0, 4:], alone[0], atol=1e-5, rtol=1e-4)
    quick = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True)
    slow = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(quick, slow)


def test_a_saved_model_comes_back_through_auto_classes(tmp_path):
    model = large(grin.GrinForCausalLM(grin.GrinConfig(**MOE, router="sparsemixer_v1", norm="rms"))).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(again, grin.GrinForCausalLM)
    assert again.config.router == "sparsemixer_v1"
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


DENSE = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True),
    "mistral with a window": MistralConfig(**SIZES, sliding_window=5),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "own head size": LlamaConfig(**SIZES, head_dim=12),
}


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_an_upcycled_model_is_the_dense_one_where_one_expert_survives(family, top_k):
    torch.manual_seed(0)
    dense = large(AutoModelForCausalLM.from_config(DENSE[family])).eval()
    moe = grin.upcycle(dense, 4, top_k=top_k, router_jitter_noise=0.0)
    with torch.no_grad():
        wanted = dense(tokens()).logits
        torch.testing.assert_close(moe(tokens()).logits, wanted, atol=1e-5, rtol=1e-4)
        for weight in moe.parameters():  # all of its own, none of them left on the meta device
            weight.add_(1.0)
        assert torch.equal(dense(tokens()).logits, wanted)
    feed_forward, layers = 3 * 32 * 48, SIZES["num_hidden_layers"]
    added = moe.num_parameters() - dense.num_parameters()
    assert added == layers * (3 * feed_forward + 4 * 32 + (32 if family == "qwen2" else 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_bias": True}, "experts have no biases"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "scales them"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "windows in some of them only"),
    ],
)
def test_a_dense_model_that_a_grin_decoder_cannot_hold_is_refused(changes, message):
    config = LlamaConfig(**SIZES)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        grin.upcycle(LlamaForCausalLM(config), 4)


FEW = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "output_router_logits": True}
MIXTURES = {
    "mixtral": MixtralConfig(**MOE, output_router_logits=True),
    "olmoe": OlmoeConfig(**SIZES | FEW),
    "qwen2_moe": Qwen2MoeConfig(**SIZES | FEW, shared_expert_intermediate_size=24),
    "qwen3_moe": Qwen3MoeConfig(**SIZES | FEW, norm_topk_prob=True, head_dim=8),
    "phimoe": PhimoeConfig(**MOE, router_jitter_noise=0.1),
}


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_routed_by_grin_is_transformers_sparsemixer_in_its_own_blocks_and_comes_back(family, tmp_path):
    torch.manual_seed(0)
    model, ids = large(AutoModelForCausalLM.from_config(MIXTURES[family])).eval(), tokens()
    fixed = family in ("mixtral", "qwen3_moe", "phimoe")
    if not fixed:
        with pytest.raises(ValueError, match="sum up to no constant"):
            grin.route_by_grin(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(ids).logits
        gates = grin.route_by_grin(model, total=None if fixed else 0.6)
        routed, seen = model(ids), [gate.routing for gate in gates]
        whole = {"phimoe": 2.0, "mixtral": 1.0, "qwen3_moe": 1.0}.get(family, 0.6)
        for gate, logits in zip(gates, routed.router_logits or [r.scores for r in seen], strict=True):
            _, indices = sparsemixer(logits, 0.1, False)
            assert torch.equal(gate.routing.indices, indices)
            torch.testing.assert_close(gate(torch.randn(1, 3, 32))[1].shape, torch.Size([3, 2]))
            torch.testing.assert_close(gate.total, whole / 2)
        assert (family == "phimoe") == torch.equal(routed.logits, before)
    model.train()
    out = model(ids, labels=ids)
    (out.loss + sum(grin.balance_loss(gate.routing) for gate in gates)).backward()
    assert all(float(gate.weight.grad.abs().max()) > 0 for gate in gates)
    copied = copy.deepcopy(model).eval()
    model.eval().save_pretrained(tmp_path)
    grin.route_as_before(model)
    with torch.no_grad():
        assert torch.equal(copied(ids).logits, routed.logits)
        assert torch.equal(model(ids).logits, before)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert type(again) is type(model)
        assert again.state_dict().keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
        # Loaded weights lie elsewhere, where PyTorch's grouped products may round otherwise, in a model untouched too.
        torch.testing.assert_close(again(ids).logits, before)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_grins_weights_multiply_the_experts_of_the_family(family):
    torch.manual_seed(0)
    model = large(AutoModelForCausalLM.from_config(MIXTURES[family])).eval()
    hidden = torch.randn(2, 7, 32)
    block = model.model.layers[0].mlp
    grin.route_by_grin(model, jitter_eps=0.3)
    with torch.no_grad():
        weights, indices = sparsemixer(hidden.flatten(0, 1) @ block.gate.weight.T, 0.3, False)
        wanted = block.experts(hidden.flatten(0, 1), indices, weights / 2).view_as(hidden)
        torch.testing.assert_close(block(hidden), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="routed by GRIN already"):
        grin.route_by_grin(model)
    with pytest.raises(ValueError, match="take GRIN's routing"):
        grin.route_by_grin(LlamaForCausalLM(LlamaConfig(**SIZES)))


def routed_mixtral():
    torch.manual_seed(0)
    model = large(AutoModelForCausalLM.from_config(MIXTURES["mixtral"])).train()
    return model, grin.route_by_grin(model)


def test_a_route_that_is_refused_leaves_the_model_as_it_was():
    model = AutoModelForCausalLM.from_config(MIXTURES["mixtral"])
    kinds = [type(module) for module in model.modules()]
    for wrong, message in (({"router": "typo"}, "router must be one of"), ({"jitter_eps": -0.1}, "at least 0")):
        with pytest.raises(ValueError, match=message):
            grin.route_by_grin(model, **wrong)
    assert kinds == [type(module) for module in model.modules()]
    assert len(grin.route_by_grin(model)) == 2


def test_a_routed_model_is_pickled_and_comes_back_by_its_own_routing():
    model, _ = routed_mixtral()
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(again.eval()(tokens()).logits, model.eval()(tokens()).logits)
        grin.route_as_before(model)
        grin.route_as_before(again)
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert type(again.model.layers[0].mlp.gate) is type(model.model.layers[0].mlp.gate)


THROUGH = {"itself": lambda model: model, "a copy": copy.deepcopy, "a pickle": lambda m: pickle.loads(pickle.dumps(m))}


@pytest.mark.parametrize("through", THROUGH.values(), ids=THROUGH)
def test_a_routed_model_refuses_reentrant_checkpointing_in_training_and_only_there(through):
    model, ids = through(routed_mixtral()[0]), tokens()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model(ids)
    gates = [module for module in model.modules() if hasattr(module, "routing")]
    sum(grin.balance_loss(gate.routing) for gate in gates).backward()
    assert all(float(gate.weight.grad.abs().max()) > 0 for gate in gates)
    for kwargs in ({"use_reentrant": True}, {"preserve_rng_state": False}):
        model.activation_checkpointing_enable(kwargs)
        for part in (model, model.model):  # peft and others may call what is inside
            with pytest.raises(ValueError, match="reentrant checkpointing loses"):
                part(ids)
    with torch.no_grad():
        model(ids)
    model.eval()(ids)
    grin.route_as_before(model)
    model.train()(ids)


def test_a_grin_model_refuses_reentrant_checkpointing_and_is_not_so_by_default():
    model = grin.GrinForCausalLM(grin.GrinConfig(**MOE)).train()
    with pytest.raises(ValueError, match="reentrant checkpointing loses"):
        model.activation_checkpointing_enable({"use_reentrant": True})
    model.activation_checkpointing_enable({"preserve_rng_state": False})
    model(tokens())
    assert all(routing.scores.requires_grad for routing in model.routings())


def test_micro_batches_of_trainer_count_by_their_labels_and_add_up_to_the_whole_batchs_loss_and_gradient():
    torch.manual_seed(0)
    config = grin.GrinConfig(**MOE, router_jitter_noise=0.0, router_aux_loss_coef=1.0, router_z_loss_coef=0.1)
    model = large(grin.GrinForCausalLM(config)).double().train()
    ids = tokens(batch=1).repeat(3, 1)  # rows alike: each is as balanced as all, so that only their number counts
    labels = ids.clone()
    labels[0, :9] = labels[1, :15] = -100
    whole = model(ids, labels=labels).loss
    wanted = torch.autograd.grad(whole, tuple(model.parameters()))
    items = labels[:, 1:].ne(-100).sum()
    parts = [model(i[None], labels=row[None], num_items_in_batch=items) for i, row in zip(ids, labels, strict=True)]
    total = sum(part.loss for part in parts)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, tuple(model.parameters())), wanted)


def test_losses_in_training_and_evaluation():
    torch.manual_seed(0)
    model = large(grin.GrinForCausalLM(grin.GrinConfig(**MOE, router_aux_loss_coef=0.5))).eval()
    ids = tokens()
    calm = model(ids, labels=ids)
    logits = calm.logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(calm.loss, torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    torch.testing.assert_close(
        calm.aux_loss, torch.stack([grin.balance_loss(routing) for routing in model.routings()]).mean()
    )
    model.train()
    torch.manual_seed(1)
    noisy = model(ids, labels=ids, output_router_logits=True)
    cross_entropy = torch.nn.functional.cross_entropy(noisy.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(noisy.loss, cross_entropy + 0.5 * noisy.aux_loss)
    assert [tuple(scores.shape) for scores in noisy.router_logits] == [(57, 6)] * 2
    noisy.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_published_radius_gives_most_tokens_no_router_gradient():
    torch.manual_seed(0)
    choice = {}
    for radius in (0.01, 0.3):
        model = large(grin.GrinForCausalLM(grin.GrinConfig(**MOE, router_jitter_noise=radius)))
        model(tokens(batch=20))
        choice[radius] = grin.routing_statistics(model.routings())[0].choice
    assert choice[0.01] < 0.15 < choice[0.3]


@pytest.mark.parametrize("router", sorted(grin.ROUTES))
def test_every_route_learns_a_repeated_text(router):
    torch.manual_seed(0)
    config = grin.GrinConfig(**MOE, router=router, initializer_range=0.1, tie_word_embeddings=True)
    model = grin.GrinForCausalLM(config)
    windows = tokens(batch=4, length=16).repeat(4, 1)
    before = trainer.window_losses(model, windows).mean()
    plan = trainer.TrainingPlan(steps=25, batch_size=8, learning_rate=1e-2, warmup=3)
    points = trainer.train(
        model, windows, plan, measure=lambda m: trainer.window_losses(m, windows).mean(), measure_at=[25],
        progress=False,
    )  # fmt: skip
    assert points[0].measured < before - 0.5
    assert points[0].tokens == 25 * 8 * 16


def test_micro_batches_give_the_whole_batchs_balance_and_gradient():
    torch.manual_seed(0)
    # one expert survives, so that there is no sampling noise between the two ways
    config = grin.GrinConfig(**MOE, router_jitter_noise=0.0, router_aux_loss_coef=1.0)
    model, ids = large(grin.GrinForCausalLM(config)).double().train(), tokens(batch=6)
    model(ids, labels=ids).loss.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    micro = list(ids.split(2))
    counts = trainer.step_counts(model, micro)
    for rows in micro:
        (model(rows, labels=rows, balance_counts=counts).loss / 3).backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-5)


def test_counting_first_leaves_the_draws_of_the_training_pass_alone():
    torch.manual_seed(0)
    model, ids = large(grin.GrinForCausalLM(grin.GrinConfig(**MOE, router_jitter_noise=0.4))).train(), tokens(batch=4)
    micro = list(ids.split(2))
    torch.manual_seed(5)
    counts = trainer.step_counts(model, micro)
    drawn = []
    for rows in micro:
        model(rows)
        drawn.append([grin.dispatch_counts(routing) for routing in model.routings()])
    for layer, count in enumerate(counts):
        assert torch.equal(count, sum(d[layer] for d in drawn))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grin.GrinConfig(**MOE, router="switch"), "router must be one of"),
        (lambda: grin.GrinConfig(**MOE, norm="batch"), "norm must be"),
        (lambda: grin.GrinConfig(**MOE, num_experts_per_tok=9), "num_experts_per_tok must be"),
        (lambda: grin.GrinForCausalLM(grin.GrinConfig(**MOE)).routings(), "has not routed anything yet"),
        (lambda: grin.from_phimoe(LlamaForCausalLM(LlamaConfig(**SIZES))), "only PhiMoE weights"),
        (lambda: grin.upcycle(PhimoeForCausalLM(PhimoeConfig(**MOE)), 4), "only llama, mistral, qwen2"),
        (lambda: trainer.TrainingPlan(steps=1, batch_size=3, learning_rate=1e-3, accumulation=2), "divide the batch"),
        (
            lambda: trainer.train(
                grin.GrinForCausalLM(grin.GrinConfig(**MOE)),
                tokens(batch=2),
                trainer.TrainingPlan(steps=1, batch_size=4, learning_rate=1e-3),
            ),
            "do not fill one batch",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_papers_model_has_its_size_on_the_meta_device():
    with torch.device("meta"):
        model = grin.GrinForCausalLM(grin.GrinConfig(head_dim=128, attention_bias=True, lm_head_bias=True))
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert total / 1e9 == pytest.approx(42, abs=0.5)  # the paper: 16 x 3.8B, 42B in all, 6.6B active
    assert (total - experts * 14 / 16) / 1e9 == pytest.approx(6.6, abs=0.1)
