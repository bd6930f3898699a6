"""Data as people have it: the same conversation, whatever the fields and the file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random

import pytest

from minirlhf import UserError, readers
from minirlhf.data import mixed, read_demonstrations, read_labelled, read_prompts, read_rankings

ASK, SAY = ("user", "What is rust?"), ("assistant", "Iron and air.")
SYSTEM = ("system", "Be brief.")
BETTER, WORSE = "Iron and air.", "Paint."


def save(path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


DEMONSTRATIONS = [  # a record, and the turns that it is
    ({"instruction": "What is rust?", "output": "Iron and air."}, (ASK, SAY)),
    ({"instruction": "What is rust?", "input": "", "output": "Iron and air."}, (ASK, SAY)),
    (
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann."},
        (("user", "Who?\n\nAnn came."), ("assistant", "Ann.")),
    ),
    ({"question": "What is rust?", "answer": "Iron and air."}, (ASK, SAY)),
    ({"question": "What is rust?", "response": "Iron and air."}, (ASK, SAY)),
    (
        {"system": "Be brief.", "prompt": "What is rust?", "completion": "Iron and air."},
        (SYSTEM, ASK, SAY),
    ),
    ({"system": "", "question": "What is rust?", "answer": "Iron and air."}, (ASK, SAY)),
    (
        {
            "conversations": [
                {"from": "human", "value": "What is rust?"},
                {"from": "gpt", "value": "Iron and air."},
            ]
        },
        (ASK, SAY),
    ),
    (
        {
            "system": "Be kind.",
            "conversation": [
                {"from": "system", "value": "Be brief."},
                {"from": "user", "value": "What is rust?"},
                {"from": "chatgpt", "value": "Iron and air."},
            ],
        },
        (("system", "Be kind.\n\nBe brief."), ASK, SAY),
    ),
    (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "name": "ann", "content": [{"type": "text", "text": "What is "}]},
            ]
        },
        None,
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "What is "}, {"text": "rust?"}],
                },
                {"role": "assistant", "content": "Iron and air."},
            ]
        },
        (ASK, SAY),
    ),
    (
        {
            "prompt": "What is rust?",
            "chosen": [
                {"role": "user", "content": "What is rust?"},
                {"role": "assistant", "content": "Iron and air."},
            ],
            "rejected": [
                {"role": "user", "content": "What is rust?"},
                {"role": "assistant", "content": "Paint."},
            ],
        },
        (ASK, SAY),
    ),
]


@pytest.mark.parametrize("record, turns", DEMONSTRATIONS)
def test_demonstrations(record, turns, tmp_path):
    path = save(tmp_path / "x.jsonl", record, {"messages": [role_of(ASK), role_of(SAY)]})
    read = read_demonstrations(path)
    assert read == ([turns] if turns else []) + [(ASK, SAY)]


def role_of(turn) -> dict:
    return {"role": turn[0], "content": turn[1]}


def sides(*turns) -> dict:
    """A pair whose sides share some turns, then answer."""
    shared = [role_of(turn) for turn in turns]
    return {
        "chosen": [*shared, {"role": "assistant", "content": BETTER}],
        "rejected": [*shared, {"role": "assistant", "content": WORSE}],
    }


OPEN = "\n\nHuman: What is rust?\n\nAssistant:"
MORE = (("assistant", "Which?"), ("user", "On cars."))
PAIRS = [
    ({"prompt": "What is rust?", "chosen": BETTER, "rejected": WORSE}, (ASK,)),
    ({"instruction": "What is rust?", "chosen": BETTER, "rejected": WORSE}, (ASK,)),
    ({"system": "Be brief.", "question": "What is rust?", "chosen": BETTER, "rejected": WORSE}, 2),
    (sides(ASK), (ASK,)),
    ({"prompt": "What is rust?"} | sides(ASK), (ASK,)),
    ({"prompt": "What is rust?"} | sides(), (ASK,)),
    ({"prompt": [role_of(ASK)]} | sides(ASK), (ASK,)),
    ({"prompt": [role_of(ASK)]} | sides(*MORE), (ASK, *MORE)),
    ({"prompt": "What is rust?"} | sides(ASK, *MORE), (ASK, *MORE)),
    ({"prompt": OPEN, "chosen": f"{OPEN} {BETTER}", "rejected": f"{OPEN} {WORSE}"}, (ASK,)),
    ({"chosen": f"{OPEN} {BETTER}", "rejected": f"{OPEN} {WORSE}"}, (ASK,)),
    ({"prompt": "What is rust?", "responses": [WORSE, BETTER], "scores": [1, 5.5]}, (ASK,)),
    ({"prompt": "What is rust?", "responses": [WORSE, BETTER], "ranks": [2.0, 1.0]}, (ASK,)),
]


@pytest.mark.parametrize("record, prompt", PAIRS)
def test_pairs(record, prompt, tmp_path):
    (ranking,) = read_rankings(save(tmp_path / "x.jsonl", record))
    assert ranking.prompt.turns == ((SYSTEM, ASK) if prompt == 2 else prompt)
    best = ranking.ranks.index(min(ranking.ranks))
    assert (ranking.responses[best], ranking.responses[1 - best]) == (BETTER, WORSE)


def test_random_conversations_are_the_same_in_every_format(tmp_path):
    dice = random.Random(0)
    words = ["rust", " ", "\n\nHuman:", "\n\nAssistant:", "\n", "ä", '"', "{", "\u2028", ","]
    for number in range(50):
        turns = [("user", text_of(dice, words)), ("assistant", text_of(dice, words))]
        turns = turns * dice.randrange(1, 4)
        if dice.random() < 0.5:
            turns = [("system", text_of(dice, words)), *turns]
        messages = [role_of(turn) for turn in turns]
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        speech = [{"from": names[role], "value": text} for role, text in turns]
        parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        records = [
            {"messages": messages},
            {"messages": parts},
            {"conversations": speech},
            {"prompt": messages[:-1], "completion": messages[-1:]},
            {"prompt": messages[:-1], "completion": messages},
        ]
        read = read_demonstrations(save(tmp_path / f"{number}.jsonl", *records))
        assert read == [tuple(turns)] * len(records)


def text_of(dice, words) -> str:
    return "x" + "".join(dice.choices(words, k=dice.randrange(5)))


def test_fields_that_nothing_reads_are_named_once(tmp_path, capsys):
    rows = [{"prompt": "a", "completion": "b", "source": "web", "quality": i} for i in range(3)]
    read_demonstrations(save(tmp_path / "x.jsonl", *rows))
    assert capsys.readouterr().out == "data: fields not used: source, quality\n"
    (prompt,) = read_prompts(save(tmp_path / "x.jsonl", {"question": "a", "answer": "7"}))
    assert prompt.columns["answer"] == "7"  # a reward's
    read_demonstrations(save(tmp_path / "x.jsonl", {"question": "a", "answer": "7"}))
    assert "not used" not in capsys.readouterr().out


def test_tools_and_pictures_are_skipped_with_the_reason(tmp_path, capsys):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    good = [role_of(ASK), role_of(SAY)]
    records = [
        {"messages": [role_of(ASK), call, {"role": "tool", "content": "7"}, role_of(SAY)]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "observation", "value": "y"}]},
        {"messages": [picture, role_of(SAY)]},
        {"messages": [role_of(ASK), {"role": "assistant", "content": None}]},
        {"messages": [*good, role_of(SYSTEM), *good]},
        {"messages": good},
    ]
    assert read_demonstrations(save(tmp_path / "x.jsonl", *records)) == [(ASK, SAY)]
    out = capsys.readouterr().out
    for words in ("5 of 6 records skipped", "2: 'messages': tool calls", "image_url", "content"):
        assert words in out


def test_labels(tmp_path):
    for good, bad in ((True, False), (1, 0), ("true", "False"), ("1", "0"), (1.0, 0.0)):
        rows = [{"prompt": "p", "completion": "c", "label": label} for label in (good, bad)]
        assert [label for *_, label in read_labelled(save(tmp_path / "x.jsonl", *rows))] == [1, 0]


# ---- files


ROWS = [{"prompt": f"question {i}?", "completion": 'a "word",\nand more'} for i in range(3)]
TURNS = [(("user", row["prompt"]), ("assistant", row["completion"])) for row in ROWS]


def table(delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FILES = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "lines.txt": LINES,
    "mark.jsonl": "\ufeff" + LINES,
    "list.json": json.dumps(ROWS),
    "list.jsonl": json.dumps(ROWS, indent=1),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}),
    "wrapped_over_lines.json": json.dumps({"data": ROWS}, indent=1),
    "table.csv": table(","),
    "semicolons.csv": table(";"),
    "table.tsv": table("\t"),
    "table.txt": table(","),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
def test_files_of_every_kind(name, ending, tmp_path):
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / (name + ending)
    path.write_bytes(pack[ending](FILES[name].encode()))
    assert read_demonstrations(str(path)) == TURNS


def test_folders_patterns_and_standard_input(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.json"):
        (tmp_path / name).write_text(LINES)
    (tmp_path / "README.md").write_text("not data")
    assert read_demonstrations(str(tmp_path)) == TURNS * 2
    assert read_demonstrations(str(tmp_path / "*.json*")) == TURNS * 2
    standard = io.TextIOWrapper(io.BytesIO(LINES.encode()))
    monkeypatch.setattr("sys.stdin", standard)
    readers.standard_input.cache_clear()
    assert read_demonstrations("-") == TURNS
    assert read_demonstrations("-") == TURNS  # it can be read again


def test_a_list_in_a_table(tmp_path):
    file = tmp_path / "x.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["messages"])
        writer.writerow([json.dumps([role_of(ASK), role_of(SAY)])])
    assert read_demonstrations(str(file)) == [(ASK, SAY)]


def test_prose_that_looks_a_little_like_a_table_is_prose(tmp_path):
    for text in ("Dear Ann, the text, as promised.\nYours", "prompt\nness is a virtue", "a,b\n1,2"):
        (tmp_path / "x.txt").write_text(text)
        ((_, (role, read)),) = read_demonstrations(str(tmp_path / "x.txt"))
        assert (role, read) == ("assistant", text)


REFUSED = [
    ("x.jsonl.zst", b"(\xb5/\xfd", ["zstd -d"]),
    ("x.arrow", b"ARROW1", ["datasets", "to_json"]),
    ("x.csv", b"prompt,completion\na,b,c\n", ["line 2", "3 cells", "2 column"]),
    ("x.csv", b'prompt,completion\na,"b\n', ["line", "quotes"]),
    ("x.csv", b"prompt,prompt\na,b\n", ["line 1", "rename"]),
    ("x.csv", b"prompt,completion\n", ["no record"]),
    ("x.jsonl", b"\xff\xfe{\x00", ["UTF-16", "line 1"]),
    ("x.jsonl", LINES.encode() + "é".encode("latin1"), ["line 4", "UTF-8"]),
    ("x.json", b'{"a": [1,\n2', ["JSON"]),
    ("x.jsonl", b'{"prompt": "p", "responses": ["a", "b"], "scores": ["x", 1]}', ["scores", "x"]),
]


@pytest.mark.parametrize("name, content, words", REFUSED)
def test_refusals_say_what_to_do(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_demonstrations(str(tmp_path / name))
    for word in [name, *words]:
        assert word in str(caught.value)


def test_names_that_are_no_files(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").touch()
    for name, word in [
        (str(tmp_path / "saved"), "load_from_disk"),
        ("some-org/some-data", "load_dataset('some-org/some-data'"),
        (str(tmp_path / "*.nothing"), "no file"),
        (str(tmp_path / "none.jsonl"), "No such file"),
    ]:
        with pytest.raises(UserError, match="--data") as caught:
            read_demonstrations(name)
        assert word in str(caught.value)


# ---- shares of several files


def test_files_in_shares(tmp_path):
    one = save(tmp_path / "one.jsonl", *[{"prompt": f"one {i}"} for i in range(10)])
    two = save(tmp_path / "two.jsonl", *[{"prompt": f"two {i}"} for i in range(30)])

    def sources(weights: str, seed: int = 0) -> list[str]:
        prompts = mixed(read_prompts, f"{one},{two}", weights, seed)
        return [prompt.source for prompt in prompts]

    assert sources("") == [f"one {i}" for i in range(10)] + [f"two {i}" for i in range(30)]
    even = sources("1,1")
    assert len(even) == 40 and sources("1,1") == even != sources("1,1", seed=1)
    assert all(even.count(f"one {i}") == 2 for i in range(10))  # 20 of 10 records
    assert len({source for source in even if source.startswith("two")}) == 20
    assert sum(source.startswith("one") for source in sources("0.1,0.9")) == 4
    for weights in ("1", "1,x", "1,0", "1,-1", "1,nan", "1,2,3"):
        with pytest.raises(UserError, match="--data_weights"):
            sources(weights)
