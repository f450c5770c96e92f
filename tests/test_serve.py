"""The service over HTTP and in a browser: what it describes holds, what people see follows what they do."""

import shutil
import threading
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec

import pytest
from effort import tried

from correct_smooth.graph import GraphConfig
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.serve import listener
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

if not all(map(find_spec, ("fastapi", "uvicorn", "httpx", "schemathesis"))):
    pytest.skip("needs fastapi, uvicorn, httpx and schemathesis", allow_module_level=True)

import schemathesis
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import given
from schemathesis import GenerationMode

from correct_smooth.service import service

QUICK = dict(graph=GraphConfig(k=5), training=TrainConfig(epochs=3), ensemble=2, progress=False)
WORDS = "Amber Birch Cedar Dune Ember Fjord Grove Heath".split(), "Road River House Song Light".split()
NAMES = [f"The {a} {b}" for a in WORDS[0] for b in WORDS[1]]
NAMES += [f"Night {k}: A Long Story <b>{k}</b>" for k in range(40)]


@pytest.fixture(scope="module")
def model():
    world = synthetic_data(60, 80, 1_500, seed=0)
    return CorrectSmoothRecommender(**QUICK).fit(replace(world, movies=world.movies.assign(title=NAMES)))


@contextmanager
def running(model):
    "The service at a free port, in a thread of its own, until the block ends."
    with listener("127.0.0.1", 0) as place:
        server = uvicorn.Server(uvicorn.Config(service(model), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()  # the socket takes calls already: who calls before all is ready waits a moment
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(model):
    with running(model) as url:
        yield url


# --- what it describes holds


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_those_of_the_description(model, mode):
    "schemathesis makes fit and unfit requests of the description, and holds the answers against it."
    api = schemathesis.openapi.from_asgi("/openapi.json", service(model))
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path in ("/health", "/about"):
            continue  # nothing can be said to them that is wrong

        @tried(15, 1_000)
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case):
            answer = case.call()
            if answer.status_code == 400 and "off the scale of the model" in answer.text:
                return  # of which the description knows nothing
            case.validate_response(answer)

        holds()


def test_readers_of_the_service_see_one_state(model):
    "A list and its scores are of one model, whoever is taken in meanwhile."
    web, ask = TestClient(service(model)), {"ratings": [{"item_id": 3, "rating": 5}], "reasons": 1}
    first, wrong, stop = web.post("/recommend", json=ask).json(), [], threading.Event()

    def read():
        while not stop.is_set():
            if web.post("/recommend", json=ask).json() != first:
                wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    before = model.ready_
    for k in range(10):
        model.fold_in(replace_user(model, 900 + k)).forget([900 + k])
    stop.set()
    for reader in readers:
        reader.join()
    model.ready_ = before
    assert not wrong


def replace_user(model, user):
    "Three ratings of somebody."
    return model.data_.ratings.head(3).assign(user_id=user).drop(columns="timestamp", errors="ignore")


# --- in a browser


@pytest.fixture(scope="module")
def browser():
    chrome = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chrome or not driver or not find_spec("selenium"):
        pytest.skip("needs selenium, chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as window:
        yield window


@pytest.fixture
def page(browser, url):
    "The page, just opened, its first list shown."
    browser.set_window_size(1200, 1000)
    browser.get(url)
    until(browser, lambda: len(listed(browser)) == 10)
    yield browser
    assert [row for row in browser.get_log("browser") if row["level"] == "SEVERE"] == []


def until(browser, true):
    "Wait for what the page will do."
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60, 0.02, [StaleElementReferenceException]).until(lambda _: true())


def some(browser, selector):
    return browser.find_elements("css selector", selector)


def listed(browser):
    "Titles on the list, in one look."
    return browser.execute_script(
        "return [...document.querySelectorAll('#top .name')].map(o => o.textContent)"
    )


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def focus(browser):
    return browser.switch_to.active_element


def rate(browser, title, star):
    "Search a title and give it stars, with keys alone."
    from selenium.webdriver.common.keys import Keys

    some(browser, "#query")[0].send_keys(title)
    until(browser, lambda: [o.text for o in some(browser, "#options li .name")][:1] == [title])
    n = len(some(browser, "#rated .stars:has(:checked)"))
    press(browser, Keys.ENTER)
    until(browser, lambda: focus(browser).get_attribute("type") == "radio")
    press(browser, str(star))
    until(browser, lambda: len(some(browser, "#rated .stars:has(:checked)")) == n + 1)
    press(browser, Keys.ENTER)
    until(browser, lambda: focus(browser).get_attribute("id") == "query")


def test_ten_ratings_change_the_list_and_give_reasons(page, model):
    first = listed(page)
    for k in range(10):
        rate(page, NAMES[3 * k], 5 if k % 2 else 2)
    assert page.find_element("id", "count").text == "10 rated"
    ratings = {model.items_[3 * k]: 5.0 if k % 2 else 2.0 for k in range(10)}
    expected = model.recommend_for(ratings, by=0.33)["title"].tolist()
    until(page, lambda: [title.strip() for title in listed(page)] == expected)
    assert listed(page) != first
    reasons = [one.text for one in some(page, "#top .why")]
    assert any(text.startswith("because you loved The") for text in reasons), reasons


def test_the_slider_and_the_switch_change_the_list(page, model):
    from selenium.webdriver.common.keys import Keys

    for k in (0, 7, 12):
        rate(page, NAMES[k], 5)
    ratings = {model.items_[k]: 5.0 for k in (0, 7, 12)}
    slider, switch = page.find_element("id", "share"), page.find_element("id", "corrected")
    for key, by in ((Keys.HOME, 1), (Keys.END, 0)):
        slider.send_keys(key)
        expected = model.recommend_for(ratings, by=by)["title"].tolist()
        until(page, lambda expected=expected: [title.strip() for title in listed(page)] == expected)
    assert slider.get_attribute("aria-valuetext") == "only what I will watch"
    slider.send_keys(Keys.HOME)
    switch.send_keys(Keys.SPACE)
    base = model.with_refinement(replace(model.refinement, alpha=0))
    expected = base.recommend_for(ratings, by=1)["title"].tolist()
    until(page, lambda: [title.strip() for title in listed(page)] == expected)
    assert not switch.is_selected()


def test_keys_alone_will_do(page):
    "From the top of the page by Tab, to a rating, to the slider, and to take the rating off again."
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.TAB)
    assert focus(page).get_attribute("id") == "query"
    press(page, "the ember")
    until(page, lambda: len(some(page, "#options li .name")) > 2)
    second = some(page, "#options li .name")[1].text
    press(page, Keys.ARROW_DOWN, Keys.ENTER)
    until(page, lambda: focus(page).get_attribute("type") == "radio")
    assert second in page.find_element("id", "rated").text
    press(page, Keys.SPACE)
    press(page, Keys.ARROW_RIGHT)
    until(page, lambda: page.find_element("id", "count").text == "1 of 10")
    assert len(some(page, "#rated label.on")) == 2
    press(page, Keys.TAB)
    assert focus(page).get_attribute("aria-label").startswith(f"Take {second} ")
    press(page, Keys.ENTER)
    until(page, lambda: page.find_element("id", "count").text == "0 of 10")
    some(page, "#query")[0].send_keys("the")
    until(page, lambda: some(page, "#options li"))
    press(page, Keys.ESCAPE)
    assert page.find_element("id", "query").get_attribute("aria-expanded") == "false"


def test_rating_from_the_list_and_by_mouse(page):
    title = listed(page)[0].strip()
    some(page, "#top .rate")[0].click()
    until(page, lambda: focus(page).get_attribute("type") == "radio")
    some(page, "#rated label")[4].click()
    until(page, lambda: title not in [one.strip() for one in listed(page)])
    assert page.find_element("id", "count").text == "1 of 10"


def test_titles_are_text_and_a_phone_is_wide_enough(page):
    rate(page, NAMES[43], 4)
    assert not some(page, "#rated b") and not some(page, "#top .name b")
    for width in (400, 320):
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        wide = "return [document.documentElement.scrollWidth, innerWidth]"
        held, shown = page.execute_script(wide)
        assert held <= shown == width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name(page):
    rate(page, NAMES[5], 3)
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    kinds = {"button", "radio", "slider", "switch", "combobox", "textbox"}
    named = [o for o in tree if not o.get("ignored") and o["role"]["value"] in kinds]
    assert len(named) > 15 and all(o["name"]["value"].strip() for o in named)
    assert [o for o in some(page, "[aria-live=polite], [role=alert]")]


def test_it_is_said_when_the_service_is_gone(browser, model):
    with running(model) as url:
        browser.get(url)
        until(browser, lambda: len(listed(browser)) == 10)
    some(browser, "#query")[0].send_keys("the")
    until(browser, lambda: browser.find_element("id", "trouble").is_displayed())
    assert browser.find_element("id", "trouble").text == "The service does not answer. Is it still running?"
    browser.get_log("browser")
