"""Nothing that was written before is lost, whatever happens while something new is written."""

import errno
import io
import json
import math
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
import sample
from minirlhf import UserError, files
from minirlhf.checkpoint import write_tensors

ROOT = Path(__file__).parents[1]
resource = pytest.importorskip("resource")  # not on Windows


@contextmanager
def small_disk(size: int):
    """The kernel lets no file grow beyond that many bytes, as a full disk would not.

    Only within the test: pytest's own output may go to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_result_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    """The models, which are not there, are not looked for."""
    taken = tmp_path / "file"
    taken.write_text("mine")
    for wrong in (tmp_path, taken / "below.json"):
        with pytest.raises(UserError, match="--out"):
            evaluate.main(evaluate.Settings(policies="nowhere", out=str(wrong)))
        settings = sample.Settings(init="nowhere", data="toyworld", candidates_out=str(wrong))
        with pytest.raises(UserError, match="--candidates_out"):
            sample.main(settings)
    assert taken.read_text() == "mine"


def test_json_is_what_every_reader_accepts(tmp_path):
    value = {
        "nan": math.nan,
        "list": [math.inf, (1.5, -math.inf)],
        "text": "naïve 日本",
        "half": "\ud83d",
    }
    text = files.to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "list": [None, [1.5, None]],
        "text": "naïve 日本",
        "half": "\ud83d",
    }
    assert "日本" in text and "\\ud83d" in text
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json")["half"] == "\ud83d"
    assert files.read_json(tmp_path / "none.json") == {}


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")
    for line in ('{"a":', "[1]", "null", '"\\ud800', "[" * 9999):
        (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{line}\n{{"a": 3}}\n')
        with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
            files.read_jsonl(tmp_path / "a.jsonl")


def test_lines_are_added_and_a_torn_one_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    assert files.read_jsonl(path) == []
    files.append_jsonl(path, [{"a": 1}, {"a": "\u2028é"}], sync=True)
    files.append_jsonl(path, [])
    with path.open("ab") as file:
        file.write(files.to_json({"a": "é"}).encode()[:-3])  # in the middle of a letter
    assert files.read_jsonl(path) == [{"a": 1}, {"a": "\u2028é"}]
    files.write_jsonl(path, [{"a": 1}])
    path.write_bytes(path.read_bytes().rstrip())  # a last line without its end, as editors leave it
    files.append_jsonl(path, [{"a": 2}])
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path, log = tmp_path / "a.bin", tmp_path / "a.jsonl"
    files.write_atomically(path, b"old")
    files.append_jsonl(log, [{"a": 1}])
    with small_disk(30), pytest.raises(OSError) as error:
        files.write_atomically(path, b"new" * 100)
    assert error.value.filename == str(path)
    with small_disk(30), pytest.raises(OSError):
        files.append_jsonl(log, [{"a": 2}, {"b": "x" * 100}])
    assert path.read_bytes() == b"old" and log.read_bytes() == b'{"a": 1}\n'
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.jsonl"]


def test_a_link_is_followed_and_a_mode_is_kept(tmp_path):
    path, link = tmp_path / "there" / "a.bin", tmp_path / "link"
    path.parent.mkdir()
    link.symlink_to(Path("there", "a.bin"))
    for content in (b"new", b"newer"):  # first the link leads to nothing
        files.write_atomically(link, content)
        assert link.is_symlink() and path.read_bytes() == content
    path.chmod(0o600)
    files.write_atomically(link, b"newest")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_tensors(path, {"x": torch.zeros(1)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["a.bin"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    pipe, loop, device = tmp_path / "pipe", tmp_path / "loop", tmp_path / "device"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    device.symlink_to(os.devnull)
    for path in (pipe, loop, device, tmp_path):
        before = os.lstat(path)
        for write in (files.write_atomically, files.check_target):
            arguments = (path, b"") if write is files.write_atomically else ("--out", path)
            with pytest.raises(UserError, match=f"{path.name} is "):
                write(*arguments)
        assert os.lstat(path).st_mode == before.st_mode
    assert len(os.listdir(tmp_path)) == 3
    files.check_target("--out", tmp_path / "new" / "file.json")


def test_two_processes_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a.bin"
    write = f"from minirlhf.files import write_atomically as w; w({str(path)!r}, b'other')"
    with files.atomically(path) as temporary:
        temporary.write_bytes(b"ours")
        subprocess.run([sys.executable, "-c", write], cwd=ROOT, check=True)
        assert path.read_bytes() == b"other" and temporary.read_bytes() == b"ours"
    assert path.read_bytes() == b"ours" and os.listdir(tmp_path) == ["a.bin"]


def test_a_failing_append_takes_back_its_own_bytes_alone(tmp_path):
    class FullDisk(io.FileIO):
        """Takes five bytes. Before it says that it is full, somebody else writes something."""

        def write(self, content: bytes) -> int:
            if content == LINE:
                return super().write(content[:5])
            if meanwhile:
                files.append_jsonl(path, [meanwhile])
            raise OSError(errno.ENOSPC, "No space left on device")

    LINE = b'{"mine": 1}\n'
    path = tmp_path / "a.jsonl"
    for meanwhile in ({}, {"theirs": 2}):
        path.write_bytes(b'{"first": 0}\n')
        with pytest.raises(OSError), FullDisk(path, "a+b") as file:
            files._write_all(file, LINE)
        content = path.read_bytes()
        assert content == (
            b'{"first": 0}\n{"min\n{"theirs": 2}\n' if meanwhile else b'{"first": 0}\n'
        )


HOLDER = """
import sys, time
from minirlhf import files
try:
    files.lock(sys.argv[1], "the file")
except Exception as error:
    sys.exit(str(error))
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_lock_is_its_processes_and_ends_with_it(tmp_path):
    path = tmp_path / "x.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"the file is being written by process {other.pid}:"):
            files.lock(path, "the file")
        other.kill()
    assert path.exists()  # a stale lock is taken over
    files.lock(path, "the file")
    files.lock(path, "the file")
    assert path.read_text() == str(os.getpid())
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert f"process {os.getpid()}:" in other.communicate()[1].decode()
    files.unlock(path)
    assert not path.exists()
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.communicate(b"\n")[0] == b"locked\n"
    assert not path.exists()  # it went with its process


def test_a_lock_is_held_on_a_full_disk_and_where_there_are_no_locks(tmp_path, monkeypatch):
    with small_disk(0):
        files.lock(tmp_path / "x.lock", "the file")
    assert (tmp_path / "x.lock").read_bytes() == b""
    files.unlock(tmp_path / "x.lock")

    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    files.lock(tmp_path / "y.lock", "the file")
    files.unlock(tmp_path / "y.lock")


def test_a_lock_without_fcntl(tmp_path, monkeypatch):
    """As on Windows, whose locking is that of bytes and can be told to fail here."""
    taken = []

    def locking(handle: int, mode: int, count: int) -> None:
        if taken:
            raise PermissionError(errno.EACCES, "Permission denied")
        taken.append(os.lseek(handle, 0, os.SEEK_CUR))

    monkeypatch.setattr(files, "fcntl", None)
    windows = SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setattr(files, "msvcrt", windows, raising=False)
    files.lock(tmp_path / "x.lock", "the file")
    assert taken[0] > 20 and (tmp_path / "x.lock").read_text() == str(os.getpid())
    monkeypatch.setattr(files, "_locks", {})  # another process has its own
    with pytest.raises(UserError, match=f"process {os.getpid()}:"):
        files.lock(tmp_path / "x.lock", "the file")
