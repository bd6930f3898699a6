"""label.py --chat: answers of blind policies, choices that are rankings, the page."""

import time
from contextlib import closing

import pytest
from browser import CHROMIUM, Browser
from conftest import tiny
from labelling import assert_contrast, serving_app

import label
from minirlhf import UserError, rollout
from minirlhf.data import read_rankings
from minirlhf.feedback import chat
from minirlhf.feedback.chat import Options, Panel, Talk
from minirlhf.files import read_jsonl

SCRIPT = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


@pytest.fixture
def policies(tokenizer):
    return {"out/a": tiny(tokenizer), "out/b": tiny(tokenizer, seed=1)}


def talk_in(tmp_path, policies, name="me", **options) -> Talk:
    panel = Panel(policies, Options(**{"max_tokens": 8} | options))
    return Talk(panel, tmp_path / "c.jsonl", name)


def speak(talk: Talk, text: str) -> dict:
    """Say something and listen to the end; the state."""
    lines = list(talk.say(text))
    assert "error" not in lines[-1], lines[-1]
    return lines[-1]


def heard(lines: list[dict]) -> list[str]:
    """The answers as they were streamed."""
    texts = [""] * lines[0]["answers"]
    for line in lines:
        if "more" in line:
            texts[line["answer"]] += line["more"]
    return texts


# ------------------------------------------------------------------------- what is recorded


def test_a_choice_is_a_ranking_of_answers_to_the_whole_conversation(tmp_path, policies):
    talk = talk_in(tmp_path, policies, system="Be kind.")
    lines = list(talk.say("What is 2 + 3?"))
    state = lines[-1]
    assert heard(lines) == state["answers"] and len(state["answers"]) == 2
    assert "policies" not in state  # blind
    talk.choose(state["id"], 1)
    best = state["answers"][1]
    second = speak(talk, "Why?")
    assert [turn["content"] for turn in second["turns"]] == [
        "Be kind.",
        "What is 2 + 3?",
        best,
        "Why?",
    ]
    state = talk.choose(second["id"], 0)
    assert state["turns"][-1] == {"role": "assistant", "content": second["answers"][0]}
    assert state["choices"] == 2 and "answers" not in state
    first, last = read_jsonl(tmp_path / "c.jsonl")
    assert first["responses"][1] == best and first["ranks"] == [2, 1]
    assert last["prompt"] == second["turns"] and last["ranks"] == [1, 2]
    assert sorted(first["policies"]) == sorted(last["policies"]) == ["out/a", "out/b"]
    assert first["talk"] == last["talk"] and first["seconds"] >= 0
    rankings = read_rankings(str(tmp_path / "c.jsonl"))
    assert [len(ranking.prompt.turns) for ranking in rankings] == [2, 4]


def test_each_answer_is_a_sample_of_the_policy_that_the_record_names(tmp_path, policies):
    talk = talk_in(tmp_path, policies, temperature=0.0)
    turns = (("user", "hi"),)
    for _ in range(8):
        state = speak(talk, "hi")
        talk.choose(state["id"], 0)
        talk.start_anew()
    orders = set()
    for record in read_jsonl(tmp_path / "c.jsonl"):
        orders.add(tuple(record["policies"]))
        for name, response in zip(record["policies"], record["responses"]):
            tokenizer = policies[name].tokenizer
            ids = rollout.stream(
                policies[name], tokenizer.encode_prompt(turns), 8, None, temperature=0.0
            )
            assert response == tokenizer.decode_response(turns, ids)
    assert len(orders) == 2  # neither policy has a place of its own


def test_k_answers_of_p_policies(tmp_path, policies, tokenizer):
    talk = talk_in(tmp_path, policies, answers=5)
    drawn = [talk.panel.draw(seed) for seed in range(20)]
    assert {tuple(sorted((d.count("out/a"), d.count("out/b")))) for d in drawn} == {(2, 3)}
    talk = talk_in(tmp_path, {"out/a": policies["out/a"]}, answers=3, temperature=3.0)
    state = speak(talk, "hi")
    assert len(set(state["answers"])) == 3  # samples of one policy
    talk.choose(state["id"], 2)
    (record,) = read_jsonl(tmp_path / "c.jsonl")
    assert record["ranks"] == [2, 2, 1] and chat.score([record]) == []


def test_answers_depend_on_the_seed_alone(tmp_path, policies):
    answers = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        talk = talk_in(folder, policies, seed=seed)
        answers.append(speak(talk, "hi")["answers"])
    assert answers[0] == answers[1] != answers[2]


def test_equal_answers_and_equally_good_ones_are_ties(tmp_path, policies, monkeypatch):
    talk = talk_in(tmp_path, policies)
    state = talk.choose(speak(talk, "hi")["id"], None)
    assert len(state["turns"]) == 2  # one of them goes on
    monkeypatch.setattr(talk.panel, "_stream", lambda *_: iter([("same", True), ("same.", False)]))
    talk.choose(speak(talk, "why?")["id"], 1)
    records = read_jsonl(tmp_path / "c.jsonl")
    assert [record["ranks"] for record in records] == [[1, 1], [1, 1]]
    assert {row["mean"] for row in chat.score(records)} == {0.5}


def test_a_step_back_and_another_choice(tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    with pytest.raises(UserError, match="nothing"):
        talk.back()
    first = speak(talk, "one")
    talk.choose(first["id"], 0)
    second = speak(talk, "two")
    talk.choose(second["id"], 0)
    assert talk.back() == second | {"choices": 1, "cut": [False, False]}
    talk.choose(second["id"], 1)
    assert talk.state()["turns"][-1]["content"] == second["answers"][1]
    talk.back()
    assert talk.back()["draft"] == "two"  # another step: it was never said
    assert len(read_rankings(str(tmp_path / "c.jsonl"))) == 1
    third = speak(talk, "three")
    talk.choose(third["id"], 1)
    assert third["id"] not in (first["id"], second["id"])
    ranks = [ranking.ranks for ranking in read_rankings(str(tmp_path / "c.jsonl"))]
    assert ranks == [[1, 2], [2, 1]]
    assert len(read_jsonl(tmp_path / "c.jsonl")) == 6  # nothing is deleted


def test_a_new_sitting_goes_on_with_the_last_conversation(tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    talk.choose(speak(talk, "one")["id"], 0)
    waiting = speak(talk, "two")
    again = talk_in(tmp_path, policies)
    assert again.state()["turns"] == waiting["turns"][:-1]
    with pytest.raises(UserError, match="gone"):  # they were never chosen, so never recorded
        again.choose(waiting["id"], 0)
    again.choose(speak(again, "two")["id"], 0)
    assert len({record["id"] for record in read_jsonl(tmp_path / "c.jsonl")}) == 2
    assert talk_in(tmp_path, policies, name="you").state()["turns"] == []
    assert len(talk_in(tmp_path, policies, system="Be kind.").state()["turns"]) == 1
    assert len(again.start_anew()["turns"]) == 0


def test_a_choice_for_answers_that_are_no_longer_open_is_refused(tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    with serving_app(talk) as (server, ask):

        def say(text: str) -> dict:
            ask("POST", "/say", {"text": text})
            return ask("GET", "/conversation")[1]

        def refused(id: str) -> bool:
            status, reply = ask("POST", "/choose", {"id": id, "picked": 0})
            return status == 400 and "gone" in reply["error"]

        fox = say("Where is the fox?")
        ask("POST", "/back", {})  # in another tab
        lamp = say("Where is the lamp?")
        assert refused(fox["id"])
        server.app = talk_in(tmp_path, policies)  # label.py was started again
        bell = say("Where is the bell?")
        assert refused(fox["id"]) and refused(lamp["id"])
        assert read_jsonl(tmp_path / "c.jsonl") == []
        assert ask("GET", "/conversation")[1] == bell
        assert ask("POST", "/choose", {"id": bell["id"], "picked": 0})[0] == 200
    (record,) = read_jsonl(tmp_path / "c.jsonl")
    assert record["prompt"][-1]["content"] == "Where is the bell?"


def test_a_choice_that_is_sent_twice_counts_once(tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    state = speak(talk, "hi")
    assert talk.choose(state["id"], 0) == talk.choose(state["id"], 0)
    assert len(read_jsonl(tmp_path / "c.jsonl")) == 1
    state = speak(talk, "and?")
    with pytest.raises(UserError, match="first"):
        talk.say("more")
    for wrong in (2, -1, "0", 0.0, True, [0]):
        with pytest.raises(UserError, match="choose an answer"):
            talk.choose(state["id"], wrong)


# ------------------------------------------------------------------------- long texts


def test_a_message_that_is_too_long_is_said_and_the_conversation_goes_on(tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    talk.choose(speak(talk, "hi")["id"], 0)
    with pytest.raises(UserError, match=r"too long: \d+ tokens, and there is room for 56"):
        talk.say("fox " * 80)
    with pytest.raises(UserError, match="write something"):
        talk.say("  \n")
    speak(talk, "\ud800 fox")  # half a surrogate pair is no text
    assert len(talk.state()["turns"]) == 3


def test_the_oldest_turns_are_forgotten_when_the_shortest_context_is_full(tmp_path, tokenizer):
    both = {"long": tiny(tokenizer, n_positions=200), "short": tiny(tokenizer)}
    talk = talk_in(tmp_path, both, system="S.")
    for turn in range(6):
        state = speak(talk, f"What is 2 + {turn}?")
        talk.choose(state["id"], 0)
    for record in read_jsonl(tmp_path / "c.jsonl"):
        turns = tuple((message["role"], message["content"]) for message in record["prompt"])
        assert len(tokenizer.encode_prompt(turns)) <= 64 - 8
        assert turns[0] == ("system", "S.") and turns[1][0] == turns[-1][0] == "user"
    state = talk.state()
    assert len(state["turns"]) == 13 and state["forgotten"] == 13 - 1 - len(turns) > 0


def test_who_stops_listening_leaves_no_trace(tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    with closing(talk.say("hi")) as lines:
        next(lines)
        next(lines)
        (error,) = talk.say("me too")  # from another tab
        assert "another tab" in error["error"]
        with pytest.raises(UserError, match="on their way"):
            talk.back()
    assert talk.state()["turns"] == []
    assert speak(talk, "hi")["answers"]


# ------------------------------------------------------------------------- the score


def test_the_score_is_a_win_rate_with_its_interval():
    def record(policies, ranks, **more):
        return {"policies": policies, "ranks": ranks, **more}

    records = [record(["a", "b"], [1, 2])] * 15 + [record(["b", "a"], [1, 2])] * 5
    records += [record(["a", "b"], [2, 1], skipped=True), {"ranks": [1, 2]}]
    first, second = chat.score(records)
    assert (first["policy"], first["mean"], first["choices"]) == ("a", 0.75, 20)
    assert second["mean"] == 0.25
    assert first["interval"] == pytest.approx(1.96 * (0.75 * 0.25 / 19) ** 0.5)
    assert chat.describe(records)[0] == "a wins 75 ±19 % of its comparisons, in 20 choices"
    assert chat.describe(records[:1])[0].startswith("a wins 100 % of")  # one choice: no interval
    rows = chat.score([record(["a", "a", "b"], [1, 2, 2]), record(["c", "c"], [1, 2])])
    assert [(row["policy"], row["mean"]) for row in rows] == [("a", 0.75), ("b", 0.25)]


def test_the_summary_has_the_score(tmp_path, policies, capsys):
    talk = talk_in(tmp_path, policies)
    for text in ("one", "two"):
        state = speak(talk, text)
        talk.choose(state["id"], talk.offer.policies.index("out/b"))
    label.main(label.Settings(summary=True, out=str(tmp_path / "c.jsonl")))
    assert "out/b wins 100" in capsys.readouterr().out


# ------------------------------------------------------------------------- label.py, the server


def test_wrong_calls_are_refused(tmp_path, policies, stages):
    common = {"chat": True, "out": str(tmp_path / "c.jsonl")}
    sft = str(stages / "sft")
    for flags, words in [
        ({}, "--policies"),
        ({"policies": f"{sft},{sft}"}, "twice"),
        ({"policies": sft, "answers": 1}, "--answers 1"),
        ({"policies": sft, "answers": 10}, "--answers 10"),
        ({"policies": sft, "max_tokens": 190}, "--max_tokens 190"),
        ({"policies": str(tmp_path / "no")}, "no"),
        ({"policies": sft, "terminal": True}, "--terminal"),
        ({"policies": sft, "annotator": "ai"}, "--annotator"),
        ({"policies": sft, "chat": False}, "--policies"),
    ]:
        with pytest.raises(UserError, match=words):
            label.main(label.Settings(**common | flags))


def test_the_server_streams_and_refuses_strangers(tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    with serving_app(talk) as (_, ask):
        for words in (("GET", "/"), ("GET", "/conversation"), ("POST", "/say", {"text": "hi"})):
            for headers in ({"X_Token": "x"}, {"Host": "evil"}, {"Origin": "http://evil"}):
                assert ask(*words, **headers)[0] == 403
        assert ask("POST", "/say", {"text": "hi"})[0] == 200
        state = ask("GET", "/conversation")[1]
        assert ask("POST", "/choose", {"id": state["id"], "picked": 0})[1]["choices"] == 1
        for wrong in ({}, {"text": 3}, {"text": "fox " * 90}, {"words": "hi"}):
            assert ask("POST", "/say", wrong)[0] == 400
        assert ask("POST", "/choose", {"id": [], "picked": 0})[0] == 400
        assert ask("POST", "/back", {})[1]["answers"] == state["answers"]
        assert ask("POST", "/new", {})[1]["turns"] == []
        reply = ask("POST", "/finish", {})[1]
        assert reply["choices"] == 0 and talk.finished.is_set()


# ------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as b:
        yield b


def type_in(browser: Browser, text: str) -> None:
    browser.js("$('text').focus()")
    browser.call("Input.insertText", text=text)
    browser.key("Enter")


def wait_for(browser: Browser, phase: str) -> None:
    browser.wait(lambda: browser.js("phase") == phase and not browser.js("busy"))


def open_page(browser: Browser, url: str) -> None:
    browser.open(url)
    wait_for(browser, "writing")


def test_a_person_talks_and_chooses_by_keys(browser, tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    talk.guidelines, talk.next_step = "Be fair.", "python train_rm.py --data c.jsonl"
    browser.events.clear()
    with serving_app(talk) as (server, _):
        browser.resize(1280, 900)
        open_page(browser, server.url)
        assert_contrast(browser)
        assert browser.js("document.activeElement.id") == "text"
        type_in(browser, "What is 2 + 3?")
        wait_for(browser, "choosing")
        assert browser.js("document.activeElement.id") == "answers"
        assert "2 answers" in browser.js("$('tell').textContent")
        assert_contrast(browser)
        began = time.monotonic()
        answers = browser.js("state.answers")
        browser.key("2")
        wait_for(browser, "writing")
        assert time.monotonic() - began < 1
        assert answers[1].strip() in browser.js("$('turns').textContent")
        assert browser.js("document.activeElement.id") == "text"
        type_in(browser, "u t 1")  # in the text field keys are letters
        wait_for(browser, "choosing")
        browser.key("t")
        wait_for(browser, "writing")
        browser.js("document.activeElement.blur()")
        browser.key("u")
        wait_for(browser, "choosing")
        browser.key("1")
        wait_for(browser, "writing")
        type_in(browser, "fox " * 80)  # too long: it stays in the field
        browser.wait(lambda: "too long" in browser.js("$('say').textContent"))
        assert browser.js("$('text').value") == ("fox " * 80).strip()
        browser.js("$('text').value = ''")
        browser.js("$('anew').click()")
        browser.wait(lambda: browser.js("state.turns.length") == 0)
        browser.js("finish()")
        browser.wait(lambda: browser.js("phase") == "left")
        assert_contrast(browser)
        shown = browser.js("document.body.innerText")
        assert "out/a" in shown and "out/b" in shown and "train_rm.py --data c.jsonl" in shown
        assert browser.js("document.activeElement.tagName") == "H1"
    records = read_jsonl(tmp_path / "c.jsonl")
    assert [record["ranks"] for record in records] == [[2, 1], [1, 1], [1, 1], [1, 2]]
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def test_what_models_say_is_text_and_fits_a_phone(browser, tmp_path, policies, monkeypatch):
    talk = talk_in(tmp_path, policies, answers=3)
    texts = [SCRIPT, "Look:\n```python\n" + "x" * 300 + "\n```", "שלום " + "w" * 500]
    replies = iter(texts)
    monkeypatch.setattr(talk.panel, "_stream", lambda *_: iter([(next(replies), False)]))
    with serving_app(talk) as (server, _):
        browser.resize(390, 844, mobile=True)
        open_page(browser, server.url)
        browser.js("$('text').value = 'hi'; send()")
        wait_for(browser, "choosing")
        assert SCRIPT in browser.js("document.body.innerText")
        assert browser.js("window.hacked") is None
        assert browser.js("document.querySelector('pre').textContent.length") == 300
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        assert browser.js("document.querySelectorAll('article').length") == 3
        browser.js("document.querySelectorAll('article button')[1].click()")
        wait_for(browser, "writing")
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    (record,) = read_jsonl(tmp_path / "c.jsonl")
    assert record["ranks"] == [2, 1, 2]
    browser.resize(1280, 900)


def test_answers_grow_and_can_be_stopped(browser, tmp_path, policies, monkeypatch):
    talk = talk_in(tmp_path, policies)

    def slowly(*_):
        for count in range(1, 400):
            time.sleep(0.01)
            yield "word " * count, True

    monkeypatch.setattr(talk.panel, "_stream", slowly)
    with serving_app(talk) as (server, _):
        open_page(browser, server.url)
        type_in(browser, "hi")
        browser.wait(lambda: browser.js("document.querySelectorAll('.growing').length") == 2)
        length = "document.querySelector('article .text').textContent.length"
        early = browser.js(length)
        browser.wait(lambda: browser.js(length) > early)
        browser.key("Escape")
        wait_for(browser, "writing")
        assert browser.js("$('text').value") == "hi" and browser.js("state.turns.length") == 0
        browser.wait(lambda: not talk.speaking.locked())
    assert read_jsonl(tmp_path / "c.jsonl") == []


def test_answers_that_a_restart_lost_can_be_had_again(browser, tmp_path, policies):
    talk = talk_in(tmp_path, policies)
    with serving_app(talk) as (server, _):
        open_page(browser, server.url)
        type_in(browser, "hi")
        wait_for(browser, "choosing")
        server.app = talk_in(tmp_path, policies)  # label.py was started again
        browser.key("1")
        wait_for(browser, "writing")
        browser.wait(lambda: "started again" in browser.js("$('say').textContent"))
        assert browser.js("$('text').value") == "hi"
        browser.key("Enter")
        wait_for(browser, "choosing")
        browser.key("1")
        wait_for(browser, "writing")
    assert len(read_jsonl(tmp_path / "c.jsonl")) == 1
