"""ComposLoRA's 480 sets, recounted from a user's file with the paper's categories."""

from collections import Counter

import pytest

from lib import TenfoldError
from lib.multilora.study.testbed import CATEGORIES, combinations, load_testbed

COUNTS = {"character": 3, "clothing": 2, "style": 2, "background": 2, "object": 2}


@pytest.fixture
def file(tmp_path):
    lines = []
    for style in ("anime", "reality"):
        lines += [f"[{style}]", 'prefix = "best"', 'negative = "worst"', 'model = "owner/name"', "steps = 200"]
        for category, count in COUNTS.items():
            for i in range(count):
                lines += [
                    f"[[{style}.loras]]",
                    f'category = "{category}"',
                    f'name = "{category}-{i}"',
                    f'trigger = "{category} {i}"',
                    f'file = "{category}{i}.safetensors"',
                ]
    path = tmp_path / "testbed.toml"
    path.write_text("\n".join(lines))
    return path


def test_480_sets_of_22_loras(file):
    settings = load_testbed(file)
    assert sum(len(s.elements) for s in settings) == 22
    per_k = {k: sum(len(list(combinations(s.elements, k))) for s in settings) for k in (2, 3, 4, 5)}
    assert per_k == {2: 48, 3: 144, 4: 192, 5: 96}
    assert sum(per_k.values()) == 480


def test_every_set_has_one_character_and_distinct_categories_in_order(file):
    (setting, _) = load_testbed(file)
    seen = set()
    for k in (2, 3, 4, 5):
        for chosen in combinations(setting.elements, k):
            order = [CATEGORIES.index(e.category) for e in chosen]
            assert order == sorted(set(order))
            assert order[0] == 0
            seen.add(tuple(e.name for e in chosen))
    assert len(seen) == 240
    per_character = Counter(names[0] for names in seen)
    assert len(set(per_character.values())) == 1


def test_prompt_options_and_files(file):
    (setting, _) = load_testbed(file)
    chosen = next(combinations(setting.elements, 3))
    assert setting.prompt(chosen) == "best, character 0, clothing 0, style 0"
    assert setting.options == {"model": "owner/name", "steps": 200}
    assert chosen[0].file == str(file.parent / "character0.safetensors")


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_k(file, k):
    (setting, _) = load_testbed(file)
    with pytest.raises(TenfoldError, match="k is 1 to 5"):
        list(combinations(setting.elements, k))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a]\n[[a.loras]]\nname = 'x'\ntrigger = 'x'", "lacks 'category'"),
        ("[a]\n[[a.loras]]\ncategory = 'hat'\nname = 'x'\ntrigger = 'x'", "category 'hat'"),
        ("[a]\nprefix = 'x'", "needs LoRAs"),
        ("[a", "is no testbed"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(TenfoldError, match=words) as caught:
        load_testbed(path)
    assert "\n" not in str(caught.value)
