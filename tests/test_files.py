"""Nothing that was written before is lost, whatever happens while something new is written."""

import json
import math
import os
from contextlib import contextmanager

import pytest

from minirlhf import UserError, files

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
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a":\n{"a": 3}\n')
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
