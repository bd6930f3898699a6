"""A person ranks: the questions, the server under hostile pages and clumsy users, the page in a real browser, agreement."""
import http.client
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

import label
import sample
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, feedback, labelserver
from minirlhf.data import read_rankings
from minirlhf.labelserver import Server, Sitting
from minirlhf.run import read_jsonl

ROOT = Path(__file__).parents[1]
SCRIPT = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
TALK = "\n\nHuman: Hello & <b>you</b>\n\nAssistant: Hi.\n\nHuman: Question {}?\n\nAssistant:"


def candidates(n: int = 20, K: int = 4) -> list[dict]:
    return [{"id": f"c{i}", "prompt": TALK.format(i), "responses": [f"answer {i}.{k}" for k in range(K)]} for i in range(n)]


@contextmanager
def serving(path: Path, rows: list[dict], name: str = "me"):
    """The server in a thread; gives (server, call): call(method, path, content, **headers) -> (status, answer)."""
    with Server(Sitting(rows, path / "r.jsonl", name), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server, lambda *words, **headers: call(server, *words, **headers)
        server.shutdown()


def call(server: Server, method: str, path: str, content=None, **headers) -> tuple[int, dict]:
    port = server.server_address[1]
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {"Host": f"127.0.0.1:{port}", "X-Token": server.token} | {k.replace("_", "-"): v for k, v in headers.items()}
    link.putrequest(method, path, skip_host=True)
    body = content if isinstance(content, bytes) else json.dumps(content).encode() if content is not None else b""
    for k, v in ({"Content-Length": str(len(body))} | sent).items():
        if v is not None:
            link.putheader(k, v)
    link.endheaders(body)
    got = link.getresponse()
    data = got.read()
    return got.status, json.loads(data) if data[:1] == b"{" else {"page": data.decode(), "headers": dict(got.headers)}


# ---------------------------------------------------------------------------------------------- the questions

def test_a_tenth_of_the_prompts_comes_twice_in_another_blind_order(tmp_path):
    rows = [*candidates(40), {"id": "same", "prompt": "p", "responses": ["x", "x"]},
            {"id": "two", "prompt": "p", "responses": ["x", "y", "x"]}]
    sitting, asked = Sitting(rows, tmp_path / "r.jsonl", "me"), []
    while "question" in (state := sitting.question()):
        candidate, repeat, order = sitting.plan[state["question"]]
        assert state["cards"] == order and set(order) == set(candidate["responses"])
        asked.append((candidate["id"], repeat, order))
        assert sitting.answer(state["question"], [1 + order.index(t) for t in order])
    once, twice = ([a for a in asked if a[1] == again] for again in (False, True))
    assert len(once) == 41 and len(twice) == 4 and "same" not in {a[0] for a in asked}
    first = {i: order for i, _, order in once}
    for i, _, order in twice:
        assert order != first[i]
        assert asked.index((i, True, order)) > asked.index((i, False, first[i]))
    shown = [order for i, _, order in once if i != "two"]
    assert len({tuple(t.split(".")[1] for t in order) for order in shown}) > 8              # blind: all sorts of orders
    records = read_jsonl(tmp_path / "r.jsonl")
    two = next(r for r in records if r["id"] == "two" and "repeat" not in r)
    assert two["responses"] == ["x", "y", "x"] and two["ranks"][0] == two["ranks"][2] != two["ranks"][1]
    for r, (_, _, order) in zip(records, asked):
        assert [r["ranks"][r["responses"].index(t)] for t in order] == list(range(1, len(order) + 1))
    assert len(read_rankings(str(tmp_path / "r.jsonl"))) == 41                              # repeats are not learned from


def test_skipped_is_not_asked_again_and_another_name_is_asked_everything(tmp_path):
    rows, out = candidates(10), tmp_path / "r.jsonl"
    for k in range(11):                                           # a new sitting each time: nothing lives in memory alone
        sitting = Sitting(rows, out, "me")
        state = sitting.question()
        if "question" not in state:
            break
        assert state["done"] == k and state["done"] + state["left"] in (10, 11)
        sitting.answer(state["question"], skip=True)
    assert k == 10 and all(r["skipped"] and set(r["ranks"]) == {1} for r in read_jsonl(out))
    assert Sitting(rows, out, "you").question()["left"] == 11
    with pytest.raises(UserError, match="no other record is usable"):
        read_rankings(str(out))


@pytest.mark.parametrize("wrong", [
    {"ranks": [1, 2, 3]}, {"ranks": [1, 2, 3, 5]}, {"ranks": [0, 1, 2, 3]}, {"ranks": [1, 2, 3, True]},
    {"ranks": "1234"}, {"ranks": [1, 2, 3, 4], "harmful": [4]}, {"ranks": [1, 2, 3, 4], "harmful": 1},
    {"ranks": [1, 2, 3, 4.0]}, {"ranks": [[]] * 4}, {}, {"ranks": [1, 2, 3, 4], "spare": 1},
    {"question": 3, "ranks": [1, 2, 3, 4]}, {"question": "0", "ranks": [1, 2, 3, 4]},
    {"question": True, "ranks": [1, 2, 3, 4]}, {"question": 1e9, "ranks": [1, 2, 3, 4]}])
def test_an_answer_that_makes_no_sense_is_refused_and_nothing_is_written(wrong, tmp_path):
    with serving(tmp_path, candidates()) as (_, ask):
        question = ask("GET", "/question")[1]["question"]
        status, answer = ask("POST", "/answer", {"question": question} | wrong)
        assert status == 400 and answer["error"]
        assert (tmp_path / "r.jsonl").read_bytes() == b""
        assert ask("POST", "/answer", {"question": question, "ranks": [1, 1, 2, 3], "harmful": [0], "all_bad": True})[0] == 200
    (record,) = read_jsonl(tmp_path / "r.jsonl")
    assert sorted(record["ranks"]) == [1, 1, 2, 3] and len(record["harmful"]) == 1 and record["all_bad"]


# ---------------------------------------------------------------------------------------------- hostile and clumsy

def test_strangers_get_nothing(tmp_path):
    with serving(tmp_path, candidates()) as (server, ask):
        good = {"question": ask("GET", "/question")[1]["question"], "ranks": [1, 2, 3, 4]}
        port = server.server_address[1]
        for headers in ({"Host": f"evil.example:{port}"}, {"Host": None}, {"Host": "1.2.3.4"}, {"Host": ""}, {"X_Token": None},
                        {"Host": "localhost.evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
                        {"Origin": f"http://127.0.0.1:{port + 1}"}, {"X_Token": "x"}, {"X_Token": "é"}, {"X_Token": ""},
                        {"X_Token": server.token[:-1]}):
            for method, path in (("GET", "/"), ("GET", "/question"), ("POST", "/answer"), ("POST", "/finish")):
                status, answer = ask(method, path, good if method == "POST" else None, **headers)
                assert status == 403 and "cards" not in answer and "page" not in answer, (headers, path)
        assert ask("GET", "/", Host="[::1", X_Token=server.token)[0] == 400
        for method, path in (("GET", "/answer"), ("POST", "/question"), ("GET", "/../label.py"), ("GET", "//etc/passwd")):
            assert ask(method, path, {} if method == "POST" else None)[0] in (400, 404)
        assert ask("PUT", "/answer", {})[0] == 501 and ask("OPTIONS", "/answer")[0] == 501         # no preflight is answered
        assert (tmp_path / "r.jsonl").read_bytes() == b"" and not server.finished.is_set()
        for headers in ({"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}, {"Host": "[::1]:80"}):
            assert ask("GET", "/question", **headers)[0] == 200
        status, page = ask("GET", f"/?token={server.token}", X_Token=None)
        policy = page["headers"]["Content-Security-Policy"]
        assert status == 200 and "default-src 'none'" in policy and policy.split("nonce-")[1].split("'")[0] in page["page"]
        assert "http://" not in page["page"] and "https://" not in page["page"] and "innerHTML" not in page["page"]


def test_bodies_too_large_too_slow_or_nonsense(tmp_path, monkeypatch):
    monkeypatch.setattr(labelserver, "LONGEST_REQUEST", 1.0)
    with serving(tmp_path, candidates()) as (server, ask):
        question = ask("GET", "/question")[1]["question"]
        for length in ("100000000", "65537", "-1", "x", "9" * 30, "", None):
            assert ask("POST", "/answer", b"", Content_Length=length)[0] == 413
        dice = random.Random(0)
        for body in (b"", b"[]", b"null", b"[" * 60000, b'{"question": NaN}', b"\xff", b'{"question": 1e999, "ranks": []}',
                     *(bytes(dice.randrange(256) for _ in range(dice.randrange(60))) for _ in range(100))):
            assert ask("POST", "/answer", body)[0] == 400
        began = time.monotonic()
        slow = [socket.create_connection(server.server_address) for _ in range(20)]
        for k, s in enumerate(slow):                              # some never finish their headers, some drip their body
            s.sendall(b"POST /answer HTTP/1.1\r\nContent-Length: 50\r\n" + b"\r\n" * (k % 2))
        while any(map(alive, slow)):
            assert time.monotonic() - began < 15
            time.sleep(0.1)
        assert (tmp_path / "r.jsonl").read_bytes() == b""
        assert ask("POST", "/answer", {"question": question, "ranks": [1, 2, 3, 4]})[0] == 200


def alive(s: socket.socket) -> bool:
    try:
        s.sendall(b"x")
        s.settimeout(0.01)
        return s.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_200_parallel_requests_write_every_answer_once(tmp_path):
    rows, everybody = candidates(3), list(range(200))
    with serving(tmp_path, rows) as (_, ask), ThreadPoolExecutor(200) as pool:
        for done in range(3):
            states = list(pool.map(lambda _: ask("GET", "/question"), everybody))
            question, before = states[0][1]["question"], len(read_jsonl(tmp_path / "r.jsonl"))
            assert {(status, state["question"], state["done"]) for status, state in states} == {(200, question, done)}
            orders = [random.Random(k).sample([1, 2, 3, 4], 4) for k in everybody]
            answers = list(pool.map(lambda ranks, q=question: ask("POST", "/answer", {"question": q, "ranks": ranks}), orders))
            assert {status for status, _ in answers} == {200} and sum(answer["saved"] for _, answer in answers) == 1
            assert len(read_jsonl(tmp_path / "r.jsonl")) == before + 1


def test_two_servers_on_one_file_do_not_double(tmp_path):
    rows = candidates(6)
    with serving(tmp_path, rows) as (_, one), serving(tmp_path, rows) as (_, two):
        while "question" in (state := one("GET", "/question")[1]):
            assert two("GET", "/question")[1]["question"] == state["question"]
            answer = {"question": state["question"], "ranks": [4, 3, 2, 1]}
            assert [ask("POST", "/answer", answer)[1]["saved"] for ask in (two, one)] == [True, False]
    assert len(read_jsonl(tmp_path / "r.jsonl")) == 7


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")
    with serving(tmp_path, candidates()) as (_, ask):
        answers = []
        for broken in (False, True, False):
            with monkeypatch.context() as m:
                if broken:
                    m.setattr(os, "fsync", full)
                state = ask("GET", "/question")[1]
                answers.append(ask("POST", "/answer", {"question": state["question"], "ranks": [1, 2, 3, 4]}))
    assert [status for status, _ in answers] == [200, 507, 200] and "No space left" in answers[1][1]["error"]
    assert len(read_jsonl(tmp_path / "r.jsonl")) == 2


def test_a_torn_last_line_is_mended_and_a_whole_one_is_kept(tmp_path):
    rows, out = candidates(3), tmp_path / "r.jsonl"
    feedback.append_ranking(out, rows[0], [1, 2, 3, 4], "me")
    feedback.append_ranking(out, rows[1] | {"prompt": rows[1]["prompt"]}, [4, 3, 2, 1], "me")
    whole = out.read_bytes()
    for cut in (1, 2, 40, 150):
        out.write_bytes(whole[:-cut])
        kept = feedback.open_rankings(out, rows)
        assert len(kept) == (2 if cut == 1 else 1)
        feedback.append_ranking(out, rows[2], [1, 2, 3, 4], "me")
        assert len(feedback.open_rankings(out, rows)) == len(kept) + 1
    feedback.append_ranking(out, odd := {"id": "odd", "prompt": "p", "responses": ["\ufffd", "\u2028\r\n\x00"]}, [1, 2], "me")
    assert feedback.open_rankings(out, [*rows, odd])[-1]["responses"] == odd["responses"]


def start_label(path: Path, *more: str) -> tuple[subprocess.Popen, str, str]:
    process = subprocess.Popen([sys.executable, "label.py", "--candidates", str(path / "c.jsonl"), "--out", str(path / "r.jsonl"),
                                "--no-open", *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url, _, token = process.stdout.readline().split()[-1].partition("/?token=")
    return process, url.rpartition(":")[2], token


def post(port: str, token: str, path: str, content: dict | None = None) -> dict:
    link = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    link.request("POST" if content is not None else "GET", path, content and json.dumps(content), {"X-Token": token})
    return json.loads(link.getresponse().read())


def test_killed_at_any_moment_what_was_confirmed_is_there_once(tmp_path):
    rows = candidates(300)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    confirmed = 0
    for life in range(3):
        process, port, token = start_label(tmp_path, "--name", "me")
        if life < 2:
            threading.Timer(0.3 + 0.2 * life, process.kill).start()
        try:
            state = post(port, token, "/question")
            while "question" in state:
                state = post(port, token, "/answer", {"question": state["question"], "ranks": [2, 1, 4, 3]})
                confirmed += 1
        except (OSError, http.client.HTTPException):
            pass
        process.communicate(timeout=60)
    assert process.returncode == 0
    records = read_jsonl(tmp_path / "r.jsonl")
    assert confirmed <= len(records) == 330 == len({(r["id"], r.get("repeat")) for r in records})


def test_wrong_calls_are_one_sentence(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in candidates(3)))
    common = {"candidates": str(tmp_path / "c.jsonl"), "out": str(tmp_path / "r.jsonl"), "open": False}
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another --port"):
        label.main(label.Settings(**common, port=taken.getsockname()[1]))
    with pytest.raises(UserError, match="choose another --port"):
        label.main(label.Settings(**common, port=70000))
    with pytest.raises(UserError, match=r"named \.jsonl"):
        label.main(label.Settings(**common | {"out": str(tmp_path / "r.txt")}))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        label.main(label.Settings(**common | {"out": str(tmp_path / "file" / "r.jsonl")}))
    feedback.append_ranking(tmp_path / "r.jsonl", candidates(9)[8], [1, 2, 3, 4], "me")
    with pytest.raises(UserError, match=r"r.jsonl, line 1.*other candidates"):
        label.main(label.Settings(**common))


def test_ctrl_c_and_finish_for_now(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in candidates(3)))
    process, port, token = start_label(tmp_path)
    question = post(port, token, "/question")["question"]
    post(port, token, "/answer", {"question": question, "ranks": [1, 2, 3, 4]})
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1] and process.returncode == 130
    process, port, token = start_label(tmp_path)
    assert post(port, token, "/question")["done"] == 1
    assert post(port, token, "/finish", {"now": True})["finished"]
    assert "0 rankings added" in process.communicate(timeout=60)[0] and process.returncode == 0


# ---------------------------------------------------------------------------------------------- terminal, agreement

def test_the_terminal_asks_the_same_questions(tmp_path, monkeypatch, capsys):
    rows = [*candidates(4), {"id": "x", "prompt": "p", "responses": ["\x1b[2Jboo", "y", "z", "w"]}]
    lines = iter(["2 > 1 = 3 > 4 h2", "5 1 2 3", "1 2 3", "s", "b", "4 3 2 1 b", "q"])
    sitting = Sitting(rows, tmp_path / "r.jsonl", "me")
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    orders = [order for _, _, order in sitting.plan]
    label.terminal(sitting)
    first, second, third, fourth = read_jsonl(tmp_path / "r.jsonl")
    assert [first["ranks"][first["responses"].index(t)] for t in orders[0]] == [2, 1, 2, 3]
    assert [first["responses"][j] for j in first["harmful"]] == [orders[0][1]]
    assert second["skipped"] and third["all_bad"] and set(third["ranks"]) == {1} and sorted(fourth["ranks"]) == [1, 2, 3, 4]
    monkeypatch.setattr("builtins.input", lambda _: "1 2 3 4")
    label.terminal(sitting)
    said = capsys.readouterr().out
    assert said.count("not saved") == 2 and "\x1b" not in said and "boo" in said


def test_alpha_is_krippendorffs():
    """The worked example of "Computing Krippendorff's Alpha-Reliability" (2011), interval metric: 0.849."""
    table = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[float(row[u]) for row in table if row[u] != "."] for u in range(12)]
    assert feedback.krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert feedback.krippendorff_alpha([[1, 1], [2, 2]]) == 1
    assert all(math.isnan(feedback.krippendorff_alpha(units)) for units in ([], [[1], []], [[1, 1], [1, 1]]))
    dice = random.Random(0)
    assert abs(feedback.krippendorff_alpha([[dice.choice([-1, 1]) for _ in range(3)] for _ in range(4000)])) < 0.03


def test_summary_counts_and_agreements(tmp_path):
    rows, out = candidates(20, K=3), tmp_path / "r.jsonl"
    for i, row in enumerate(rows):
        feedback.append_ranking(out, row, [1, 2, 3], "anna", seconds=6.0)
        feedback.append_ranking(out, row, [3, 2, 1] if i < 5 else [1, 2, 3], "ben", seconds=12.0)
    feedback.append_ranking(out, rows[0], [1, 2, 2], "anna", seconds=6.0, repeat=True, harmful=[2])
    feedback.append_ranking(out, rows[0], [1, 1, 1], "carl", seconds=6.0, skipped=True)
    said = feedback.summarize(str(out))
    assert "anna: 21 rankings, 0 skipped, 0% of pairs tied, 0 times all bad, 1 harmful, 10.0 labels/min" in said
    assert "themselves: 0.83 on 3 pairs" in said and "5.0 labels/min" in said and "carl: 0 rankings, 1 skipped" in said
    assert "anna and ben agree: 0.75 ±0.19 on 60 pairs" in said
    alpha = float(said.split()[-1])                               # 2 values a unit, balanced: 1 - observed / expected, n / (n - 1)
    assert alpha == pytest.approx(1 - 0.25 * 4 / (4 * 0.5 * 240 / 239), abs=0.006)
    (tmp_path / "x.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(UserError, match="line 1"):
        feedback.summarize(str(tmp_path / "x.jsonl"))


def test_simulated_annotators_take_turns_and_the_reliable_agree_more(tmp_path):
    from minirlhf import toyworld
    prompts = toyworld.prompts("train", 200, 0)
    texts = [d["completion"] for d in toyworld.demonstrations("train", 200, 0)]
    rows = [{"id": str(i), "prompt": p, "responses": texts[i:i + 1] + texts[:3]} for i, p in enumerate(prompts)][3:]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = label.Settings(candidates=str(tmp_path / "c.jsonl"), out=str(tmp_path / "r.jsonl"), annotator="toy",
                              noise="0.01,0.02,5")
    label.main(settings)
    once = (tmp_path / "r.jsonl").read_bytes()
    label.main(settings)
    assert (tmp_path / "r.jsonl").read_bytes() == once            # nothing is asked twice
    by = {}
    for r in read_jsonl(tmp_path / "r.jsonl"):
        by.setdefault(r["annotator"], {})[r["id"]] = r
    assert set(by) == {"toy1", "toy2", "toy3"} and {r["id"] for r in rows} == set().union(*by.values())
    shared = set.intersection(*map(set, by.values()))
    assert len(shared) == 20

    def agree(a, b):
        pairs = [(feedback.comparisons(by[a][i]), feedback.comparisons(by[b][i])) for i in shared]
        return sum(x[k] == y[k] for x, y in pairs for k in x) / sum(len(x) for x, _ in pairs)
    assert agree("toy1", "toy2") > agree("toy1", "toy3") + 0.1


# ---------------------------------------------------------------------------------------------- the page

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
    rows[0]["responses"][0], rows[0]["prompt"] = SCRIPT, TALK.format(SCRIPT)
    rows[1]["responses"][0] = "long " * 20000
    with serving(tmp_path, rows) as (server, _):
        def saved(n):
            browser.wait(lambda: len(read_jsonl(tmp_path / "r.jsonl")) == n and browser.js("!busy && (!now || !now.groups.length)"))
            return read_jsonl(tmp_path / "r.jsonl")[-1] if n else None
        browser.call("Emulation.setDeviceMetricsOverride", width=1280, height=4000, deviceScaleFactor=1, mobile=False)
        browser.open(server.url)
        browser.wait(lambda: browser.js("cards.length") == 4)
        saved(0)
        # model output is text: it is all there, and nothing of it ran
        assert browser.js("shown.turns.length") == 3 and SCRIPT in browser.js("document.body.innerText")
        assert browser.js("window.hacked") is None and browser.js("document.querySelectorAll('img').length") == 0
        # keys: 3 best, then 1 and 4 tied, 2 falls into place; undo takes back what was wrong; 2 is harmful
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
        assert "still unranked" in browser.js("$('say').textContent") and len(read_jsonl(tmp_path / "r.jsonl")) == 1
        browser.open(server.url)
        browser.wait(lambda: browser.js("cards.length") == 4)
        assert browser.js("now.groups") == [[3]]
        for i in (1, 0, 2):                                       # the rest by clicks
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
            browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
            assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        browser.call("Emulation.clearDeviceMetricsOverride")
        assert browser.js("window.hacked") is None
        bad = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        assert not bad, bad


def middle(browser: Browser, i: int, height: float = 0.5) -> tuple[float, float]:
    return tuple(browser.js(f"(r => [r.x + r.width / 2, r.y + r.height * {height}])(cards[{i}].getBoundingClientRect())"))


def settle() -> None:
    time.sleep(0.3)                                               # the cards glide for 0.22 seconds


def unfocused(browser: Browser) -> None:
    """From here on the page does not look again whether its question still stands, as it does when its window gets the focus."""
    browser.js("removeEventListener('focus', look)")
    settle()                                                      # a look that is on its way


def test_two_tabs_a_double_press_and_the_end(browser, tmp_path):
    with serving(tmp_path, candidates(3)) as (server, ask):
        browser.open(server.url)
        browser.wait(lambda: browser.js("cards.length") == 4)
        unfocused(browser)
        state = ask("GET", "/question")[1]                        # the other tab goes ahead
        assert ask("POST", "/answer", {"question": state["question"], "ranks": [1, 2, 3, 4]})[1]["saved"]
        for key in "432":
            browser.key(key)
        browser.js("confirm(); confirm(); confirm()")
        browser.wait(lambda: browser.js("shown.done") == 1)
        assert "first answer counts" in browser.js("$('say').textContent")
        assert len(read_jsonl(tmp_path / "r.jsonl")) == 1 and read_jsonl(tmp_path / "r.jsonl")[0]["ranks"] != [1, 1, 1, 1]
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
        server.server_close()                                     # label.py died: the ranking stays on the page
        for request in list(server.live):                         # and so did the spare connection that the browser holds
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for key in ("2", "3", "4", "Enter"):
            browser.key(key)
        browser.wait(lambda: "cannot be reached" in browser.js("$('say').textContent"))
        assert browser.js("now.groups") == [[1], [2], [3]]


# ---------------------------------------------------------------------------------------------- the model changes

def test_a_taste_for_the_sea_is_learned_from_50_rankings(tmp_path):
    """An annotator who knows only the texts ranks over HTTP; the policy says what they like at least twice as often."""
    dice, places = random.Random(0), ["by the sea", "in a house", "on a hill", "at the mill", "in the barn", "on a road"]
    who = ["fox", "dog", "cat", "hen", "bear", "duck", "goat", "frog"]
    data = [{"prompt": f"Tell of a {a}.", "completion": f"The {a} sat {dice.choice(places)}."} for a in who * 40]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in data))
    prompts = [{"prompt": f"Tell of a {a} and a {b}."} for a in who for b in who]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in prompts))
    sft, d = str(tmp_path / "sft"), str(tmp_path)
    train_sft.main(train_sft.Settings(data=f"{d}/d.jsonl", out=sft, steps=120, lr=5e-3, n_layer=1, n_head=2, n_embd=32,
                                      vocab_size=330, n_positions=64, batch_size=16))

    def say(model: str, count: int, samples: int, seed: int) -> list[dict]:
        sample.main(sample.Settings(init=model, data=f"{d}/p.jsonl", count=count, samples=samples, max_tokens=24, seed=seed,
                                    candidates_out=f"{model}.jsonl"))
        return read_jsonl(f"{model}.jsonl")

    def share(rows: list[dict]) -> float:
        return sum("sea" in r for row in rows for r in row["responses"]) / sum(len(row["responses"]) for row in rows)

    rows = say(sft, 50, 4, 0)
    with serving(tmp_path, rows) as (_, ask):
        state = ask("GET", "/question")[1]
        while "question" in state:
            ranks = [1 if "sea" in card else 2 for card in state["cards"]]
            ranks = ranks if 1 in ranks else [1] * len(ranks)
            status, state = ask("POST", "/answer", {"question": state["question"], "ranks": ranks})
            assert status == 200
    train_rm.main(train_rm.Settings(init=sft, data=f"{d}/r.jsonl", out=f"{d}/rm", steps=40, max_tokens=24, normalize_samples=64))
    train_ppo.main(train_ppo.Settings(init=sft, reward=f"{d}/rm", data=f"{d}/p.jsonl", out=f"{d}/ppo", steps=25, max_tokens=24,
                                      prompts_per_step=48, epochs=4, temperature=1.0, lr=2e-3))
    before, after = share(say(sft, 64, 4, 1)), share(say(f"{d}/ppo", 64, 4, 1))
    kl = sum(r["kl"] for r in read_jsonl(tmp_path / "ppo" / "metrics.jsonl")[-5:]) / 5
    print(f"share {before:.2f} -> {after:.2f}, KL {kl:.1f}")
    assert after >= 2 * before > 0 and 0 < kl < 20


def test_the_loop_stops_for_a_person_and_goes_on(tmp_path):
    words = ["--quick", "--annotator", "person", "--rounds", "1", "--sft_steps", "3", "--ppo_steps", "1", "--samples", "2"]
    process = subprocess.Popen([sys.executable, "-u", "run_rlhf.py", *words, "--out", str(tmp_path)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env=os.environ | {"DISPLAY": "", "WAYLAND_DISPLAY": ""})
    said = ""
    while "rank here:" not in (line := process.stdout.readline()):
        said += line
        assert line, said
    url, _, token = line.split()[-1].partition("/?token=")
    state = post(url.rpartition(":")[2], token, "/question")
    for _ in range(12):
        state = post(url.rpartition(":")[2], token, "/answer", {"question": state["question"], "ranks": [1, 2]})
    post(url.rpartition(":")[2], token, "/finish", {"now": True})
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert len(read_jsonl(tmp_path / "round1" / "rankings.jsonl")) == 12 and (tmp_path / "report.html").exists()
