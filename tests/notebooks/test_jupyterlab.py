"""A newcomer's hour: JupyterLab in a browser, the tour opened, "Run All Cells", its figures seen and no error."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from lib import root
from lib.lab import profiles

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), "")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SECONDS = 600

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture
def notebooks(tmp_path):
    """The notebooks' folder, copied, with the tour at the sizes of the smoke profile."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    folder = shutil.copytree(root() / "notebooks", tmp_path / "notebooks")
    tour = folder / "00_tour.ipynb"
    overrides = profiles.load("smoke").parameters("tour")
    nbformat.write(parameterize_notebook(load_notebook_node(str(tour)), overrides), tour)
    return folder


@pytest.fixture
def jupyterlab(notebooks, tmp_path):
    """Address of a running JupyterLab on these notebooks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"TENFOLD_FIGURES": str(tmp_path / "figures"), "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", f"--notebook-dir={notebooks}"]
    command += ["--allow-root", "--IdentityProvider.token=", "--LabApp.news_url=None"]
    server = subprocess.Popen(command, env=os.environ | places, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{address}/api"), 90)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s in vain"
        time.sleep(1)


def test_a_newcomer_runs_the_tour_and_sees_its_figures(jupyterlab, notebooks, tmp_path):
    from playwright.sync_api import sync_playwright

    tour = notebooks / "00_tour.ipynb"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{jupyterlab}/lab/tree/{tour.name}")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.get_by_text("| Idle").wait_for(timeout=90_000)  # what is run before the kernel is there is dropped
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()

        def all_ran():
            page.keyboard.press("Control+s")
            page.wait_for_timeout(2000)
            cells = [c for c in json.loads(tour.read_text())["cells"] if c["cell_type"] == "code"]
            failed = [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
            assert not failed, failed[0]["evalue"]
            return all(c["execution_count"] for c in cells)

        wait_for(all_ran, SECONDS)
        pictures, panel = page.locator(".jp-RenderedImage img"), page.locator(".jp-WindowedPanel-outer").first
        for height in range(0, 20_000, 400):  # only cells in view are in the page
            panel.evaluate("(panel, height) => panel.scrollTo(0, height)", height)
            page.wait_for_timeout(200)
            if pictures.count():
                break
        pictures.first.scroll_into_view_if_needed()
        assert pictures.first.is_visible()
        width = pictures.first.evaluate("image => image.naturalWidth")
        page.screenshot(path=tmp_path / "tour.png")
        browser.close()
    assert width > 300
    assert (tmp_path / "tour.png").stat().st_size > 20_000
    figures = tmp_path / "figures/interactive/guides/tour"
    results = json.loads((figures / "results.json").read_text())
    assert all((figures / f"{name}.png").stat().st_size > 5000 for name in results["figures"])
    outputs = [o for c in json.loads(tour.read_text())["cells"] for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == len(results["figures"])
