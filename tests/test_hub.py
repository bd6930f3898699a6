"""Downloads from a server on this machine that behaves as servers do: redirects, drops, lies, and is not there."""
import gzip
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import tiny

from minirlhf import UserError, hub
from minirlhf.data import read_demonstrations, read_prompts, read_rankings
from minirlhf.model import GPT

ROOT = Path(__file__).parents[1]


class Server(http.server.ThreadingHTTPServer):
    """files: path -> bytes. misbehaviour per path: how many answers break off half-way, a wrong hash, a wrong length, a status."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.drops, self.hashes, self.status, self.requests, self.ranges = {}, {}, {}, {}, [], True
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, path = self.server, self.path.removeprefix("/cdn")
        server.requests.append((self.path, self.headers.get("Range")))
        status = server.status.get(path, 200 if path in server.files else 404)
        if status != 200:
            self.send_response(status)
            self.end_headers()
            return
        body = server.files[path]
        sha = server.hashes.get(path, hashlib.sha256(body).hexdigest())
        if not self.path.startswith("/cdn"):                    # as the hub does: the hash, then a redirect to where the bytes are
            self.send_response(302)
            if sha:
                self.send_header("X-Linked-ETag", f'"{sha}"')
            self.send_header("Location", f"{server.url}/cdn{path}")
            self.end_headers()
            return
        start = int(self.headers["Range"][6:-1]) if server.ranges and self.headers.get("Range") else 0
        if start and start >= len(body):
            self.send_response(416)
            self.end_headers()
            return
        rest = body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if server.drops.get(path, 0) > 0:
            server.drops[path] -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MINIRLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.time, "sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


BODY = bytes(range(256)) * 3000


def test_a_model_by_name_is_fetched_once(server, tokenizer, tmp_path):
    model = tiny(tokenizer)
    model.save_pretrained(tmp_path / "made")
    for name in hub.MODEL_FILES:
        server.files[f"/openai-community/gpt2/resolve/main/{name}"] = (tmp_path / "made" / name).read_bytes()
    server.drops["/openai-community/gpt2/resolve/main/model.safetensors"] = 2
    again = GPT.from_pretrained("gpt2")
    tokens = torch.randint(tokenizer.vocab_size, (2, 9))
    assert torch.equal(again.hidden(tokens), model.hidden(tokens))
    assert sorted(p.name for p in (tmp_path / "cache" / "gpt2").iterdir()) == sorted(hub.MODEL_FILES)      # and no .partial
    asked = len(server.requests)
    GPT.from_pretrained("gpt2")
    assert len(server.requests) == asked
    (tmp_path / "gpt2-xl").mkdir()                             # a folder of that name is meant, where there is one
    with pytest.raises(UserError, match=r"gpt2-xl.config\.json does not exist"):
        GPT.from_pretrained("gpt2-xl")


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.files["/f"], server.drops["/f"] = BODY, 3
    assert hub.fetch("f", tmp_path / "f", "").read_bytes() == BODY
    starts = [r for path, r in server.requests if path == "/cdn/f"]
    assert starts == [None, *(f"bytes={len(BODY) * (2**i - 1) // 2**i}-" for i in (1, 2, 3))]


def test_a_later_call_goes_on(server, tmp_path, monkeypatch):
    server.files["/f"], server.drops["/f"] = BODY, 1
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    with pytest.raises(UserError, match="breaks off again and again"):
        hub.fetch("f", tmp_path / "f", "put it there")
    assert not (tmp_path / "f").exists() and (tmp_path / "f.partial").stat().st_size == len(BODY) // 2
    hub.fetch("f", tmp_path / "f", "")
    assert (tmp_path / "f").read_bytes() == BODY and server.requests[-1][1] == f"bytes={len(BODY) // 2}-"


def test_without_a_hash_or_without_ranges_it_begins_anew(server, tmp_path):
    for i, (sha, ranges) in enumerate([(None, True), ("", True), (hashlib.sha256(BODY).hexdigest(), False)]):
        server.files[f"/{i}"], server.drops[f"/{i}"], server.hashes[f"/{i}"], server.ranges = BODY, 1, sha, ranges
        assert hub.fetch(str(i), tmp_path / str(i), "").read_bytes() == BODY
    (tmp_path / "3.partial").write_bytes(BODY + b"more")          # more than there is: 416
    server.files["/3"], server.ranges = BODY, True
    assert hub.fetch("3", tmp_path / "3", "").read_bytes() == BODY


def test_what_was_changed_on_the_way_is_not_kept(server, tmp_path):
    server.files["/f"], server.hashes["/f"] = BODY, "0" * 64
    with pytest.raises(UserError, match="SHA-256"):
        hub.fetch("f", tmp_path / "f", "")
    (tmp_path / "g.partial").write_bytes(b"something else" * 99)   # the beginning of another version of the file
    server.files["/g"] = BODY
    with pytest.raises(UserError, match="SHA-256"):
        hub.fetch("g", tmp_path / "g", "")
    assert list(tmp_path.glob("*.partial")) == [] and not (tmp_path / "f").exists()
    assert hub.fetch("g", tmp_path / "g", "").read_bytes() == BODY


def test_missing_refused_and_broken_servers(server, tmp_path):
    server.status["/gone"], server.status["/private"], server.status["/down"] = 404, 401, 503
    for name, said in [("gone", "Not Found"), ("private", "Unauthorized"), ("down", "Unavailable")]:
        with pytest.raises(UserError, match=said) as error:
            hub.fetch(name, tmp_path / "x", "put it at x")
        assert "put it at x" in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be fetched"):
        hub.fetch("gone", tmp_path / "file" / "x", "")


def test_offline_is_one_sentence_that_says_which_files_go_where(tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "MINIRLHF_CACHE": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, ROOT / "sample.py", "--init", "gpt2", "--prompt", "x"], env=env, cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for word in ("127.0.0.1:9/openai-community/gpt2", "refused", *hub.MODEL_FILES, str(tmp_path / "gpt2")):
        assert word in done.stderr


def test_a_proxy_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://no.such.host.invalid")
    monkeypatch.setenv("http_proxy", server.url)
    with pytest.raises(UserError, match="Not Found"):
        hub.fetch("f", tmp_path / "f", "")
    assert server.requests[0][0] == "http://no.such.host.invalid/f"


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_data_sets_by_name(server, monkeypatch):
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    root = "/datasets/Anthropic/hh-rlhf/resolve/main/helpful-base"
    server.files |= {f"{root}/{name}.jsonl.gz": gzip.compress(lines(*[pair] * n)) for name, n in (("train", 1), ("test", 2))}
    assert len(read_rankings("hh-helpful-base")) == 1 and len(read_rankings("hh-helpful-base", split="test")) == 2
    alpaca = [{"instruction": "Add.", "input": "2 3", "output": "5"}, {"instruction": "Greet.", "input": "", "output": "Hi"}]
    server.files["/alpaca.json"] = json.dumps(alpaca).encode()
    server.files["/shakespeare.txt"] = b"To be"
    comparison = {"info": {"post": "p", "title": "t", "subreddit": "s"}, "summaries": [{"text": " one"}, {"text": "two"}]}
    server.files["/tldr.json"] = lines(comparison | {"choice": 1, "split": "train"}, comparison | {"choice": 0, "split": "valid1"})
    for name in ("alpaca", "shakespeare", "tldr"):
        ending = hub.DATA[name][1]
        monkeypatch.setitem(hub.DATA, name, ([f"{server.url}/{name}{'.json' if name == 'tldr' else ending}"], ending))
    assert read_demonstrations("alpaca")[0] == [("\n\nHuman: Add.\n\n2 3\n\nAssistant:", False), (" 5", True)]
    assert read_demonstrations("alpaca")[1][0][0] == "\n\nHuman: Greet.\n\nAssistant:"
    assert read_demonstrations("shakespeare") == [[("To be", True)]]
    (train,), (test,) = read_rankings("tldr", template="raw"), read_rankings("tldr", template="raw", split="test")
    assert train.prompt == test.prompt == "SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: p\n\nTL;DR:"
    assert train.responses == [" two", " one"] and test.responses == [" one", " two"]


def test_parquet(server, monkeypatch, tmp_path):
    if __import__("importlib.util").util.find_spec("pyarrow") is None:
        with pytest.raises(UserError, match="pip install pyarrow"):
            read_prompts(str(tmp_path / "x.parquet"))
        pytest.skip("no reader for .parquet here")
    import pyarrow
    from pyarrow import parquet
    parquet.write_table(pyarrow.table({"text": ["a b c d e f g h i j"], "label": [1]}), tmp_path / "x.parquet")
    server.files["/datasets/stanfordnlp/imdb/resolve/main/plain_text/train-00000-of-00001.parquet"] = \
        (tmp_path / "x.parquet").read_bytes()
    assert read_prompts("imdb", template="raw") == ["a b c d e f g h"]
    assert read_demonstrations("imdb") == [[("a b c d e f g h i j", True)]]
    (tmp_path / "y.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"y\.parquet: not valid Parquet"):
        read_prompts(str(tmp_path / "y.parquet"))
