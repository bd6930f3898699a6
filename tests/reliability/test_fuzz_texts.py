"""Damaged data and tokenizer files: a result or one sentence, never a traceback.

MINIRLHF_FUZZ says how many inputs each test makes.
"""

import json
import os
import random

from minirlhf import UserError
from minirlhf.data import Ranking, read_demonstrations, read_prompts, read_rankings
from minirlhf.tokenizer import Tokenizer

COUNT = int(os.environ.get("MINIRLHF_FUZZ", "1000"))
PIECES = [
    *(character.encode() for character in '{}[]",:\\\n\r\0'),
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"\xff",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"NaN",
    b"9" * 400,
    b"\\ud800",
    b"\\udc00\\ud800",
    b"[" * 200,
    b'"prompt"',
    b'"chosen"',
    b'"messages"',
    b'"role": "user"',
    b'"content"',
    b'"text"',
    b'"responses"',
    b'"ranks"',
    b'"preferences"',
    b"\\n\\nHuman:",
    b"\\n\\nAssistant:",
    b'"instruction": "a", "output": "b"',
    b'"summaries": [{"text": "a"}, {"text": "b"}], "info": {"post": ""}, "choice": 1',
]

TEXT = "The fox\n\tcan't é, 東京 🦊 " + "".join(map(chr, range(0xA0, 0x250)))


def mutate(rng: random.Random, content: bytes, pieces: list[bytes]) -> bytes:
    """Up to three small changes."""
    changed = bytearray(content)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(changed) + 1)
        change = rng.choice(["insert", "delete", "byte", "bit", "repeat", "replace"])
        if change == "insert":
            changed[at:at] = rng.choice(pieces)
        elif change == "delete":
            del changed[at : at + rng.randrange(1, 9)]
        elif change == "repeat":
            changed[at:at] = changed[at : at + rng.randrange(1, 30)]
        elif change == "replace":
            changed[at : at + rng.randrange(12)] = rng.choice(pieces)
        elif at < len(changed) and change == "byte":
            changed[at] = rng.randrange(256)
        elif at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def conversations(record) -> list:
    if isinstance(record, Ranking):
        return [(*record.prompt.turns, ("assistant", text)) for text in record.responses]
    if isinstance(record, tuple):
        return [record]
    return [record.turns]


def test_the_reader_of_records(tmp_path, tokenizer):
    rng = random.Random(1)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    hh = "\n\nHuman: a\n\nAssistant: "
    records = [
        {"prompt": "a", "completion": "b"},
        {"text": "a"},
        {"messages": turns},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": hh + "b", "rejected": hh + "c"},
        {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]},
        {"instruction": "a", "input": "b", "output": "c"},
        {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"system": "s", "prompt": "a", "responses": ["b", "c"], "scores": [1, 2]},
        {"prompt": "a", "chosen": turns, "rejected": [turns[0], {"role": "bot", "content": "c"}]},
    ]
    seeds = [json.dumps(record).encode() for record in records]
    path = tmp_path / "x.jsonl"
    used = 0
    for i in range(COUNT):
        read = (read_demonstrations, read_rankings, read_prompts)[i % 3]
        second = rng.choice(seeds) * rng.randrange(2)
        path.write_bytes(mutate(rng, rng.choice(seeds), PIECES) + b"\n" + second)
        try:
            for record in read(str(path), template=rng.choice(["chat", "raw"])):
                for conversation in conversations(record):
                    tokenizer.render(conversation)
                    "".join(text for _, text in conversation).encode()  # it can be written
                used += 1
        except UserError as error:
            assert "x.jsonl" in str(error) and "\n" not in str(error)
    assert used > COUNT // 100


def test_tokenizer_files(tmp_path, tokenizer):
    rng = random.Random(2)
    tokenizer.save_pretrained(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    cutting = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    one_file = {
        "model": {"vocab": tokenizer.vocab, "merges": [" ".join(m) for m in tokenizer.merges]},
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": cutting,
    }
    files["tokenizer.json"] = json.dumps(one_file).encode()
    names = list(files)
    used = 0
    for i in range(COUNT):
        broken = names[i % 3]
        kept = ["tokenizer.json"] if broken == "tokenizer.json" else ["vocab.json", "merges.txt"]
        for name in names:
            (tmp_path / name).unlink(missing_ok=True)
        for name in kept:
            content = files[name]
            if name == broken:
                content = mutate(rng, content, [*PIECES, b" ", b"#version", "Ġ".encode()])
            (tmp_path / name).write_bytes(content)
        try:
            read = Tokenizer.from_pretrained(tmp_path)
            assert read.decode(read.encode(TEXT)) == TEXT
            used += 1
        except UserError as error:
            assert str(tmp_path) in str(error)
    assert used
