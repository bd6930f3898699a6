"""The labelling page's server under load, slow clients, full disks and kills."""

import http.client
import io
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch
from conftest import FUZZ, KILLS, tiny
from labelling import candidates, post, serving, start_label, write_candidates

from minirlhf.feedback import server
from minirlhf.feedback.page import Sitting
from minirlhf.feedback.server import Address, Server
from minirlhf.files import read_jsonl


def test_bodies_too_large_too_slow_or_nonsense(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "LONGEST_REQUEST", 1.0)
    with serving(tmp_path, candidates()) as (running, ask):
        question = ask("GET", "/question")[1]["question"]
        for length in ("100000000", "1048577", "-1", "x", "9" * 30, "", None):
            assert ask("POST", "/answer", b"", Content_Length=length)[0] == 413
        rng = random.Random(0)
        bodies = [b"", b"[]", b"null", b"[" * 60000, b"\xff"]
        bodies += [b'{"question": NaN}', b'{"question": 1e999, "ranks": []}']
        bodies += [rng.randbytes(rng.randrange(60)) for _ in range(100)]
        for body in bodies:
            assert ask("POST", "/answer", body)[0] == 400
        began = time.monotonic()
        slow = [socket.create_connection(running.server_address) for _ in range(20)]
        for k, s in enumerate(slow):  # some never finish their headers, some drip their body
            s.sendall(b"POST /answer HTTP/1.1\r\nContent-Length: 50\r\n" + b"\r\n" * (k % 2))
        while any(map(alive, slow)):
            assert time.monotonic() - began < 15
            time.sleep(0.1)
        assert not (tmp_path / "r.jsonl").exists()
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
    write_candidates(tmp_path / "c.jsonl", candidates(2000))
    confirmed = 0
    dice = random.Random(0)
    for life in range(KILLS):
        process, port, token = start_label(tmp_path, "--name", "me")
        if life < KILLS - 1:
            by = dice.choice((signal.SIGKILL, signal.SIGINT))
            delay = dice.uniform(0, 2 / KILLS)
            threading.Timer(delay, process.send_signal, [by]).start()
        try:
            state = post(port, token, "/question")
            while "question" in state:
                answer = {"question": state["question"], "ranks": [2, 1, 4, 3]}
                state = post(port, token, "/answer", answer)
                confirmed += 1
            post(port, token, "/finish", {})
        except (OSError, http.client.HTTPException):
            pass
        process.communicate(timeout=60)
    assert process.returncode == 0
    records = read_jsonl(tmp_path / "r.jsonl")
    questions = {(record["id"], record.get("repeat")) for record in records}
    assert confirmed <= len(records) == len(questions) == 2200


def test_a_chat_is_killed_at_any_moment_and_goes_on(tmp_path, stages):
    flags = ["--chat", "--policies", str(stages / "sft"), "--max_tokens", "8"]
    chosen = {}  # id -> the response, of each choice that was confirmed
    ports = set()
    dice = random.Random(0)
    for life in range(KILLS):
        process, port, token = start_label(tmp_path, *flags)
        ports.add((port, token))
        if life < KILLS - 1:
            by = dice.choice((signal.SIGKILL, signal.SIGINT))
            delay = dice.uniform(0, 2 / KILLS)
            threading.Timer(delay, process.send_signal, [by]).start()
        try:
            state = post(port, token, "/conversation")
            said = [turn["content"] for turn in state["turns"]]
            assert set(chosen.values()) <= set(said)
            while len(chosen) < 40:
                state = post(port, token, "/say", {"text": f"Number {len(chosen)}?"})
                picked = len(chosen) % 2
                post(port, token, "/choose", {"id": state["id"], "picked": picked})
                chosen[state["id"]] = state["answers"][picked]
            post(port, token, "/finish", {})
        except (OSError, http.client.HTTPException, json.JSONDecodeError, IndexError, KeyError):
            pass
        process.communicate(timeout=60)
    assert process.returncode == 0 and len(chosen) == 40 and len(ports) == 1
    records = read_jsonl(tmp_path / "r.jsonl")
    assert len(records) == len({record["id"] for record in records}) <= 39 + KILLS
    for record in records:
        assert (
            chosen.get(record["id"], record["responses"][record["picked"]])
            == (record["responses"][record["picked"]])
        )


def test_ctrl_c_in_the_middle_of_an_answer(tmp_path, tokenizer):
    model = tiny(tokenizer, n_positions=4096)
    with torch.no_grad():  # it never ends by itself
        eos = model.wte.weight[tokenizer.eos_id]
        model.ln_f.bias -= 50 * eos / eos.square().sum()
    model.save_pretrained(tmp_path / "slow")
    flags = ["--chat", "--policies", str(tmp_path / "slow"), "--max_tokens", "4000"]
    flags += ["--temperature", "1"]
    process, port, token = start_label(tmp_path, *flags)
    link = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    link.request("POST", "/say", json.dumps({"text": "hi"}), {"X-Token": token})
    reply = link.getresponse()
    assert json.loads(reply.readline()) == {"answers": 2}
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert b'"turns"' not in reply.read()  # it did not come to its end


def test_ctrl_c_and_finish_for_now(tmp_path):
    write_candidates(tmp_path / "c.jsonl", candidates(3))
    process, port, token = start_label(tmp_path)
    question = post(port, token, "/question")["question"]
    post(port, token, "/answer", {"question": question, "ranks": [1, 2, 3, 4]})
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1] and process.returncode == 130
    process, port, token = start_label(tmp_path)
    assert post(port, token, "/question")["done"] == 1
    assert post(port, token, "/finish", {})["left"]
    assert "0 rankings added" in process.communicate(timeout=60)[0] and process.returncode == 0


class Wire:
    """A connection whose other side has sent all it will send, and listens."""

    def __init__(self, request: bytes):
        self.request, self.reply = request, b""

    def makefile(self, mode, size=-1):
        return io.BytesIO(self.request)

    def sendall(self, data):
        self.reply += data

    def settimeout(self, seconds):
        pass


def random_request(running: Server, rng: random.Random) -> bytes:
    host = f"Host: 127.0.0.1:{running.server_address[1]}\r\nX-Token: {running.token}\r\n"
    question = running.app.question().get("question", 0)
    answer = {
        "question": rng.choice((question, question, 7, [], "0")),
        "ranks": rng.sample((1, 2, 3, 4), 4),
        "harmful": rng.choice(([], [1], [9])),
        "skip": rng.random() < 0.2,
    }
    body = json.dumps(answer)
    requests = (
        f"GET /question HTTP/1.1\r\n{host}\r\n",
        f"GET /?token={running.token} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
        f"POST /answer HTTP/1.1\r\n{host}Content-Length: {len(body)}\r\n\r\n{body}",
        f"POST /finish HTTP/1.1\r\n{host}Origin: http://127.0.0.1\r\nContent-Length: 0\r\n\r\n",
    )
    return rng.choice(requests).encode()


def damage(request: bytes, rng: random.Random) -> bytes:
    """One byte changed, a piece put in, a piece cut out, or the end cut off."""
    at = rng.randrange(len(request) + 1)
    pieces = (b"\r\n", b"\0", b"\xff", b"{", b"[" * 3000, b":", b"%", b"9" * 40, b"//[", request)
    cases = (
        request[:at] + bytes([rng.randrange(256)]) + request[at + 1 :],
        request[:at] + rng.choice(pieces) + request[at:],
        request[:at] + request[at + rng.randrange(1, 30) :],
        request[:at],
    )
    return rng.choice(cases)


def test_fuzz_of_requests(tmp_path):
    """A damaged one gets an answer or a refusal, and never makes a record that nobody gave."""
    rng, statuses = random.Random(3), Counter()
    questions = 30 + FUZZ // 500
    sitting = Sitting(candidates(questions), tmp_path / "r.jsonl", "me")
    with Server(sitting, Address()) as running:
        for _ in range(max(3000, FUZZ)):
            request = random_request(running, rng)
            for _ in range(rng.choice((0, 1, 1, 2, 8))):
                request = damage(request, rng)
            wire = Wire(request)
            server.Handler(wire, ("127.0.0.1", 1), running)
            has_status = wire.reply.startswith(b"HTTP/1.")
            statuses[wire.reply[9:12] if has_status else wire.reply[:1]] += 1
    known = {b"200", b"400", b"403", b"404", b"413", b"414", b"431", b"501", b"505"}
    known |= {b"", b"{", b"<"}  # HTTP/0.9 has no status
    assert not statuses.keys() - known
    assert {b"200", b"400", b"403", b"413"} <= statuses.keys()
    records = read_jsonl(tmp_path / "r.jsonl")
    answered = {(record["id"], record.get("repeat")) for record in records}
    assert 0 < len(records) == len(answered) <= 1.1 * questions
    for record in records:
        ranks = sorted(record["ranks"])
        assert ranks == [1, 2, 3, 4] or (record["skipped"] and set(ranks) == {1})
