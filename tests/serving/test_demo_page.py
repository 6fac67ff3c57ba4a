"""A person drops an image on /demo in a real browser, through the proxy, and sees masks.

Screenshots stay in dist/screenshots.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

from browser import browser, find_browser
from proxy_process import running_proxy

pytestmark = pytest.mark.browser
SCREENSHOTS = Path(__file__).parents[2] / "dist" / "screenshots"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """The file of tokens of a proxy that asks for them."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("open sesame\nsecret\n")
    return path


@pytest.fixture(scope="module")
def start_proxy(server, tmp_path_factory):
    def start(**front):
        return running_proxy(tmp_path_factory.mktemp("proxy"), server.target, **front)

    return start


@pytest.fixture(scope="module")
def proxy(start_proxy):
    with start_proxy() as started:
        yield started


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if find_browser() is None:
        pytest.fail("no Chromium here; on Debian: apt-get install chromium-headless-shell")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(running, proxy):
    """The page at /demo, just opened; in the end nothing may have gone wrong in it."""
    running.complaints.clear()
    running.resize(1200, 860)
    running.open("about:blank#")
    running.open(f"{proxy.url}/demo")
    yield running
    assert running.complaints == []


@pytest.fixture(scope="module")
def picture_file(png, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "four quarters.png"
    path.write_bytes(png)
    return path


def found_by_server(proxy, png):
    answer = requests.post(
        f"{proxy.url}/predictions/polarmask",
        data=png,
        headers={"X-Score-Threshold": "0", "Content-Type": "image/png"},
        timeout=60,
    )
    return answer.json()["instances"]


def give(page, path):
    page.choose_file("#file", path)
    page.until("document.querySelector('#busy').hidden && !document.querySelector('#found').hidden")


def test_a_picture_gets_masks_and_a_list(page, proxy, png, picture_file):
    assert "Drop an image here" in page.text("#invitation")
    page.picture(SCREENSHOTS / "demo-empty.png")
    give(page, picture_file)
    expected = [each for each in found_by_server(proxy, png) if each["score"] >= 0.3]
    assert page.text("#status") == f"{len(expected)} instances"
    assert page.run("document.querySelectorAll('#list li').length") == len(expected)
    assert "200 x 120 pixels" in page.text("#facts")
    # The image is red there; drawn over it is something else.
    scale = page.run("canvas.width / picture.width")
    x, y = (np.mean(expected[0]["polygon"], axis=0) * scale).round().astype(int)
    pixel = f"Array.from(canvas.getContext('2d').getImageData({x}, {y}, 1, 1).data)"
    drawn = page.run(pixel)
    page.slide("#threshold", 1)
    assert page.run(pixel) != drawn
    page.slide("#threshold", 0.3)
    page.slide("#fill", 0.25)
    page.picture(SCREENSHOTS / "demo.png")
    page.resize(390, 844, dark=True)
    page.picture(SCREENSHOTS / "demo-phone-dark.png")
    assert page.run("document.documentElement.scrollWidth") <= 390


def test_sliders_and_categories_filter_without_asking_again(page, proxy, png, picture_file):
    give(page, picture_file)
    everything = found_by_server(proxy, png)
    page.run("window.fetch = () => { throw new Error('asked again') }; 0")
    scores = sorted(each["score"] for each in everything)
    for least in (0, scores[len(scores) // 2], 1):
        page.slide("#threshold", least)
        shown = float(page.run("document.querySelector('#threshold').value"))
        wanted = sum(score >= shown for score in scores)
        assert page.text("#status") == f"{wanted} instance{'' if wanted == 1 else 's'}"
    page.slide("#threshold", 0)
    page.click("#categories label:first-of-type input")
    left = sum(each["category"] == "nucleus" for each in everything)
    page.until(f"document.querySelector('#status').innerText.startsWith('{left} instance')")


def test_a_click_in_the_list_marks_an_instance_and_json_can_be_kept(page, picture_file, tmp_path):
    give(page, picture_file)
    page.click("#list li:nth-child(2) button")
    assert page.run("chosen") == 1
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#download")
    page.until("true")
    for _ in range(200):
        if (files := list(tmp_path.glob("*.json"))) and files[0].stat().st_size:
            break
        page.run("new Promise(done => setTimeout(done, 50))")
    assert files[0].name == "four quarters.json"
    content = json.loads(files[0].read_text())
    assert len(content["instances"]) == page.run("visible().length")


def test_another_format_that_the_browser_reads_is_sent_as_png(page, picture, tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(cv2.imencode(".webp", picture)[1].tobytes())
    give(page, path)
    assert "200 x 120 pixels" in page.text("#facts")


def test_what_is_no_picture_is_refused_in_words(page, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    page.choose_file("#file", path)
    page.until("!document.querySelector('#wrong').hidden")
    assert "notes.txt is not an image that this browser can read" in page.text("#wrong")


def test_a_server_that_wants_a_token_gets_it(running, start_proxy, tokens, picture_file):
    with start_proxy(tokens=tokens) as guarded:
        running.resize(1200, 860)
        running.open("about:blank#")
        running.open(f"{guarded.url}/demo")
        running.choose_file("#file", picture_file)
        running.until("!document.querySelector('#login').hidden")
        assert "wants a token" in running.text("#login")
        for word in ("wrong", "secret"):
            running.run(f"document.querySelector('#token').value = '{word}'; 0")
            running.click("#login button")
            if word == "wrong":
                running.until("!document.querySelector('#wrong').hidden")
                assert "does not know this token" in running.text("#wrong")
        running.until("!document.querySelector('#found').hidden")
    # The browser itself notes each 401, and nothing else went wrong.
    assert all("401" in each for each in running.complaints)


def test_a_server_that_is_gone_is_reported_and_asked_again(running, start_proxy, picture_file):
    with start_proxy() as proxy:
        running.open("about:blank#")
        running.open(f"{proxy.url}/demo")
        proxy.stop()
        running.choose_file("#file", picture_file)
        running.until(
            "!document.querySelector('#again').hidden && document.querySelector('#busy').hidden"
        )
        assert "is not reached" in running.text("#wrong")


def test_the_policy_lets_in_nothing_but_the_page_itself(proxy):
    answer = requests.get(f"{proxy.url}/demo", timeout=10)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "src=" not in answer.text
    assert "http:" not in answer.text.replace("http://www.w3.org", "")
