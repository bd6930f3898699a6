"""The labelling page's server under load, slow clients, full disks and kills."""

import http.client
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from labelling import candidates, post, serving, start_label, write_candidates

from minirlhf.feedback import page
from minirlhf.files import read_jsonl


def test_bodies_too_large_too_slow_or_nonsense(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LONGEST_REQUEST", 1.0)
    with serving(tmp_path, candidates()) as (server, ask):
        question = ask("GET", "/question")[1]["question"]
        for length in ("100000000", "65537", "-1", "x", "9" * 30, "", None):
            assert ask("POST", "/answer", b"", Content_Length=length)[0] == 413
        rng = random.Random(0)
        bodies = [b"", b"[]", b"null", b"[" * 60000, b"\xff"]
        bodies += [b'{"question": NaN}', b'{"question": 1e999, "ranks": []}']
        bodies += [rng.randbytes(rng.randrange(60)) for _ in range(100)]
        for body in bodies:
            assert ask("POST", "/answer", body)[0] == 400
        began = time.monotonic()
        slow = [socket.create_connection(server.server_address) for _ in range(20)]
        for k, s in enumerate(slow):  # some never finish their headers, some drip their body
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
    with serving(tmp_path, candidates(3)) as (_, ask), ThreadPoolExecutor(200) as pool:
        for done in range(3):
            states = list(pool.map(lambda _: ask("GET", "/question"), range(200)))
            question = states[0][1]["question"]
            for status, state in states:
                assert (status, state["question"], state["done"]) == (200, question, done)
            answers = []
            for k in range(200):
                ranks = random.Random(k).sample([1, 2, 3, 4], 4)
                answers.append({"question": question, "ranks": ranks})
            replies = list(pool.map(lambda answer: ask("POST", "/answer", answer), answers))
            assert {status for status, _ in replies} == {200}
            assert sum(reply["saved"] for _, reply in replies) == 1
            assert len(read_jsonl(tmp_path / "r.jsonl")) == done + 1


def test_two_servers_on_one_file_do_not_double(tmp_path):
    rows = candidates(6)
    with serving(tmp_path, rows) as (_, one), serving(tmp_path, rows) as (_, two):
        while "question" in (state := one("GET", "/question")[1]):
            assert two("GET", "/question")[1]["question"] == state["question"]
            answer = {"question": state["question"], "ranks": [4, 3, 2, 1]}
            assert two("POST", "/answer", answer)[1]["saved"]
            assert not one("POST", "/answer", answer)[1]["saved"]
    assert len(read_jsonl(tmp_path / "r.jsonl")) == 7


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with serving(tmp_path, candidates()) as (_, ask):
        replies = []
        for broken in (False, True, False):
            with monkeypatch.context() as patch:
                if broken:
                    patch.setattr(os, "fsync", full)
                question = ask("GET", "/question")[1]["question"]
                answer = {"question": question, "ranks": [1, 2, 3, 4]}
                replies.append(ask("POST", "/answer", answer))
    assert [status for status, _ in replies] == [200, 507, 200]
    assert "No space left" in replies[1][1]["error"]
    assert len(read_jsonl(tmp_path / "r.jsonl")) == 2


def test_killed_at_any_moment_what_was_confirmed_is_there_once(tmp_path):
    write_candidates(tmp_path / "c.jsonl", candidates(300))
    confirmed = 0
    for life in range(3):
        process, port, token = start_label(tmp_path, "--name", "me")
        if life < 2:
            threading.Timer(0.3 + 0.2 * life, process.kill).start()
        try:
            state = post(port, token, "/question")
            while "question" in state:
                answer = {"question": state["question"], "ranks": [2, 1, 4, 3]}
                state = post(port, token, "/answer", answer)
                confirmed += 1
        except (OSError, http.client.HTTPException):
            pass
        process.communicate(timeout=60)
    assert process.returncode == 0
    records = read_jsonl(tmp_path / "r.jsonl")
    questions = {(record["id"], record.get("repeat")) for record in records}
    assert confirmed <= len(records) == len(questions) == 330
