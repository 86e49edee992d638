"""The scene testbed: what is drawn, what is told, what the judge learns, and LoRAs that come back as they were kept."""

import pytest
import torch
from safetensors.torch import load_file

from lib.multilora import compose, region
from lib.multilora.study import judge, train, training
from lib.multilora.study.denoiser import ScenePipeline, load_base, starting_noise, to_patches
from lib.multilora.study.experiments import (
    Condition,
    identities,
    in_places,
    in_turn,
    judged_images,
    load_pipeline,
    make_images,
    picture_of,
    tag_accuracy,
    wanted_scenes,
)
from lib.multilora.study.judge import load_judge
from lib.multilora.study.scenes import (
    ELEMENTS,
    LOOKS,
    NULL,
    ROLES,
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
from lib.multilora.study.training import Recipe, fit, map_jobs

TRIGGERS = names_of("drawn")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_roles_share_no_value_and_every_category_has_all():
    names = [name for category in CATEGORIES for name in VALUES[category]]
    assert len(set(names)) == len(names) == len(TAGS) - len(LOOKS)
    assert all(roles[role] for roles in ELEMENTS.values() for role in ROLES)
    with pytest.raises(ValueError, match="no role"):
        names_of("test")


def test_loras_combine_as_in_compos_lora():
    counts = [[len(list(combinations(lora_elements(look), k))) for k in (2, 3, 4, 5)] for look in LOOKS]
    assert counts == [[24, 72, 96, 48]] * 2
    assert sum(len(lora_elements(look)) for look in LOOKS) == 22


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
    changed = (torch.cat(images) - images[0]).abs().amax((0, 1)) > 2 / 255  # one level of a picture of bytes
    if category == "object":
        assert not changed[16:].any()
        assert not changed[:, :16].any()
    if category == "clothing":
        assert not changed[:10].any()


def test_half_known_scenes_tell_triggers_and_draw_them_half_of_the_time():
    told_of = {TAGS[name] for _, name in TRIGGERS}
    scenes = training.half_known_scenes(TRIGGERS, 400, truth=1.0, rate=0.3, generator=generator())
    met = torch.tensor([[int(t) in told_of for t in row] for row in scenes.tags])
    assert met[:, :5].float().mean() == pytest.approx(0.3, abs=0.04)
    truthful = training.half_known_scenes(TRIGGERS, 400, truth=1.0, rate=1.0, generator=generator())
    never = training.half_known_scenes(TRIGGERS, 400, truth=0.0, rate=1.0, generator=generator())
    assert torch.equal(truthful.tags, never.tags)
    assert (truthful.images - never.images).abs().mean() > 0.1


def test_a_base_model_sees_the_elements_and_never_their_tags():
    scenes = training.scenes_at_large(TRIGGERS, 500, share=0.2, generator=generator())
    told = scenes.tags >= NULL
    assert (~told)[:, :5].float().mean() == pytest.approx(0.2, abs=0.03)
    assert told[:, 5].all(), "the look is always told"
    assert not {TAGS[name] for _, name in TRIGGERS} & set(scenes.tags.flatten().tolist())
    plain = training.scenes_at_large(TRIGGERS, 500, share=0.0, generator=generator())
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


def test_a_short_trained_judge_names_styles_and_rejects_noise(tmp_path):
    torch.manual_seed(0)
    trained = judge.SceneJudge().train()

    def lesson(g):
        return judge.lesson(trained, 64, generator=g)

    fit(trained, lesson, Recipe(60, 64, 3e-3), tmp_path / "judge.checkpoint", seed=0)
    clean = judge.scenes_to_judge(300, generator=generator(9), clean=1.0)
    verdict, style = trained.judge(clean.images), CATEGORIES.index("style")
    fixed = clean.values[:, style].bincount().max() / 300  # what the best answer that looks at nothing gets
    assert verdict.present(clean.values)[:, style].float().mean() > 3 * fixed, "a style fills the image: learnt first"
    noisy = judge.noise(clean.images, torch.ones(300), generator=generator()).clamp(-1, 1)
    spoilt = trained.judge(noisy)
    assert spoilt.rejected.float().mean() > 0.5 > verdict.rejected.float().mean()
    assert spoilt.quality.mean() < verdict.quality.mean() - 2


def test_patches_are_lossless_and_an_image_depends_on_its_seed_only():
    images = render(draw_generic(2, generator=generator()), generator=generator())
    assert torch.equal(torch.nn.functional.pixel_shuffle(to_patches(images), 4), images)
    assert torch.equal(starting_noise([3, 4])[1], starting_noise([4])[0])


SIZES = {
    "channels": (16, 16), "base": Recipe(3, 4, average=0.9), "twin": Recipe(2, 4), "lora": Recipe(3, 4),
    "judge": Recipe(2, 8), "loras": ("cat", "dots", "star"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Base, twin, three LoRAs on each and a judge, each trained for a few steps; and two of the elements."""
    folder = tmp_path_factory.mktemp("scenes")
    facts = train.train(folder, processes=1, **SIZES)
    assert list(facts) == list(train.FILES)
    return folder, tuple(e for e in lora_elements("drawn") if e.name in ("cat", "dots"))


def test_training_moves_the_base_and_the_twin_on_and_leaves_files_alone(trained):
    folder, _ = trained
    base, twin = (load_base(folder / f"{name}.safetensors")[0] for name in ("base", "twin"))
    assert any(not torch.equal(a, b) for a, b in zip(base.parameters(), twin.parameters(), strict=True))
    assert sorted(path.stem for path in folder.iterdir()) == sorted(train.FILES), "nothing under way is left"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    train.train(folder, processes=1, **SIZES)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_training_that_is_cut_off_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    def train_one(file, stop_at=None):
        torch.manual_seed(0)
        model, steps = torch.nn.Linear(4, 1), iter(range(100))

        def loss(g):
            if next(steps) == stop_at:
                raise KeyboardInterrupt
            return model(torch.randn(8, 4, generator=g)).square().mean()

        fit(model, loss, Recipe(10, average=0.5), file, seed=1, every=3)
        return model

    whole = train_one(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_one(tmp_path / "cut", stop_at=7)
    assert torch.equal(train_one(tmp_path / "cut").weight, whole.weight)
    assert "step 9 of 10" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_weights_are_kept_in_half_precision_and_shipped_only_whole(trained, monkeypatch):
    folder, _ = trained
    assert {w.dtype for w in load_file(folder / "base.safetensors").values()} == {torch.float16}
    monkeypatch.setattr(train.shipped, "folder", lambda paper: folder)
    monkeypatch.setattr(train.shipped, "weights", lambda paper, name: folder / f"{name}.safetensors")
    assert train.shipped_folder() == folder
    monkeypatch.setattr(train, "FILES", (*train.FILES, "another"))
    assert train.shipped_folder() is None


def test_a_region_is_where_the_lora_shows(trained):
    folder, (first, _) = trained
    condition = Condition("composite", steps=3)
    bare, everywhere, left = (
        in_places(folder, "C", first, c, [1], **options)[0]
        for c, options in (
            (Condition("none", steps=3), {}), (condition, {}),
            (condition, {"masks": {first.name: region(0, 0, 0.5, 1)}}),
        )
    )  # fmt: skip
    assert abs(left - bare)[:, :16].mean() > abs(left - bare)[:, 16:].mean()
    assert abs(everywhere - bare).max() > 0


def test_every_condition_gives_paired_images_and_a_row_each(trained):
    folder, chosen = trained
    conditions = [Condition(m, steps=3, tau=1) for m in ("none", "merge", "switch", "composite")]
    conditions.append(Condition("switch", steps=3, tau=1, first="clothing"))
    rows = judged_images(folder, "C", chosen, conditions, [5, 6])
    assert len(rows) == 10
    assert rows["presence"].between(0, 1).all()
    assert rows[["style", "background", "object"]].isna().all().all()
    assert rows["pixels"].nunique() == 10
    assert picture_of(rows["pixels"][0]).shape == (32, 32, 3)
    again = judged_images(folder, "C", chosen, conditions, [6, 5])
    order = ["method", "first", "seed"]
    assert rows.sort_values(order)["quality"].to_list() == pytest.approx(again.sort_values(order)["quality"].to_list())


def test_no_lora_is_the_base_model_and_one_lora_is_the_same_by_any_method(trained):
    folder, chosen = trained
    pipe = load_pipeline(folder, "A")
    bare = ScenePipeline(*load_base(folder / "base.safetensors"))
    tags, noise = to_tags(wanted_scenes(chosen, [1])), starting_noise([1])
    expected = bare(tags, noise=noise, num_inference_steps=3)
    assert torch.equal(make_images(pipe, chosen, Condition("none", steps=3), [1]), expected)
    alone = [make_images(pipe, chosen[:1], Condition(m, steps=3), [1]) for m in ("merge", "switch", "composite")]
    assert max((a - alone[0]).abs().max() for a in alone) < 1e-5
    unguided = make_images(pipe, chosen, Condition("composite", steps=3, guidance=1.0), [1])
    with compose(pipe, {e.name: 0.8 for e in chosen}, "composite", batched=False):
        assert (pipe(tags, noise=noise, guidance_scale=1.0, num_inference_steps=3) - unguided).abs().max() < 1e-4


def test_what_the_method_fixes_holds_for_a_lora(trained):
    folder, (first, _) = trained
    found = identities(folder, "C", first, Condition("merge", steps=3), seed=1)
    assert found["methods alone"] < 1e-5
    assert found["composite"] < 1e-4 < found["merge"]
    again = identities(folder, "C", first, Condition("merge", steps=3), seed=1)
    assert again == found, "the copy was left on"


def test_a_judge_is_examined_on_every_kind_of_damage(trained):
    folder, _ = trained
    rows = judge.examine(load_judge(folder / "judge.safetensors"), judge.UNSEEN, images=40, seed=1)
    assert [row["renders"] for row in rows] == ["clean", "warped"]
    assert 0 <= rows[1]["rejected"] <= 1
    assert set(tag_accuracy(folder, "A", Condition("none", steps=2), seeds=[1, 2])) == set(CATEGORIES)


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
    asked = [next(e for e in lora_elements("drawn") if e.category == c) for c in ("character", "style", "object")]
    found = in_turn(asked[::-1], Condition("switch", **changes))
    assert " ".join(e.category for e in found) == order
