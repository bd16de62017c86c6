"""The page in a browser, served by the command in a process of its own."""

import io
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hf_ssl.data.order.ordered import sampled_rows
from hf_ssl.data.sources.shapes import shapes

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COMMAND = [sys.executable, "-m", "hf_ssl", "demo", "random:test_resnet", "--dataset", "shapes"]
UPLOADED = int(sampled_rows(2500, 100)[50])  # an image of the sample: one of each 25


@pytest.fixture(scope="module")
def address():
    """Where the page is, of 100 images."""
    words = [*COMMAND, "--max_images", "100", "--num_workers", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    lines = []
    for line in process.stderr:
        lines.append(line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            break
    else:
        pytest.fail("".join(lines))
    yield found.group()
    process.terminate()  # not SIGINT: a program that was started in the background inherits that it is ignored
    process.communicate()


@pytest.fixture(scope="module")
def picture():
    """An image file of the data set that is in the sample."""
    return shapes("train").data["image"][UPLOADED].as_py()["bytes"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_the_page_finds_the_neighbours_of_an_upload(address, picture, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    (tmp_path / "shape.png").write_bytes(picture)
    (tmp_path / "text.png").write_text("no image")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(0)  # none
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        upload = "#upload input[type=file]"

        page.set_input_files(upload, tmp_path / "text.png")
        page.wait_for_selector(".toast-body")
        assert "This file cannot be used as an image: not an image. Choose another." in page.inner_text(".toast-body")
        assert page.locator("#neighbours img").count() == 0
        page.wait_for_function("!document.querySelector('#upload img') && document.querySelector('#upload input')")

        before = page.get_attribute("#map img", "src")
        page.set_input_files(upload, tmp_path / "shape.png")
        page.wait_for_selector("#neighbours img")
        captions = page.locator("#neighbours .caption-label").all_inner_texts()
        cosines = [float(caption.split()[0]) for caption in captions]
        assert len(captions) == 8
        assert cosines[0] == 1 > cosines[1]
        assert cosines == sorted(cosines, reverse=True)
        shape = shapes("train").features["shape"].names[shapes("train")["shape"][UPLOADED]]
        assert captions[0].split() == ["1.0000", shape]
        nearest = page.request.get(page.locator("#neighbours img").first.get_attribute("src")).body()
        expected = Image.open(io.BytesIO(picture)).convert("RGB").resize((192, 192), Image.Resampling.NEAREST)
        shown = Image.open(io.BytesIO(nearest)).convert("RGB")
        assert np.abs(np.asarray(shown, np.float64) - np.asarray(expected)).mean() < 6  # of 255: it is compressed
        page.wait_for_function("src => document.querySelector('#map img').src != src", arg=before)

        page.locator("#examples img").nth(2).click()
        page.wait_for_function(
            "text => document.querySelector('#neighbours .caption-label').innerText != text", arg=captions[0]
        )
        assert page.inner_text("#neighbours .caption-label").startswith("1.0000 ")

        page.screenshot(path=tmp_path / "desktop.png", full_page=True)
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_function("document.documentElement.scrollWidth <= 390")
        beyond = "[...document.querySelectorAll('img')].filter(img => img.getBoundingClientRect().right > 390).length"
        page.wait_for_function(f"{beyond} == 0")
        page.screenshot(path=tmp_path / "phone.png", full_page=True)
        browser.close()
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {address.split("/")[2]}
    assert not faults
