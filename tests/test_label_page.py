"""The ranking page in a real browser."""

import time

import pytest
from browser import CHROMIUM, Browser
from labelling import assert_contrast, candidates, serving, talk

from minirlhf.data import Prompt
from minirlhf.feedback import server
from minirlhf.feedback.rankings import Candidate
from minirlhf.files import read_jsonl

SCRIPT = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as b:
        yield b


def ranked(record: dict) -> list[str]:
    """Texts, best first."""
    return [t for _, t in sorted(zip(record["ranks"], record["responses"]))]


def ranks_of(record: dict, order: list[str]) -> list[int]:
    return [record["ranks"][record["responses"].index(text)] for text in order]


def open_page(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait(lambda: browser.js("cards.length") == 4)


def middle(browser: Browser, i: int, height: float = 0.5) -> tuple[float, float]:
    point = f"[r.x + r.width / 2, r.y + r.height * {height}]"
    return tuple(browser.js(f"(r => {point})(cards[{i}].getBoundingClientRect())"))


def settle() -> None:
    time.sleep(0.3)  # the cards glide for 0.22 seconds


def unfocused(browser: Browser) -> None:
    """From here on the page does not look whether its question still stands."""
    browser.js("removeEventListener('focus', look)")
    settle()  # a look that is on its way


def test_the_page_ranks_by_keys_clicks_and_drag(browser, tmp_path):
    rows = candidates(9)
    rows[0] = Candidate("c0", Prompt.of(talk(SCRIPT)), [SCRIPT, *rows[0].responses[1:]])
    rows[1].responses[0] = "long " * 20000
    with serving(tmp_path, rows) as (server, _):

        def saved(n):
            browser.wait(lambda: len(read_jsonl(tmp_path / "r.jsonl")) == n)
            browser.wait(lambda: browser.js("!busy && (!now || !now.groups.length)"))
            return read_jsonl(tmp_path / "r.jsonl")[-1]

        browser.resize(1280, 4000)
        open_page(browser, server.url)
        # model output is text: it is all there, and nothing of it ran
        assert browser.js("shown.turns.length") == 3
        assert SCRIPT in browser.js("document.body.innerText")
        assert browser.js("window.hacked") is None
        assert browser.js("document.querySelectorAll('img').length") == 0
        # keys: 3 best, 1 and 4 tied, 2 falls into place; undo takes a wrong key back; 2 is harmful
        order = browser.js("shown.cards")
        began = time.monotonic()
        for key in ("3", "2", "u", "1", "t", "4"):
            browser.key(key)
        browser.key("2", shift=True)
        browser.key("Enter")
        record = saved(1)
        assert time.monotonic() - began < 1
        assert ranks_of(record, order) == [2, 3, 1, 2]
        assert [record["responses"][j] for j in record["harmful"]] == [order[1]]
        # Enter too early saves nothing; a reload brings back what was not confirmed
        order = browser.js("shown.cards")
        browser.key("4")
        browser.key("Enter")
        assert "still unranked" in browser.js("$('say').textContent")
        assert len(read_jsonl(tmp_path / "r.jsonl")) == 1
        open_page(browser, server.url)
        assert browser.js("now.groups") == [[3]]
        for i in (1, 0, 2):  # the rest by clicks
            browser.mouse(middle(browser, i))
            settle()
        browser.mouse(browser.js("(r => [r.x + 9, r.y + 9])($('confirm').getBoundingClientRect())"))
        assert ranked(saved(2)) == [order[i] for i in (3, 1, 0, 2)]
        # drag: the first onto the slot, the second below it, the third between them, the fourth
        # onto the first for a tie
        order = browser.js("shown.cards")
        x, y = middle(browser, 1)
        slot = browser.js("document.querySelector('.slot').getBoundingClientRect().y") + 15
        assert browser.js("document.querySelector('.slot').textContent").startswith("Best")
        browser.mouse((x, y), (x, y - 20), (x, slot))
        settle()
        assert browser.js("now.groups") == [[1]]
        browser.key("3")
        settle()
        (x, y), (_, top) = middle(browser, 0), middle(browser, 2, 0.1)
        browser.mouse((x, y), (x, y - 20), (x, top + 5), (x, top))
        settle()
        assert browser.js("now.groups") == [[1], [0], [2]]
        browser.mouse(middle(browser, 3), (x, y - 30), middle(browser, 1))
        settle()
        assert browser.js("now.groups") == [[1, 3], [0], [2]]
        browser.key("Enter")
        assert ranks_of(saved(3), order) == [2, 1, 3, 1]
        # all bad and skip
        browser.key("b")
        browser.key("Enter")
        assert saved(4)["all_bad"]
        browser.key("s")
        assert saved(5)["skipped"]
        # neither on a desk nor on a phone anything sticks out sideways
        for width in (390, 1280):
            browser.resize(width, 844, mobile=width < 500)
            assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        browser.call("Emulation.clearDeviceMetricsOverride")
        assert browser.js("window.hacked") is None
        methods = {event["method"] for event in browser.events}
        assert not methods & {"Runtime.exceptionThrown", "Log.entryAdded"}, browser.events


def test_the_key_stays_and_the_rank_is_beside_it(browser, tmp_path):
    with serving(tmp_path, candidates(3)) as (server, _):
        open_page(browser, server.url)
        for key in ("4", "2", "t", "1"):
            browser.key(key)
        keys = browser.js("cards.map(card => card.querySelector('.key').textContent)")
        badges = browser.js("cards.map(card => card.querySelector('.rank').textContent)")
        assert keys == ["1", "2", "3", "4"]
        assert badges == ["2nd, tied", "2nd, tied", "3rd", "1st"]
        browser.key("4")  # the key that the card shows takes it out again
        assert browser.js("now.groups") == [[1, 0]]


def test_an_answer_comes_back_after_enter_and_after_the_last_one(browser, tmp_path):
    with serving(tmp_path, candidates(2)) as (server, _):
        open_page(browser, server.url)
        first = browser.js("shown.question")
        for key in ("3", "1", "2", "Enter"):
            browser.key(key)
        browser.wait(lambda: browser.js("shown.done") == 1)
        browser.key("u")
        browser.wait(lambda: browser.js("shown.question") == first)
        assert browser.js("now.groups") == [[2], [0], [1], [3]]
        for key in ("3", "3", "Enter"):  # out, and back as the last one
            browser.key(key)
        browser.wait(lambda: browser.js("shown.done === 1 && !shown.answer"))
        browser.key("s")
        browser.wait(lambda: browser.js("phase") == "done")
        browser.key("u")
        browser.wait(lambda: browser.js("!!shown.answer"))
        assert not server.app.finished.is_set()
        for key in ("1", "2", "3", "Enter"):
            browser.key(key)
        browser.wait(lambda: browser.js("phase") == "done")
        browser.key("Enter")
        assert server.app.finished.wait(5)
    records = read_jsonl(tmp_path / "r.jsonl")
    assert [record.get("replaces", False) for record in records] == [False, True, False, True]
    assert ranked(records[1])[-1] == ranked(records[0])[0] and "skipped" not in records[3]


def test_closing_the_page_after_the_last_answer_ends_the_sitting(browser, tmp_path):
    with serving(tmp_path, candidates(1)) as (server, _):
        open_page(browser, server.url)
        browser.open("about:blank")
        assert not server.app.finished.is_set()
        open_page(browser, server.url)
        browser.key("s")
        browser.wait(lambda: browser.js("phase") == "done")
        browser.open("about:blank")
        assert server.app.finished.wait(5)


def test_conversations_code_and_guidelines(browser, tmp_path):
    turns = [*talk("One?"), {"role": "assistant", "content": "1"}, *talk("Two?")]
    turns[-3]["content"] = "w" * 500 + "\n```\n" + "x" * 500
    code = "Look:\n```python\nif x:\n    y()\n```\nor ```this```"
    wide = "שלום\n```\n" + "z" * 500 + "\n```"
    row = Candidate("c", Prompt.of(turns), [code, "b " * 2000, wide, ""])
    rules = {"guidelines": "Be fair.", "next_step": "python train_rm.py --data r.jsonl"}
    with serving(tmp_path, [row], **rules) as (server, _):
        browser.resize(1280, 800)
        open_page(browser, server.url)
        speakers = browser.js("[...document.querySelectorAll('.turn h3')].map(h => h.innerText)")
        assert speakers == ["Human", "Assistant"] * 3 + ["Human"]
        in_sight = "(r => r.bottom <= innerHeight && r.top > 0)([...document.querySelectorAll("
        in_sight += "'.turn')].at(-1).getBoundingClientRect())"
        assert browser.js(in_sight)
        assert browser.js("document.querySelector('[data-language=python]').textContent") == (
            "if x:\n    y()"
        )
        assert "or ```this```" in browser.js("document.body.innerText")
        assert "(an empty response)" in browser.js("document.body.innerText")
        long = browser.js("shown.cards.findIndex(card => card.length > 2000)")
        fades = f"cards[{long}].querySelector('.text').classList.contains('more')"
        browser.wait(lambda: browser.js(fades))
        browser.js(f"cards[{long}].querySelector('.text').scrollTop = 1e6")
        browser.wait(lambda: not browser.js(fades))
        assert not browser.js("$('guidelines').hidden || $('guidelines').open")
        assert "Be fair." in browser.js("$('guidelines').textContent")
        browser.resize(390, 844, mobile=True)  # a phone folds what came before
        open_page(browser, server.url)
        assert not browser.js("document.querySelector('#turns details').open")
        assert browser.js(in_sight)
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        browser.resize(1280, 800)
        browser.js("leave()")
        browser.wait(lambda: browser.js("phase") == "left")
        assert "train_rm.py --data r.jsonl" in browser.js("document.body.innerText")


def test_contrast_focus_and_what_a_screen_reader_hears(browser, tmp_path):
    rows = [Candidate("c", Prompt.of("p"), ["```x\ncode\n```", "b", "c", ""]), *candidates(2)]
    with serving(tmp_path, rows, guidelines="Be fair.") as (server, _):
        browser.resize(1280, 900)
        open_page(browser, server.url)
        assert_contrast(browser)
        assert browser.js("document.activeElement.id") == "prompt"  # a new question begins here
        browser.js("cards[1].querySelector('.key').focus()")
        browser.key("2")
        assert browser.js("document.activeElement === cards[1].querySelector('.key')")
        label = "document.activeElement.getAttribute('aria-label')"
        assert browser.js(label) == "Response 2, 1st"
        assert browser.js("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert browser.js("$('tell').textContent") == "1st: 2"
        browser.key("1", shift=True)
        assert "Response 1 is flagged" in browser.js("$('tell').textContent")
        browser.key("3")
        browser.key("1")
        assert_contrast(browser)
        roles = browser.call("Accessibility.getFullAXTree")["nodes"]
        names = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in roles]
        assert ("list", "Your ranking, best first") in names
        assert ("button", "Response 2, 1st") in names and ("button", "Response 4, 4th") in names
        assert ("region", "The conversation") in names and ("heading", "Human") in names
        browser.key("Enter")  # on the focused key: it is taken out, as on any button
        browser.wait(lambda: browser.js("now.groups.length") == 2)
        browser.key("2")
        browser.js("document.activeElement.blur()")
        browser.key("Enter")
        browser.wait(lambda: browser.js("shown.done") == 1)
        assert browser.js("document.activeElement.id") == "prompt"
        browser.js("leave()")
        browser.wait(lambda: browser.js("phase") == "left")
        assert_contrast(browser)
        assert browser.js("document.activeElement.tagName") == "H1"


def test_two_tabs_a_double_press_and_the_end(browser, tmp_path):
    with serving(tmp_path, candidates(3)) as (server, ask):
        open_page(browser, server.url)
        unfocused(browser)
        state = ask("GET", "/question")[1]  # the other tab goes ahead
        answer = {"question": state["question"], "ranks": [1, 2, 3, 4]}
        assert ask("POST", "/answer", answer)[1]["saved"]
        for key in "432":
            browser.key(key)
        browser.js("confirm(); confirm(); confirm()")
        browser.wait(lambda: browser.js("shown.done") == 1)
        assert "first answer counts" in browser.js("$('say').textContent")
        assert len(read_jsonl(tmp_path / "r.jsonl")) == 1
        while browser.js("!!now"):
            done = browser.js("shown.done")
            for key in "123":
                browser.key(key)
            browser.js("confirm(); confirm()")
            browser.wait(lambda done=done: browser.js("!now || shown.done > " + str(done)))
        assert "All done" in browser.js("document.body.innerText")
        assert len(read_jsonl(tmp_path / "r.jsonl")) == 3


def test_an_open_page_goes_on_when_label_py_is_started_again(browser, tmp_path):
    link = tmp_path / "r.page.html"
    with serving(tmp_path, candidates(5)) as (first, _):
        server.write_link(link, first.local_url)
        browser.open(link.as_uri())  # a file leads to the page
        browser.wait(lambda: browser.js("typeof cards === 'object' && cards.length") == 4)
        unfocused(browser)
        first.shutdown()
        first.server_close()  # label.py died: the ranking stays on the page
        for key in ("2", "3", "4", "Enter"):
            browser.key(key)
        browser.wait(lambda: "cannot be reached" in browser.js("$('say').textContent"))
        assert browser.js("now.groups") == [[1], [2], [3]]
    port, token = server.read_link(link)
    address = server.Address(port=port)
    with serving(tmp_path, candidates(5), address=address, token=token):
        browser.key("Enter")
        browser.wait(lambda: browser.js("shown.done") == 1)
    assert len(read_jsonl(tmp_path / "r.jsonl")) == 1
