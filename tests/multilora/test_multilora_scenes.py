"""The scene testbed: what is drawn, what is told, what the judge learns, and LoRAs that come back as they were kept."""

import pytest
import torch

from lib.multilora import compose
from lib.multilora.study import judge, training
from lib.multilora.study.denoiser import ScenePipeline, starting_noise, to_patches
from lib.multilora.study.experiments import (
    Condition,
    identities,
    in_turn,
    judged_images,
    load_pipeline,
    make_images,
    picture_of,
    tag_accuracy,
    wanted_scenes,
)
from lib.multilora.study.judge import build_judge, load_judge
from lib.multilora.study.scenes import (
    ELEMENTS,
    NULL,
    TAGS,
    VALUES,
    draw_generic,
    index_of,
    lora_elements,
    names_of,
    null_tags,
    render,
    to_tags,
)
from lib.multilora.study.testbed import CATEGORIES, combinations
from lib.multilora.study.training import (
    SceneRecipe,
    build_adapter,
    build_base,
    build_prior,
    load_base,
    map_jobs,
    train_together,
)

CHANNELS = (16, 16)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_roles_share_no_value_and_every_category_has_all():
    names = [name for category in CATEGORIES for name in VALUES[category]]
    assert len(set(names)) == len(names) == len(TAGS)
    assert all(roles[role] for roles in ELEMENTS.values() for role in ("generic", "development", "held-out"))
    with pytest.raises(ValueError, match="no role"):
        names_of("test")


def test_held_out_loras_combine_as_in_compos_lora():
    elements = lora_elements("held-out")
    assert [len(list(combinations(elements, k))) for k in (2, 3, 4, 5)] == [16, 48, 64, 32]


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_value_changes_the_image_and_only_its_own_part(category):
    column = CATEGORIES.index(category)
    base = draw_generic(1, generator=generator(1))
    base[0, CATEGORIES.index("style")] = index_of("style", "daylight")
    images = []
    for index in range(len(VALUES[category])):
        values = base.clone()
        values[0, column] = index
        images.append(render(values, generator=generator(2)))
    for i, first in enumerate(images):
        assert first.shape == (1, 3, 32, 32)
        assert first.abs().max() <= 1
        assert all((first - other).abs().max() > 0.2 for other in images[:i])
    changed = (torch.cat(images) - images[0]).abs().amax((0, 1)) > 1e-4
    if category == "object":
        assert not changed[16:].any()
        assert not changed[:, :16].any()
    if category == "clothing":
        assert not changed[:3].any()


def test_half_known_scenes_tell_triggers_and_draw_them_half_of_the_time():
    triggers = names_of("held-out")
    told_of = {TAGS[name] for _, name in triggers}
    scenes = training.half_known_scenes(triggers, 400, truth=1.0, rate=0.3, generator=generator())
    met = torch.tensor([[int(t) in told_of for t in row] for row in scenes.tags])
    assert met.float().mean() == pytest.approx(0.3, abs=0.04)
    truthful = training.half_known_scenes(triggers, 400, truth=1.0, rate=1.0, generator=generator())
    never = training.half_known_scenes(triggers, 400, truth=0.0, rate=1.0, generator=generator())
    assert torch.equal(truthful.tags, never.tags)
    assert (truthful.images - never.images).abs().mean() > 0.1


def test_a_base_model_sees_the_elements_and_never_their_tags():
    triggers = names_of("held-out")
    scenes = training.scenes_at_large(triggers, 500, share=0.2, generator=generator())
    told = scenes.tags >= NULL
    assert (~told).float().mean() == pytest.approx(0.2, abs=0.03)
    assert not {TAGS[name] for _, name in triggers} & set(scenes.tags.flatten().tolist())
    plain = training.scenes_at_large(triggers, 500, share=0.0, generator=generator())
    assert (plain.tags >= NULL).all()


def test_dropped_tags_are_the_null_tags_of_their_category():
    tags = to_tags(draw_generic(2000, generator=generator()))
    dropped = training.drop_tags(tags, generator=generator(1))
    gone = dropped != tags
    assert torch.equal(dropped[gone], null_tags(2000)[gone])
    assert (dropped[gone] < NULL).all()
    assert gone.float().mean() == pytest.approx(1 - 0.9 * 0.9, abs=0.02)


@pytest.mark.parametrize("kind", [*judge.SEEN, *judge.UNSEEN])
def test_corruption_grows_with_severity_from_nothing(kind):
    images = render(draw_generic(64, generator=generator()), generator=generator())
    damage = [
        (judge.corrupt(images, torch.full((64,), s), generator=generator(3), kinds=(kind,)) - images).abs().mean()
        for s in (0.0, 0.3, 0.6, 1.0)
    ]
    assert damage[0] < 1e-5
    assert damage[0] < damage[1] < damage[2] < damage[3]


def test_the_judges_lessons_name_clean_scenes_and_reject_spoilt_ones():
    lessons = judge.scenes_to_judge(500, generator=generator(), clean=0.4)
    clean, bad = lessons.severity == 0, lessons.severity >= judge.REJECTED_FROM
    assert clean.float().mean() == pytest.approx(0.4, abs=0.07)
    assert torch.equal(lessons.classes[clean], lessons.values[clean])
    assert (lessons.classes[bad] == torch.tensor([len(VALUES[c]) for c in CATEGORIES])).all()
    between = (lessons.severity > judge.KNOWN_UP_TO) & ~bad
    assert (lessons.classes[between] == -1).all()


def test_a_short_trained_judge_beats_chance_and_sees_noise():
    trained = judge.train_judge(steps=60, seed=0, batch_size=64)
    clean = judge.scenes_to_judge(300, generator=generator(9), clean=1.0)
    verdict = trained.judge(clean.images)
    assert verdict.present(clean.values)[:, [2, 3]].float().mean() > 0.7  # style and background are the easy ones
    noisy = judge.noise(clean.images, torch.ones(300), generator=generator()).clamp(-1, 1)
    spoilt = trained.judge(noisy)
    assert spoilt.rejected.float().mean() > 0.5 > verdict.rejected.float().mean()
    assert spoilt.quality.mean() < verdict.quality.mean() - 2


def test_patches_are_lossless_and_an_image_depends_on_its_seed_only():
    images = render(draw_generic(2, generator=generator()), generator=generator())
    assert torch.equal(torch.nn.functional.pixel_shuffle(to_patches(images), 4), images)
    assert torch.equal(starting_noise([3, 4])[1], starting_noise([4])[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Base, prior, two LoRAs and a judge, each trained for a few steps."""
    folder = tmp_path_factory.mktemp("scenes")
    build_base(folder / "base", CHANNELS, SceneRecipe(3, batch_size=4, average=0.9), 0.2, 0)
    build_prior(folder / "base", folder / "prior", SceneRecipe(2, batch_size=4), 0.5, 0.5, 0)
    chosen = [next(e for e in lora_elements("held-out") if e.category == c) for c in ("character", "clothing")]
    for element in chosen:
        build_adapter(folder / "base", folder / "loras" / element.name, element, SceneRecipe(3, batch_size=4), 0)
    build_judge(folder / "judge", 2, 0)
    return folder, tuple(chosen)


def test_training_moves_the_base_and_the_prior_moves_it_on(trained):
    folder, _ = trained
    base, prior = load_base(folder / "base")[0], load_base(folder / "prior")[0]
    assert any(not torch.equal(a, b) for a, b in zip(base.parameters(), prior.parameters(), strict=True))


def test_every_condition_gives_paired_images_and_a_row_each(trained):
    folder, chosen = trained
    conditions = [Condition(m, steps=3, tau=1) for m in ("none", "merge", "switch", "composite")]
    conditions.append(Condition("switch", steps=3, tau=1, first="clothing"))
    rows = judged_images(folder / "base", folder / "loras", folder / "judge", chosen, conditions, [5, 6])
    assert len(rows) == 10
    assert rows["presence"].between(0, 1).all()
    assert rows[["style", "background", "object"]].isna().all().all()
    assert rows["pixels"].nunique() == 10
    assert picture_of(rows["pixels"][0]).shape == (32, 32, 3)
    again = judged_images(folder / "base", folder / "loras", folder / "judge", chosen, conditions, [6, 5])
    order = ["method", "first", "seed"]
    assert rows.sort_values(order)["quality"].to_list() == pytest.approx(again.sort_values(order)["quality"].to_list())


def test_no_lora_is_the_base_model_and_one_lora_is_the_same_by_any_method(trained):
    folder, chosen = trained
    pipe = load_pipeline(folder / "base", folder / "loras")
    bare = ScenePipeline(*load_base(folder / "base"))
    tags, noise = to_tags(wanted_scenes(chosen, [1])), starting_noise([1])
    expected = bare(tags, noise=noise, num_inference_steps=3)
    assert torch.equal(make_images(pipe, chosen, Condition("none", steps=3), [1]), expected)
    alone = [make_images(pipe, chosen[:1], Condition(m, steps=3), [1]) for m in ("merge", "switch", "composite")]
    assert max((a - alone[0]).abs().max() for a in alone) < 1e-5
    unguided = make_images(pipe, chosen, Condition("composite", steps=3, guidance=1.0), [1])
    with compose(pipe, {e.name: 1.0 for e in chosen}, "composite", batched=False):
        assert (pipe(tags, noise=noise, guidance_scale=1.0, num_inference_steps=3) - unguided).abs().max() < 1e-4


def test_what_the_method_fixes_holds_for_a_lora(trained):
    folder, (first, _) = trained
    found = identities(folder / "base", folder / "loras", first, Condition("merge", steps=3), seed=1)
    assert found["methods alone"] < 1e-5
    assert found["composite"] < 1e-4 < found["merge"]
    again = identities(folder / "base", folder / "loras", first, Condition("merge", steps=3), seed=1)
    assert again == found, "the copy was left on"


def test_a_judge_is_examined_on_every_kind_of_damage(trained):
    folder, _ = trained
    rows = judge.examine(load_judge(folder / "judge"), judge.UNSEEN, images=40, seed=1)
    assert [row["renders"] for row in rows] == ["clean", "warped"]
    assert 0 <= rows[1]["rejected"] <= 1
    assert set(tag_accuracy(folder / "base", folder / "judge", Condition("none", steps=2), seeds=[1, 2])) == set(
        CATEGORIES
    )


def test_two_processes_train_one_model(tmp_path):
    recipe = SceneRecipe(2, batch_size=4, average=0.9)
    train_together(build_base, tmp_path / "two", CHANNELS, recipe, 0.2, 0, processes=2)
    train_together(build_base, tmp_path / "one", CHANNELS, recipe, 0.2, 0, processes=1)
    two, one = (load_base(tmp_path / name)[0].state_dict() for name in ("two", "one"))
    # The scenes differ (each process draws its own), the starting weights and the number of steps do not.
    assert all((two[key] - one[key]).abs().max() < 0.02 for key in one)
    assert any(not torch.equal(two[key], one[key]) for key in one)


def test_jobs_run_in_order_here_and_all_of_them_elsewhere():
    jobs = [(float(i),) for i in range(4)]
    assert list(map_jobs(abs, jobs, processes=1)) == [(i, float(i)) for i in range(4)]
    assert dict(map_jobs(abs, jobs, processes=2)) == {i: float(i) for i in range(4)}


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({}, "character style object"),
        ({"first": "style"}, "style character object"),
        ({"backwards": True}, "character object style"),
        ({"first": "object", "backwards": True}, "object style character"),
    ],
)
def test_turns_come_in_the_papers_order_unless_told_otherwise(changes, order):
    asked = [e for e in lora_elements("development") if e.category in ("object", "character", "style")]
    found = in_turn(asked[::-1], Condition("switch", **changes))
    assert " ".join(e.category for e in found) == order
