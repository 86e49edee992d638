"""The page of an annotated corpus, written from a real folder and used in headless Chromium without a network."""

import shutil

import numpy as np
import pytest

from lib import TenfoldError
from lib.core.chat import Reply
from lib.usergpt import Annotation, Conversation, annotate_corpus, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
SUBJECTS = {"bread": ("PLA", "FOO"), "python": ("GEN", "TEC"), "poems": ("CRE", "ENT"), "taxes": ("ADV", "FIN")}


class Subjects:
    """An annotator and an encoder that see which subject a text is about."""

    def annotate(self, conversations):
        for c in conversations:
            task, domain = next(codes for subject, codes in SUBJECTS.items() if subject in c.text)
            yield Annotation(c.id, domain, (task,))

    def encode(self, texts, *, batch_size=64, progress=False):
        rng = np.random.default_rng(0)
        points = np.array([[float(subject in text) for subject in SUBJECTS] for text in texts])
        points = points + 0.05 * rng.standard_normal(points.shape)
        return points / np.linalg.norm(points, axis=1, keepdims=True)


class Namer:
    model = "namer"

    def complete_many(self, questions, decoding=None, *, attempt=0):
        return [
            Reply(("Baking at home" if "bread" in question else "I would rather not name this " * 5,))
            for question in questions
        ]


@pytest.fixture
def page(tmp_path):
    texts = [
        f"tell me more about {list(SUBJECTS)[i % 4]} number{i} </script><b>x</b> me{i}@mail.org" for i in range(160)
    ]
    people = [Conversation(str(i), str(i // 2), (text,)) for i, text in enumerate(texts)]
    annotate_corpus(people, Subjects(), tmp_path, part_size=50)
    return report(
        tmp_path, encoder=Subjects(), namer=Namer(), topics=4, branches=2, minimum=5, title="Asked & answered"
    )


def test_the_page_holds_no_secret_stays_small_and_needs_enough_conversations(page, tmp_path):
    text = page.read_text(encoding="utf8")
    assert "@mail.org" not in text
    assert "[e-mail]" in text
    assert "http://" not in text
    assert "https://" not in text
    assert text.count("</script>") == 2
    assert len(text) < 100_000
    with pytest.raises(TenfoldError, match="too few for 90 topics"):
        report(tmp_path, encoder=Subjects(), topics=90)
    with pytest.raises(TenfoldError, match="holds no annotations"):
        report(tmp_path / "none")


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")
def test_people_search_zoom_and_drill_down_without_a_network(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
        tab, asked, errors = context.new_page(), [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.as_uri())
        assert tab.title() == "Asked & answered"
        assert tab.locator("#tasks .name").count() == 23
        assert "160 of 160" in tab.locator("#count").inner_text()
        tab.fill("#search", "number17 e-mail")
        assert tab.locator("#rows tr").count() == 1
        assert "</script><b>x</b>" in tab.locator("#rows td").first.inner_text()
        tab.fill("#search", "")
        tab.select_option("#task", "PLA")
        assert "40 of 160" in tab.locator("#count").inner_text()
        tab.select_option("#task", "")
        for box in tab.locator(".tree details").all():
            box.locator("summary").click()
        tab.get_by_role("button", name="Baking at home (40)").click()
        assert "40 of 160" in tab.locator("#count").inner_text()
        tab.get_by_role("button", name="Show all").click()
        canvas = tab.locator("#map")
        canvas.scroll_into_view_if_needed()
        before = canvas.screenshot()
        canvas.hover()
        tab.mouse.wheel(0, -600)
        tab.wait_for_function("document.getElementById('map').dataset.zoom > 2")
        assert canvas.screenshot() != before
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 844})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert not errors
    assert asked == [page.as_uri()]
