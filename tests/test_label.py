"""A person ranks: the questions, the server against strangers, the terminal, the page itself."""

import socket
import time
from contextlib import suppress

import pytest
from browser import CHROMIUM, Browser
from labelling import candidates, serving, talk, write_candidates

import label
from minirlhf import UserError
from minirlhf.data import Prompt, read_rankings
from minirlhf.feedback.page import Sitting
from minirlhf.feedback.rankings import Candidate, append_ranking
from minirlhf.files import read_jsonl

SCRIPT = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


# ------------------------------------------------------------------------- the questions


def test_a_tenth_of_the_prompts_comes_twice_in_another_blind_order(tmp_path):
    rows = candidates(40)
    rows.append(Candidate("same", Prompt.of("p"), ["x", "x"]))
    rows.append(Candidate("two", Prompt.of("p"), ["x", "y", "x"]))
    sitting = Sitting(rows, tmp_path / "r.jsonl", "me")
    asked = []
    while "question" in (state := sitting.question()):
        candidate, repeat, cards = sitting.plan[state["question"]]
        assert state["cards"] == cards and set(cards) == set(candidate.responses)
        asked.append((candidate.id, repeat, cards))
        assert sitting.answer(state["question"], [1 + i for i in range(len(cards))])
    once = {name: cards for name, repeat, cards in asked if not repeat}
    twice = {name: cards for name, repeat, cards in asked if repeat}
    assert len(once) == 41 and len(twice) == 4 and "same" not in once
    for name, cards in twice.items():
        assert cards != once[name]
        assert asked.index((name, True, cards)) > asked.index((name, False, once[name]))
    del once["two"]
    orders = {tuple(card[-1] for card in cards) for cards in once.values()}
    assert len(orders) > 8  # blind: all sorts of orders
    records = read_jsonl(tmp_path / "r.jsonl")
    (two,) = [r for r in records if r["id"] == "two" and "repeat" not in r]
    assert two["responses"] == ["x", "y", "x"]
    assert two["ranks"][0] == two["ranks"][2] != two["ranks"][1]
    for record, (_, _, cards) in zip(records, asked):
        ranks = [record["ranks"][record["responses"].index(card)] for card in cards]
        assert ranks == list(range(1, len(cards) + 1))
    assert len(read_rankings(str(tmp_path / "r.jsonl"))) == 41  # repeats are not learned from


def test_skipped_is_not_asked_again_and_another_name_is_asked_everything(tmp_path):
    rows, out = candidates(10), tmp_path / "r.jsonl"
    for done in range(11):  # a new sitting each time: nothing lives in memory alone
        sitting = Sitting(rows, out, "me")
        state = sitting.question()
        if "question" not in state:
            break
        assert state["done"] == done and state["done"] + state["left"] in (10, 11)
        sitting.answer(state["question"], skip=True)
    records = read_jsonl(out)
    assert len(records) == 10 and all(record["skipped"] for record in records)
    assert all(set(record["ranks"]) == {1} for record in records)
    assert Sitting(rows, out, "you").question()["left"] == 11
    with pytest.raises(UserError, match="usable"):
        read_rankings(str(out))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": [1, 2, 3]},
        {"ranks": [1, 2, 3, 5]},
        {"ranks": [0, 1, 2, 3]},
        {"ranks": [1, 2, 3, True]},
        {"ranks": "1234"},
        {"ranks": [1, 2, 3, 4], "harmful": [4]},
        {"ranks": [1, 2, 3, 4], "harmful": 1},
        {"ranks": [1, 2, 3, 4.0]},
        {"ranks": [[]] * 4},
        {},
        {"ranks": [1, 2, 3, 4], "spare": 1},
        {"question": 3, "ranks": [1, 2, 3, 4]},
        {"question": "0", "ranks": [1, 2, 3, 4]},
        {"question": True, "ranks": [1, 2, 3, 4]},
        {"question": 1e9, "ranks": [1, 2, 3, 4]},
    ],
)
def test_an_answer_that_makes_no_sense_is_refused_and_nothing_is_written(wrong, tmp_path):
    with serving(tmp_path, candidates()) as (_, ask):
        question = ask("GET", "/question")[1]["question"]
        status, reply = ask("POST", "/answer", {"question": question} | wrong)
        assert status == 400 and reply["error"]
        assert (tmp_path / "r.jsonl").read_bytes() == b""
        right = {"question": question, "ranks": [1, 1, 2, 3], "harmful": [0], "all_bad": True}
        assert ask("POST", "/answer", right)[0] == 200
    (record,) = read_jsonl(tmp_path / "r.jsonl")
    assert sorted(record["ranks"]) == [1, 1, 2, 3]
    assert len(record["harmful"]) == 1 and record["all_bad"]


# ------------------------------------------------------------------------- strangers


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:PORT"},
        {"Host": None},
        {"Host": "1.2.3.4"},
        {"Host": ""},
        {"Host": "localhost.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"X_Token": None},
        {"X_Token": "x"},
        {"X_Token": "é"},
        {"X_Token": ""},
    ],
)
def test_strangers_get_nothing(headers, tmp_path):
    with serving(tmp_path, candidates()) as (server, ask):
        question = ask("GET", "/question")[1]["question"]
        answer = {"question": question, "ranks": [1, 2, 3, 4]}
        for words in (
            ("GET", "/"),
            ("GET", "/question"),
            ("POST", "/answer", answer),
            ("POST", "/finish", {}),
        ):
            status, reply = ask(*words, **headers)
            assert status == 403 and "cards" not in reply and "page" not in reply
        assert (tmp_path / "r.jsonl").read_bytes() == b"" and not server.finished.is_set()


def test_the_page_answers_its_own_requests_and_no_others(tmp_path):
    with serving(tmp_path, candidates()) as (server, ask):
        port = server.server_address[1]
        assert ask("GET", "/", Host="[::1")[0] == 400
        for method, path in (("GET", "/answer"), ("GET", "/../label.py"), ("GET", "//etc/passwd")):
            assert ask(method, path)[0] in (400, 404)
        assert ask("POST", "/question", {})[0] == 404
        assert ask("PUT", "/answer", {})[0] == 501
        assert ask("OPTIONS", "/answer")[0] == 501  # no preflight is answered
        own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
        assert ask("GET", "/question", **own)[0] == 200
        assert ask("GET", "/question", Host="[::1]:80")[0] == 200
        status, reply = ask("GET", f"/?token={server.token}", X_Token=None)
        policy, page = reply["headers"]["Content-Security-Policy"], reply["page"]
        assert status == 200 and "default-src 'none'" in policy
        assert policy.split("nonce-")[1].split("'")[0] in page
        for foreign in ("http://", "https://", "innerHTML"):
            assert foreign not in page


# ------------------------------------------------------------------------- label.py


def test_wrong_calls_are_refused(tmp_path):
    write_candidates(tmp_path / "c.jsonl", candidates(3))
    common = {"candidates": str(tmp_path / "c.jsonl"), "open": False}
    out = str(tmp_path / "r.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--port"):
        label.main(label.Settings(**common, out=out, port=taken.getsockname()[1]))
    with pytest.raises(UserError, match="--port"):
        label.main(label.Settings(**common, out=out, port=70000))
    with pytest.raises(UserError, match="--annotator nobody"):
        label.main(label.Settings(**common, out=out, annotator="nobody"))
    with pytest.raises(UserError, match=r"--out .*r\.txt"):
        label.main(label.Settings(**common, out=str(tmp_path / "r.txt")))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        label.main(label.Settings(**common, out=str(tmp_path / "file" / "r.jsonl")))
    append_ranking(out, candidates(9)[8], [1, 2, 3, 4], "me")
    with pytest.raises(UserError, match=r"r\.jsonl, line 1"):
        label.main(label.Settings(**common, out=out))


def test_the_terminal_asks_the_same_questions(tmp_path, monkeypatch, capsys):
    rows = [*candidates(4), Candidate("x", Prompt.of("p"), ["\x1b[2Jboo", "y", "z", "w"])]
    lines = iter(["2 > 1 = 3 > 4 h2", "5 1 2 3", "1 2 3", "1 2 3 4 x", "s", "b", "4 3 2 1 b", "q"])
    sitting = Sitting(rows, tmp_path / "r.jsonl", "me")
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    label.ask_in_terminal(sitting)
    first, second, third, fourth = read_jsonl(tmp_path / "r.jsonl")
    cards = sitting.plan[0][2]
    assert [first["ranks"][first["responses"].index(card)] for card in cards] == [2, 1, 2, 3]
    assert [first["responses"][i] for i in first["harmful"]] == [cards[1]]
    assert second["skipped"] and third["all_bad"] and set(third["ranks"]) == {1}
    assert sorted(fourth["ranks"]) == [1, 2, 3, 4] and fourth["all_bad"]
    monkeypatch.setattr("builtins.input", lambda _: "1 2 3 4")
    label.ask_in_terminal(sitting)
    output = capsys.readouterr().out
    assert output.count("not saved") == 3 and "\x1b" not in output and "boo" in output


# ------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as b:
        yield b


def ranked(record: dict) -> list[str]:
    """Texts, best first."""
    return [t for _, t in sorted(zip(record["ranks"], record["responses"]))]


def test_the_page_ranks_by_keys_clicks_and_drag(browser, tmp_path):
    rows = candidates(9)
    rows[0] = Candidate("c0", Prompt.of(talk(SCRIPT)), [SCRIPT, *rows[0].responses[1:]])
    rows[1].responses[0] = "long " * 20000
    with serving(tmp_path, rows) as (server, _):

        def saved(n):
            browser.wait(lambda: len(read_jsonl(tmp_path / "r.jsonl")) == n)
            browser.wait(lambda: browser.js("!busy && (!now || !now.groups.length)"))
            return read_jsonl(tmp_path / "r.jsonl")[-1] if n else None

        browser.resize(1280, 4000)
        browser.open(server.url)
        browser.wait(lambda: browser.js("cards.length") == 4)
        saved(0)
        # model output is text: it is all there, and nothing of it ran
        assert browser.js("shown.turns.length") == 3
        assert SCRIPT in browser.js("document.body.innerText")
        assert browser.js("window.hacked") is None
        assert browser.js("document.querySelectorAll('img').length") == 0
        # keys: 3 best, 1 and 4 tied, 2 falls into place; undo takes a wrong key back; 2 is harmful
        order = browser.js("shown.cards")
        for key in ("3", "2", "u", "1", "t", "4"):
            browser.key(key)
        browser.key("2", shift=True)
        browser.key("Enter")
        record = saved(1)
        assert [record["ranks"][record["responses"].index(t)] for t in order] == [2, 3, 1, 2]
        assert [record["responses"][j] for j in record["harmful"]] == [order[1]]
        # Enter too early saves nothing; a reload brings back what was not confirmed
        order = browser.js("shown.cards")
        browser.key("4")
        browser.key("Enter")
        assert "still unranked" in browser.js("$('say').textContent")
        assert len(read_jsonl(tmp_path / "r.jsonl")) == 1
        browser.open(server.url)
        browser.wait(lambda: browser.js("cards.length") == 4)
        assert browser.js("now.groups") == [[3]]
        for i in (1, 0, 2):  # the rest by clicks
            browser.mouse(middle(browser, i))
            settle()
        browser.mouse(browser.js("(r => [r.x + 9, r.y + 9])($('confirm').getBoundingClientRect())"))
        assert ranked(saved(2)) == [order[i] for i in (3, 1, 0, 2)]
        # drag: place two, drag the third between them, the fourth onto the first for a tie
        order = browser.js("shown.cards")
        browser.key("1")
        browser.key("2")
        settle()
        (x, y), (_, top) = middle(browser, 2), middle(browser, 1, 0.1)
        browser.mouse((x, y), (x, y - 20), (x, top + 5), (x, top))
        settle()
        assert browser.js("now.groups") == [[0], [2], [1]]
        browser.mouse(middle(browser, 3), (x, y - 30), middle(browser, 0))
        settle()
        assert browser.js("now.groups") == [[0, 3], [2], [1]]
        browser.key("Enter")
        record = saved(3)
        assert [record["ranks"][record["responses"].index(t)] for t in order] == [1, 3, 2, 1]
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


def middle(browser: Browser, i: int, height: float = 0.5) -> tuple[float, float]:
    point = f"[r.x + r.width / 2, r.y + r.height * {height}]"
    return tuple(browser.js(f"(r => {point})(cards[{i}].getBoundingClientRect())"))


def settle() -> None:
    time.sleep(0.3)  # the cards glide for 0.22 seconds


def unfocused(browser: Browser) -> None:
    """From here on the page does not look whether its question still stands."""
    browser.js("removeEventListener('focus', look)")
    settle()  # a look that is on its way


def test_two_tabs_a_double_press_and_the_end(browser, tmp_path):
    with serving(tmp_path, candidates(3)) as (server, ask):
        browser.open(server.url)
        browser.wait(lambda: browser.js("cards.length") == 4)
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
        assert "All done" in browser.js("document.body.innerText") and server.finished.wait(5)
        assert len(read_jsonl(tmp_path / "r.jsonl")) == 3
    with serving(tmp_path, candidates(5), "else") as (server, _):
        browser.open(server.url)
        browser.wait(lambda: browser.js("cards.length") == 4)
        unfocused(browser)
        server.shutdown()
        server.server_close()  # label.py died: the ranking stays on the page
        for request in list(server.live):  # and so did the spare connection that the browser holds
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for key in ("2", "3", "4", "Enter"):
            browser.key(key)
        browser.wait(lambda: "cannot be reached" in browser.js("$('say').textContent"))
        assert browser.js("now.groups") == [[1], [2], [3]]
