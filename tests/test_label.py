"""A person ranks: the questions, the server against strangers, the terminal."""

import socket
import stat
import time
from dataclasses import replace

import pytest
from labelling import candidates, serving, write_candidates

import label
from minirlhf import UserError
from minirlhf.data import Prompt, read_rankings
from minirlhf.feedback import server
from minirlhf.feedback.page import Sitting
from minirlhf.feedback.rankings import Candidate, append_ranking
from minirlhf.feedback.server import Address
from minirlhf.files import read_jsonl

# ------------------------------------------------------------------------- the questions


def test_a_tenth_of_the_prompts_comes_twice_in_another_blind_order(tmp_path):
    rows = candidates(40)
    rows.append(Candidate("same", Prompt.of("p"), ["x", "x"]))
    rows.append(Candidate("two", Prompt.of("p"), ["x", "y", "x"]))
    sitting = Sitting(rows, tmp_path / "r.jsonl", "me")
    asked = []
    while "question" in (state := sitting.question()):
        question = sitting.questions[state["question"]]
        cards = state["cards"]
        assert set(cards) == set(question.candidate.responses)
        asked.append((*question.id, cards))
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


def test_an_answer_is_taken_back_and_its_record_is_replaced(tmp_path):
    out = tmp_path / "r.jsonl"
    sitting = Sitting(candidates(3), out, "me")
    with pytest.raises(UserError, match="no earlier answer"):
        sitting.back()
    first = sitting.question()["question"]
    sitting.answer(first, [2, 1, 2, 3], harmful=[3], all_bad=True)
    second = sitting.question()["question"]
    sitting.answer(second, skip=True)
    sitting = Sitting(candidates(3), out, "me")  # it works in a new sitting too
    third = sitting.question()["question"]
    assert sitting.back(third)["answer"]["skip"]
    state = sitting.back(second)
    answer = {"ranks": [2, 1, 2, 3], "harmful": [3], "all_bad": True, "skip": False}
    assert state["question"] == first and state["answer"] == answer and state["done"] == 2
    assert not sitting.answer(first, [1, 2, 3, 4])  # a second answer, but no correction
    assert sitting.answer(first, [1, 2, 3, 4], replaces=True)
    assert sitting.back(second)["answer"]["ranks"] == [1, 2, 3, 4]  # the order is kept
    assert sitting.question()["question"] == third
    records = read_jsonl(out)
    assert len(records) == 3 and [r.get("replaces") for r in records] == [None, None, True]
    (ranking,) = read_rankings(str(out))
    assert sorted(ranking.ranks) == [1, 2, 3, 4]


def test_an_open_page_goes_on_after_a_restart_if_the_question_is_the_same(tmp_path):
    question = Sitting(candidates(3), tmp_path / "r.jsonl", "me").question()["question"]
    with pytest.raises(UserError, match="not asked"):
        Sitting(candidates(3), tmp_path / "s.jsonl", "me", seed=6).answer(question, [1, 2, 3, 4])
    assert Sitting(candidates(3), tmp_path / "r.jsonl", "me").answer(question, [1, 2, 3, 4])
    (record,) = read_jsonl(tmp_path / "r.jsonl")
    assert "seconds" not in record  # nobody knows


def test_20_000_candidates_at_under_50_ms_an_answer(tmp_path):
    sitting = Sitting(candidates(20000, K=2), tmp_path / "r.jsonl", "me")
    seconds = []
    for _ in range(20):
        state = sitting.question()
        began = time.perf_counter()
        sitting.respond("POST /answer", {"question": state["question"], "ranks": [1, 2]})
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[10] < 0.05


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
        {"question": [], "ranks": [1, 2, 3, 4]},
    ],
)
def test_an_answer_that_makes_no_sense_is_refused_and_nothing_is_written(wrong, tmp_path):
    with serving(tmp_path, candidates()) as (_, ask):
        question = ask("GET", "/question")[1]["question"]
        status, reply = ask("POST", "/answer", {"question": question} | wrong)
        assert status == 400 and reply["error"]
        assert not (tmp_path / "r.jsonl").exists()
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
        {"Origin": "://"},
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
            ("GET", "/guidelines"),
            ("POST", "/answer", answer),
            ("POST", "/back", {}),
            ("POST", "/finish", {}),
        ):
            status, reply = ask(*words, **headers)
            assert status == 403 and reply.keys() == {"error"}
        assert not (tmp_path / "r.jsonl").exists() and not server.app.finished.is_set()


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
        for foreign in ("http://", "https://", "innerHTML", "{{"):
            assert foreign not in page


def test_a_page_behind_a_proxy_has_its_name_and_https(tmp_path):
    address = Address(public_url="https://rank.example.org/mine/")
    with serving(tmp_path, candidates(), address=address) as (server, ask):
        assert server.url == f"https://rank.example.org/mine/?token={server.token}"
        public = {"Host": "rank.example.org", "Origin": "https://rank.example.org"}
        assert ask("GET", "/question", **public)[0] == 200
        assert ask("GET", "/question", Origin="https://rank.example.org")[0] == 200
        assert ask("GET", "/question", Origin="https://example.org")[0] == 403
        assert ask("GET", "/question", Host="example.org")[0] == 403
    for wrong in ("rank.example.org", "ftp://x.org", "https://", "https://x.org/?a=1", "http://["):
        with pytest.raises(UserError, match="--public_url"):
            Address(public_url=wrong)


@pytest.mark.parametrize(
    "url, host, origin",
    [
        ("https://Rank.Example.org/mine", "rank.example.org", "https://rank.example.org"),
        ("HTTPS://rank.example.org:443/", "rank.example.org", "https://rank.example.org"),
        ("http://rank.example.org:80", "rank.example.org", "http://rank.example.org"),
        ("http://rank.example.org:443/", "rank.example.org:443", "http://rank.example.org:443"),
        ("https://rank.example.org:/", "rank.example.org", "https://rank.example.org"),
        ("https://Bücher.example/", "xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://192.168.0.9/", "192.168.0.9", "https://192.168.0.9"),
        ("https://[2001:DB8::1]:8443/", "[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_a_public_url_in_any_spelling_is_what_browsers_make_of_it(url, host, origin, tmp_path):
    with serving(tmp_path, candidates(), address=Address(public_url=url)) as (_, ask):
        question = ask("GET", "/question", Host=host)[1]["question"]
        answer = {"question": question, "ranks": [1, 2, 3, 4]}
        assert ask("POST", "/answer", answer, Host=host, Origin="https://evil.example")[0] == 403
        assert ask("POST", "/answer", answer, Host=host, Origin=origin)[0] == 200
        assert ask("POST", "/answer", answer, Origin=origin)[0] == 200  # the proxy names itself


def test_an_address_that_no_browser_can_use_is_refused():
    for wrong in ("https://u:p@x.org/", "https://u@x.org", "https://x.org:99999", "https://a..b/"):
        with pytest.raises(UserError, match=r"--public_url .* without user and password"):
            Address(public_url=wrong)
    with pytest.raises(UserError, match="--host is empty"):
        Address(host="")


def test_what_an_open_host_means_is_said():
    for host in ("127.0.0.1", "127.0.0.7", "localhost", "::1"):
        assert not Address(host).warning()
    for host in ("0.0.0.0", "::", "192.168.0.7"):
        assert "nothing is encrypted" in Address(host).warning()


# ------------------------------------------------------------------------- restarts


def test_port_and_token_survive_a_restart_and_only_the_user_can_read_them(tmp_path):
    link = tmp_path / "r.page.html"
    sitting = Sitting(candidates(3), tmp_path / "r.jsonl", "me")
    with server.start_server(sitting, Address(), link) as first:
        server.write_link(link, first.local_url)
        assert stat.S_IMODE(link.stat().st_mode) == 0o600
        with server.start_server(sitting, Address(), link) as second:  # the port is taken
            assert second.server_address != first.server_address
            assert second.token == first.token
    with server.start_server(sitting, Address(), link) as again:
        assert (again.url, again.token) == (first.url, first.token)
    link.chmod(0o644)  # others could have read it, or written it
    with server.start_server(sitting, Address(), link) as new:
        assert new.token != first.token
    for damaged in ("", "\xff", "http://127.0.0.1:80/?token=x"):
        link.write_text(damaged, encoding="latin-1")
        link.chmod(0o600)
        assert server.read_link(link) == (0, "")


def test_only_a_page_file_of_its_own_is_replaced(tmp_path):
    link = tmp_path / "r.page.html"
    url = f"http://127.0.0.1:8000/?token={'a' * 32}"
    server.write_link(link, url)
    link.chmod(0o644)  # as on a file system without modes
    server.write_link(link, url.replace("8000", "8001"))
    assert server.read_link(link)[0] == 8001
    page = f"<html>{link.read_text()}</html>"
    link.write_text(page)
    with pytest.raises(UserError, match=r"r\.page\.html"):
        server.write_link(link, url)
    assert link.read_text() == page and server.read_link(link) == (0, "")
    link.rename(tmp_path / "mine.html")
    link.symlink_to("mine.html")
    with pytest.raises(UserError, match=r"r\.page\.html"):
        server.write_link(link, url)
    assert link.is_symlink()


def test_no_command_line_holds_the_token(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(server, "has_display", lambda: True)
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    link = tmp_path / "r.page.html"
    sitting = Sitting(candidates(3), tmp_path / "r.jsonl", "me")
    sitting.finished.set()
    server.serve(sitting, Address(), link, "rank")
    token = capsys.readouterr().out.split("?token=")[1].split()[0]
    assert opened == [link.as_uri()] and token not in opened[0] and token in link.read_text()


# ------------------------------------------------------------------------- label.py


def test_wrong_calls_are_refused(tmp_path):
    write_candidates(tmp_path / "c.jsonl", candidates(3))
    common = {"candidates": str(tmp_path / "c.jsonl"), "open": False}
    out = str(tmp_path / "r.jsonl")

    def refused(match: str, **flags) -> None:
        with pytest.raises(UserError, match=match):
            label.main(label.Settings(**common | {"out": out} | flags))

    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused("--port", port=taken.getsockname()[1])
    refused("--port", port=70000)
    refused("--public_url", public_url="here")
    refused("--guidelines", guidelines=str(tmp_path / "no.txt"))
    refused("--annotator nobody", annotator="nobody")
    refused(r"--out .*r\.txt", out=str(tmp_path / "r.txt"))
    refused("one file", out="a.jsonl,b.jsonl")
    refused("--candidates", out=common["candidates"])
    (tmp_path / "file").write_text("")
    refused("--out .*no such folder", out=str(tmp_path / "file" / "r.jsonl"))
    append_ranking(out, candidates(9)[8], [1, 2, 3, 4], "me")
    refused(r"r\.jsonl, line 1")


def test_the_terminal_asks_the_same_questions(tmp_path, monkeypatch, capsys):
    rows = [*candidates(4), Candidate("x", Prompt.of("p"), ["\x1b[2Jboo", "y", "z", "w"])]
    lines = iter(["2 > 1 = 3 > 4 h2", "5 1 2 3", "1 2 3", "1 2 3 4 x", "s", "b", "4 3 2 1 b", "q"])
    sitting = Sitting(rows, tmp_path / "r.jsonl", "me", guidelines="Be fair.")
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    label.ask_in_terminal(sitting)
    first, second, third, fourth = read_jsonl(tmp_path / "r.jsonl")
    cards = next(iter(sitting.questions.values())).cards
    assert [first["ranks"][first["responses"].index(card)] for card in cards] == [2, 1, 2, 3]
    assert [first["responses"][i] for i in first["harmful"]] == [cards[1]]
    assert second["skipped"] and third["all_bad"] and set(third["ranks"]) == {1}
    assert sorted(fourth["ranks"]) == [1, 2, 3, 4] and fourth["all_bad"]
    lines = iter(["u", "1 2 3 4", "q"])
    label.ask_in_terminal(sitting)
    assert read_jsonl(tmp_path / "r.jsonl")[4]["replaces"]
    monkeypatch.setattr("builtins.input", lambda _: "1 2 3 4")
    label.ask_in_terminal(sitting)
    output = capsys.readouterr().out
    assert output.count("not saved") == 3 and "\x1b" not in output and "boo" in output
    assert "Be fair." in output


def test_the_end_names_the_command_that_comes_next_but_not_inside_a_loop(
    tmp_path, monkeypatch, capsys
):
    write_candidates(tmp_path / "c.jsonl", candidates(3))
    monkeypatch.setattr("builtins.input", lambda _: "1 2 3 4")
    files = {"candidates": str(tmp_path / "c.jsonl"), "out": str(tmp_path / "my r.jsonl")}
    label.main(label.Settings(**files, terminal=True), is_alone=True)
    assert f"next: python train_rm.py --data '{files['out']}'" in capsys.readouterr().out
    label.main(label.Settings(**files, terminal=True))
    assert "train_rm" not in capsys.readouterr().out
    sitting = Sitting(candidates(3), tmp_path / "r.jsonl", "me", next_step="python train_rm.py")
    assert sitting.respond("POST /finish", {})["next"] == "python train_rm.py"


def test_questions_that_are_left_end_a_loop_as_ctrl_c_does(tmp_path, monkeypatch, capsys):
    write_candidates(tmp_path / "c.jsonl", candidates(3))
    files = {"candidates": str(tmp_path / "c.jsonl"), "out": str(tmp_path / "r.jsonl")}
    settings = label.Settings(**files, terminal=True)
    lines = iter(["1 2 3 4", "q", "q", "1 2 3 4", "1 2 3 4"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    left = "questions left: 2; the same command goes on with them\n"
    with pytest.raises(KeyboardInterrupt):
        label.main(settings)
    assert left in capsys.readouterr().out
    label.main(settings, is_alone=True)
    output = capsys.readouterr().out
    assert left in output and "next: python train_rm.py" in output
    label.main(settings)
    output = capsys.readouterr().out
    assert "2 rankings added" in output and "questions left" not in output


def test_where_nothing_can_be_learnt_the_message_says_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "s")
    rows, out = candidates(2), tmp_path / "r.jsonl"
    write_candidates(tmp_path / "c.jsonl", rows)
    settings = label.Settings(candidates=str(tmp_path / "c.jsonl"), out=str(out), terminal=True)
    with pytest.raises(UserError, match="another --out"):  # all are skipped: the end of this file
        label.main(settings)
    for row in rows:
        row.responses = ["same"] * 4
    write_candidates(tmp_path / "c.jsonl", rows)
    for annotator in ("person", "toyworld"):
        with pytest.raises(UserError, match=r"c\.jsonl: .* equal, so there is nothing to rank"):
            label.main(replace(settings, annotator=annotator, out=str(tmp_path / "new.jsonl")))
    assert not (tmp_path / "new.jsonl").exists()
