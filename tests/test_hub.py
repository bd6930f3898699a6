"""Models and data by name, from a local server that answers as the Hugging Face hub does."""

import gzip
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import tiny

from minirlhf import UserError, hub

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "1" * 40


class Hub(http.server.ThreadingHTTPServer):
    """repositories: name -> {file: content}; gated: the names of those that need a token."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.gated, self.fetched, self.tokens = {}, (), [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0].removeprefix("/api").lstrip("/").removeprefix("models/")
        parts = path.removeprefix("datasets/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        files = self.server.repositories.get(name)
        self.server.tokens.add(self.headers.get("Authorization"))
        if name == "broken/model":
            return self.answer(200, b"<html>", {})
        if files is None:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if name in self.server.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if rest[0] == "resolve":
            content = files["/".join(rest[2:])]
            if self.command == "GET":
                self.server.fetched.append("/".join(rest[2:]))
            tag = hashlib.sha256(content).hexdigest()
            return self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})
        listed = [{"type": "file", "path": f, "size": len(c), "oid": "0"} for f, c in files.items()]
        siblings = [{"rfilename": file} for file in files]
        about = {"id": name, "sha": COMMIT, "siblings": siblings}
        return self.answer(200, json.dumps(listed if rest[0] == "tree" else about).encode(), {})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict) -> None:
        self.send_response(status)
        headers |= {"Content-Length": str(len(content)), "Content-Type": "application/json"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub, an empty cache, and a working folder with nothing in it."""
    server = Hub()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_by_name_is_fetched_once(server, tokenizer, tmp_path):
    tiny(tokenizer).save_pretrained(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    unwanted = {"pytorch_model.bin": b"x", "onnx/config.json": b"{}", "README.md": b"x"}
    server.repositories["openai-community/gpt2"] = files | unwanted
    server.repositories["some/one.else"] = files
    for name in ("gpt2", "gpt2", "some/one.else"):
        folder = hub.model_folder(name)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sorted(server.fetched) == sorted([*files, *files])


def test_a_folder_is_itself(server, tmp_path):
    Path("gpt2").mkdir()
    Path("out").mkdir()
    assert hub.model_folder("gpt2") == Path("gpt2") and hub.model_folder(tmp_path) == tmp_path
    for name in ("out/sft", "./models", "nothing", str(tmp_path / "no"), "a/b/c"):
        with pytest.raises(UserError, match="does not exist"):
            hub.model_folder(name)
    with pytest.raises(UserError, match=r"`python train_rm.py --out out/round1/rm` makes it"):
        hub.model_folder("out/round1/rm")
    assert not server.tokens  # nobody was asked


def test_missing_and_gated_repositories(server, monkeypatch):
    server.repositories["big/model"], server.gated = {}, ("big/model",)
    cases = (("big/model", "HF_TOKEN"), ("big/nothing", "neither"), ("broken/model", "fetched"))
    for name, part in cases:
        with pytest.raises(UserError, match=part) as error:
            hub.model_folder(name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_data_sets_by_name(server, monkeypatch, tmp_path):
    content = gzip.compress(b'{"chosen": "x", "rejected": "y"}\n')
    server.repositories["Anthropic/hh-rlhf"] = {
        f"{part}/{split}.jsonl.gz": content + split.encode()
        for part in ("helpful-base", "harmless-base")
        for split in ("train", "test")
    }
    (file,) = hub.data_files("hh-harmless-base", "test")
    assert file.endswith("test.jsonl.gz") and Path(file).read_bytes() == content + b"test"
    assert server.fetched == ["harmless-base/test.jsonl.gz"]

    (tmp_path / "a.txt").write_text("To be")
    url = (tmp_path / "a.txt").as_uri()
    monkeypatch.setitem(hub.URL_DATA, "shakespeare", ([url], ".txt"))
    for _ in range(2):
        (file,) = hub.data_files("shakespeare", "train")
        assert Path(file).read_text() == "To be" and file.startswith(str(tmp_path / "home"))
        (tmp_path / "a.txt").unlink(missing_ok=True)
    monkeypatch.setitem(hub.URL_DATA, "alpaca", ([url], ".json"))
    with pytest.raises(UserError, match=r"a\.json"):
        hub.data_files("alpaca", "train")


def test_without_a_network_it_is_one_sentence(tmp_path):
    code = "from minirlhf import hub, UserError\ntry: hub.{}\nexcept UserError as e: print(e)"
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": ""}
    for call, part in (
        ("model_folder('gpt2')", "openai-community/gpt2"),
        ("data_files('hh-helpful-base', 'train')", "Anthropic/hh-rlhf"),
    ):
        for offline in ("0", "1"):
            done = subprocess.run(
                [sys.executable, "-c", code.format(call)],
                env=env | {"HF_HUB_OFFLINE": offline},
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert part in done.stdout and done.stdout.count("\n") == 1, done.stdout + done.stderr
            assert "network" in done.stdout or "offline" in done.stdout
