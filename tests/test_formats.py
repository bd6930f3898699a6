"""Data as people have it: the same conversation, whatever the fields and the file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re

import pytest

from minirlhf import UserError, readers
from minirlhf.chat import PLAIN
from minirlhf.data import mixed, read_demonstrations, read_labelled, read_prompts, read_rankings

Q, SYSTEM_TEXT = "What is rust?", "Be brief."
ASK, SAY = ("user", Q), ("assistant", "Iron and air.")
SYSTEM = ("system", SYSTEM_TEXT)
BETTER, WORSE = "Iron and air.", "Paint."
OPEN = f"\n\nHuman: {Q}\n\nAssistant:"


def save(path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def role_of(turn, **more) -> dict:
    return {"role": turn[0], "content": turn[1]} | more


def said(speaker: str, text: str, **more) -> dict:
    return {"from": speaker, "value": text} | more


TALK = [role_of(ASK), role_of(SAY)]
PARTS = [{"type": "text", "text": "What is "}, {"text": "rust?"}]
UNSURE = ("context", "Paint."), ("user", "Sure?")  # an answer that is not learnt, and more

DEMONSTRATIONS = [  # a record, and the turns that it is
    ({"instruction": Q, "output": BETTER}, (ASK, SAY)),
    ({"instruction": Q, "input": "", "output": BETTER}, (ASK, SAY)),
    ({"instruction": "", "input": Q, "output": BETTER}, (ASK, SAY)),
    ({"input": Q, "output": BETTER}, (ASK, SAY)),
    ({"query": Q, "response": BETTER}, (ASK, SAY)),
    (
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann."},
        (("user", "Who?\n\nAnn came."), ("assistant", "Ann.")),
    ),
    (
        {"instruction": "Answer.", "question": "Who?", "answer": "Ann."},
        (("user", "Answer.\n\nWho?"), ("assistant", "Ann.")),
    ),
    (
        {"instruction": "Who?", "history": [[Q, BETTER]], "output": "Ann."},
        (ASK, SAY, ("user", "Who?"), ("assistant", "Ann.")),
    ),
    ({"question": Q, "answer": BETTER}, (ASK, SAY)),
    ({"question": Q, "response": BETTER}, (ASK, SAY)),
    ({"system": SYSTEM_TEXT, "prompt": Q, "completion": BETTER}, (SYSTEM, ASK, SAY)),
    ({"system_prompt": SYSTEM_TEXT, "question": Q, "response": BETTER}, (SYSTEM, ASK, SAY)),
    ({"system": "", "question": Q, "answer": BETTER}, (ASK, SAY)),
    ({"system": SYSTEM_TEXT, "messages": [role_of(SYSTEM), *TALK]}, (SYSTEM, ASK, SAY)),
    ({"system": Q, "messages": TALK}, (("system", Q), ASK, SAY)),
    ({"prompt": Q, "completion": role_of(SAY)}, (ASK, SAY)),
    ({"prompt": Q, "completion": OPEN + " " + BETTER}, (ASK, SAY)),
    ({"prompt": OPEN.strip(), "completion": BETTER}, (ASK, SAY)),
    ({"prompt": [role_of(ASK)], "completion": TALK}, (ASK, SAY)),
    ({"prompt": Q + "\n", "completion": TALK}, (("user", Q + "\n"), SAY)),
    ({"messages": [role_of(ASK)], "response": BETTER}, (ASK, SAY)),
    ({"messages": TALK, "label": True}, (ASK, SAY)),
    ({"messages": json.dumps(TALK)}, (ASK, SAY)),
    ({"conversations": [said("human", Q), said("gpt", BETTER)]}, (ASK, SAY)),
    ({"conversations": [said("user", Q), said("bot", BETTER)]}, (ASK, SAY)),
    ({"conversations": [said("Human", Q), said("ASSISTANT", BETTER)]}, (ASK, SAY)),
    (
        {
            "system": "Be kind.",
            "conversation": [said("system", SYSTEM_TEXT), said("user", Q), said("chatgpt", BETTER)],
        },
        (("system", "Be kind.\n\nBe brief."), ASK, SAY),
    ),
    ({"messages": [role_of(("developer", SYSTEM_TEXT)), *TALK]}, (SYSTEM, ASK, SAY)),
    ({"messages": [{"role": "user", "content": PARTS}, role_of(SAY)]}, (ASK, SAY)),
    ({"messages": [role_of(ASK, name=None), role_of(SAY, tool_calls=[])]}, (ASK, SAY)),
    (
        {"prompt": Q, "chosen": TALK, "rejected": [role_of(ASK), role_of(("assistant", WORSE))]},
        (ASK, SAY),
    ),
    ({"messages": TALK, "prompt": None, "completion": None, "text": None}, (ASK, SAY)),
    *[
        (
            {
                "messages": [
                    role_of(ASK),
                    role_of(("assistant", WORSE), **mark),
                    role_of(("user", "Sure?")),
                    role_of(SAY),
                ]
            },
            (ASK, *UNSURE, SAY),
        )
        for mark in ({"weight": 0}, {"loss_mask": 0.0}, {"train": False}, {"loss": False})
    ],
    (
        {
            "conversations": [
                said("human", Q),
                said("gpt", WORSE, weight=0),
                said("human", "Sure?"),
                said("gpt", BETTER),
            ]
        },
        (ASK, *UNSURE, SAY),
    ),
    ({"text": "Plain.", "label": 0}, (("text", ""), ("assistant", "Plain."))),
]


@pytest.mark.parametrize("record, turns", DEMONSTRATIONS)
def test_demonstrations(record, turns, tmp_path):
    assert read_demonstrations(save(tmp_path / "x.jsonl", record)) == [turns]


def sides(*turns) -> dict:
    """A pair whose sides share some turns, then answer."""
    shared = [role_of(turn) for turn in turns]
    return {
        "chosen": [*shared, {"role": "assistant", "content": BETTER}],
        "rejected": [*shared, {"role": "assistant", "content": WORSE}],
    }


def texts(before: str) -> dict:
    return {"chosen": before + BETTER, "rejected": before + WORSE}


MORE = (("assistant", "Which?"), ("user", "On cars."))
SPEECH = {"chosen": said("gpt", BETTER), "rejected": said("gpt", WORSE)}
PAIRS = [  # a record, and the turns of its prompt
    ({"prompt": Q} | texts(""), (ASK,)),
    ({"prompt": Q} | texts(" "), (ASK,)),
    ({"prompt": Q} | texts(Q + " "), (ASK,)),
    ({"prompt": Q} | texts(OPEN + " "), (ASK,)),
    ({"prompt": OPEN} | texts(OPEN + " "), (ASK,)),
    ({"prompt": OPEN} | texts(OPEN.strip() + " "), (ASK,)),
    (texts(OPEN + " "), (ASK,)),
    (texts(SYSTEM_TEXT + OPEN + " "), (SYSTEM, ASK)),
    ({"prompt": Q} | texts(SYSTEM_TEXT + OPEN + " "), (SYSTEM, ASK)),
    ({"system": SYSTEM_TEXT} | texts(OPEN + " "), (SYSTEM, ASK)),
    (sides(ASK), (ASK,)),
    ({"prompt": Q} | sides(), (ASK,)),
    ({"prompt": Q} | sides(ASK), (ASK,)),
    ({"prompt": Q} | sides(SYSTEM, ASK), (SYSTEM, ASK)),
    ({"prompt": Q} | sides(ASK, *MORE), (ASK, *MORE)),
    ({"prompt": [role_of(ASK)]} | sides(ASK), (ASK,)),
    ({"prompt": [role_of(ASK)]} | sides(*MORE), (ASK, *MORE)),
    ({"prompt": [role_of(SYSTEM), role_of(ASK)]} | sides(ASK), (SYSTEM, ASK)),
    ({"system": SYSTEM_TEXT, "prompt": Q} | sides(ASK), (SYSTEM, ASK)),
    ({"system": SYSTEM_TEXT} | sides(ASK), (SYSTEM, ASK)),
    ({"system": SYSTEM_TEXT, "question": Q} | texts(""), (SYSTEM, ASK)),
    ({"instruction": Q} | texts(""), (ASK,)),
    ({"messages": [role_of(ASK)]} | texts(""), (ASK,)),
    ({"conversations": [said("human", Q)]} | SPEECH, (ASK,)),
    ({"prompt": Q, "responses": [WORSE, BETTER], "scores": [1, 5.5]}, (ASK,)),
    ({"prompt": Q, "responses": [WORSE, BETTER], "ranks": [2.0, 1.0]}, (ASK,)),
    ({"prompt": Q, "responses": [[*TALK], role_of(("assistant", WORSE))], "ranks": [1, 2]}, (ASK,)),
    ({"prompt": Q, "responses": [OPEN + WORSE, OPEN + BETTER], "ranks": [2, 1]}, (ASK,)),
]


@pytest.mark.parametrize("record, prompt", PAIRS)
def test_pairs(record, prompt, tmp_path):
    path = save(tmp_path / "x.jsonl", record)
    (ranking,) = read_rankings(path)
    assert ranking.prompt.turns == prompt
    best = ranking.ranks.index(min(ranking.ranks))
    assert (ranking.responses[best], ranking.responses[1 - best]) == (BETTER, WORSE)
    assert [(text, good) for _, text, good in read_labelled(path)] == [
        (text, text == BETTER) for text in ranking.responses
    ]
    if "chosen" in record:
        assert read_demonstrations(path) == [(*prompt, SAY)]


SHARE_NO_PROMPT = [
    {"prompt": Q} | sides(("user", "What is paint?")),
    {"prompt": Q, "chosen": TALK, "rejected": [role_of(("user", "Why?")), role_of(SAY)]},
    {"prompt": [role_of(SYSTEM), role_of(ASK)]} | sides(("system", "Be kind."), ASK),
]


@pytest.mark.parametrize("record", SHARE_NO_PROMPT)
def test_sides_with_another_prompt_are_skipped(record, tmp_path, capsys):
    good = {"prompt": Q} | sides()
    (ranking,) = read_rankings(save(tmp_path / "x.jsonl", record, good))
    assert ranking.prompt.turns == (ASK,)
    assert "1 of 2 records skipped; 1: prompt and responses differ" in capsys.readouterr().out


def test_random_conversations_are_the_same_in_every_format(tmp_path):
    dice = random.Random(0)
    words = ["rust", " ", "\n\nHuman:", "\n\nAssistant:", "\n", "ä", '"', "{", "\u2028", ","]
    for number in range(50):
        turns = []
        for _ in range(dice.randrange(1, 4)):
            turns += [("user", text_of(dice, words)), ("assistant", text_of(dice, words))]
        system = text_of(dice, words) if dice.random() < 0.5 else ""
        dialogue = [role_of(turn) for turn in turns]
        if system:
            turns = [("system", system), *turns]
        messages = [role_of(turn) for turn in turns]
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        speech = [said(names[role], text) for role, text in turns]
        parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        other = [*messages[:-1], role_of(("assistant", "Another."))]
        *earlier, (_, request), (_, answer) = [turn for turn in turns if turn[0] != "system"]
        history = [[earlier[i][1], earlier[i + 1][1]] for i in range(0, len(earlier), 2)]
        beside = {"system": system}
        records = [
            {"messages": messages},
            {"messages": parts},
            {"messages": json.dumps(messages)},
            beside | {"messages": dialogue},
            beside | {"conversations": [said(names[role], text) for role, text in turns]},
            {"conversations": speech},
            {"prompt": messages[:-1], "completion": messages[-1:]},
            {"prompt": messages[:-1], "completion": messages},
            {"prompt": messages[:-1], "chosen": messages, "rejected": other},
            {"prompt": messages[:-1], "chosen": answer, "rejected": other[-1:]},
            {"chosen": messages, "rejected": other},
            {"messages": messages, "label": 1},
        ]
        read = read_demonstrations(save(tmp_path / f"{number}.jsonl", *records))
        assert read == [tuple(turns)] * len(records)
        if "\n\n" not in request + system:  # an instruction's text is parsed
            alpaca = beside | {"instruction": request, "history": history, "output": answer}
            assert read_demonstrations(save(tmp_path / "x.jsonl", alpaca)) == [tuple(turns)]
        table = tmp_path / f"{number}.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["messages", "prompt", "completion"])
            writer.writeheader()
            writer.writerow({"messages": json.dumps(messages)})
            writer.writerow({"prompt": json.dumps(messages[:-1]), "completion": answer})
        assert read_demonstrations(str(table)) == [tuple(turns)] * 2
        plain = [(role, text.replace("\n\n", "")) for role, text in turns]
        text = PLAIN.text(plain)
        records = [
            {"chosen": text, "rejected": PLAIN.text([*plain[:-1], ("assistant", "Another.")])},
            {"prompt": PLAIN.prompt_text(plain[:-1]), "completion": plain[-1][1]},
            {"prompt": PLAIN.prompt_text(plain[:-1]), "completion": text},
        ]
        read = read_demonstrations(save(tmp_path / "x.jsonl", *records))
        assert read == [tuple(plain)] * len(records)


def text_of(dice, words) -> str:
    return "x" + "".join(dice.choices(words, k=dice.randrange(5)))


def test_fields_that_nothing_reads_are_named_once(tmp_path, capsys):
    def printed(read, *rows: dict) -> str:
        read(save(tmp_path / "x.jsonl", *rows))
        return capsys.readouterr().out

    rows = [{"prompt": "a", "completion": "b", "web": "x", "quality": i} for i in range(3)]
    assert printed(read_demonstrations, *rows) == "data: fields not used: web, quality\n"
    assert "web, quality; a reward" in printed(read_prompts, *rows)
    assert printed(read_demonstrations, {"question": "a", "answer": "7"}) == ""
    both = {"prompt": Q, "messages": TALK, "score_chosen": 9} | sides(ASK)
    for read in (read_demonstrations, read_rankings, read_labelled):
        assert printed(read, both) == "data: fields not used: score_chosen\n"
    thought = {"messages": [role_of(ASK), role_of(SAY, reasoning_content="Hm.")]}
    assert printed(read_demonstrations, thought) == (
        "data: fields not used: message.reasoning_content\n"
    )
    odd = {"prompt": "a", "completion": "b", "c\n\x1b": 1}
    assert "not used: 'c\\n\\x1b'\n" in printed(read_demonstrations, odd)


def test_a_reward_gets_the_fields_of_the_file(tmp_path):
    record = {"question": "a", "answer": 7, "source": "web", "template": "x"}
    (prompt,) = read_prompts(save(tmp_path / "x.jsonl", record))
    assert prompt.columns == record


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
        rows = [
            {"prompt": Q, "completion": BETTER, "label": good},
            {"instruction": Q, "output": BETTER, "label": bad},
            {"messages": TALK, "label": good},
            {"conversations": [said("human", Q), said("gpt", BETTER)], "kto_tag": bad},
            {"prompt": Q, "response": TALK, "label": good},
        ]
        path = save(tmp_path / "x.jsonl", *rows)
        assert {(p.turns, text) for p, text, _ in read_labelled(path)} == {((ASK,), BETTER)}
        assert [label for *_, label in read_labelled(path)] == [1, 0, 1, 0, 1]
        assert read_demonstrations(path) == [(ASK, SAY)] * 3


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
    "list.txt": json.dumps(ROWS),
    "list_over_lines.txt": json.dumps(ROWS, indent=1),
    "lines.csv": LINES,
    "table.jsonl": table("\t"),
    "CAPITALS.CSV": table(","),
    "mark.csv": "\ufeff" + table(","),
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
    for name in ("README.md", "README.txt", "LICENSE.txt", ".hidden.jsonl", "dataset_info.json"):
        (tmp_path / name).write_text("not data")
    assert read_demonstrations(str(tmp_path)) == TURNS * 2
    assert read_demonstrations(str(tmp_path / "[ab].json*")) == TURNS * 2
    standard = io.TextIOWrapper(io.BytesIO(LINES.encode()))
    monkeypatch.setattr("sys.stdin", standard)
    readers.standard_input.cache_clear()
    assert read_demonstrations("-") == TURNS
    assert read_demonstrations("-") == TURNS  # it can be read again
    (tmp_path / "c.jsonl.zst").write_text("packed otherwise")
    with pytest.raises(UserError, match="zstd"):  # not passed over
        read_demonstrations(str(tmp_path))
    both = tmp_path / "a,b.jsonl"
    both.write_text(LINES)
    assert read_demonstrations(str(both)) == TURNS


def test_cells_of_a_table(tmp_path, capsys):
    file = tmp_path / "x.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["", "messages", "prompt", "completion", "label"])
        writer.writerow([0, json.dumps(TALK), "", "", ""])  # an empty cell is null
        writer.writerow([1, "", Q, '[{"a": 1}]', "1"])
        writer.writerow([2, "", Q, "Paint.", "0"])
        writer.writerow([3, "", json.dumps([role_of(ASK)]), "", "1"])
    json_answer = ("assistant", '[{"a": 1}]')
    assert read_demonstrations(str(file)) == [(ASK, SAY), (ASK, json_answer)]
    out = capsys.readouterr().out
    assert "2 of 4 records skipped; 1: label is false" in out
    assert "1: 'completion' is missing" in out and "fields not used: column 1\n" in out


def test_prose_that_looks_a_little_like_a_table_is_prose(tmp_path):
    for text in (
        "Dear Ann, the text, as promised.\nYours",
        "prompt\nness is a virtue",
        "a,b\n1,2",
        "[1] a\nb",
        "{x} y",
    ):
        (tmp_path / "x.txt").write_text(text)
        ((_, (role, read)),) = read_demonstrations(str(tmp_path / "x.txt"))
        assert (role, read) == ("assistant", text)


PAIR_ROW = b'{"prompt": "p", "responses": ["a", "b"], "scores": '
REFUSED = [  # a file, and words of the error beside its name
    ("x.jsonl.zst", b"(\xb5/\xfd", ["zstd -d"]),
    ("x.zip", b"PK", ["unzip"]),
    ("x.arrow", b"ARROW1", ["datasets", "to_json"]),
    ("x.xlsx", b"PK", [".csv"]),
    ("x.csv", b"prompt,completion\na,b,c\n", ["line 2", "3 cells", "2 column"]),
    ("x.csv", b'prompt,completion\n"a,b\nc,d\n', ["line 2", "quotes"]),
    ("x.csv", b"prompt,prompt\na,b\n", ["line 1", "rename"]),
    ("x.csv", b"prompt,completion\n", ["no record"]),
    ("x.csv", b"Who?,Ann.\nWhat?,Rust.\n", ["line 2", "Who?, Ann.", "prompt and completion"]),
    ("x.csv", b"prompt,completion\n\"[{'role': 'user'}]\",a\n", ["line 2", "json.dumps"]),
    ("x.csv", b"messages\n\"[{'role': 'user'}]\"\n", ["line 2", "messages", "json.dumps"]),
    ("x.csv", "prompt,completion\na,é".encode("latin1"), ["line 2", "UTF-8"]),
    ("x.txt", "one\ntwo é\n".encode("latin1"), ["line 2", "UTF-8"]),
    ("x.txt", "one".encode("utf-16-le"), ["line 1", "UTF-16"]),
    ("x.jsonl", LINES.encode("utf-16"), ["UTF-16", "line 1"]),
    ("x.jsonl", LINES.encode("utf-16-be"), ["UTF-16", "line 1"]),
    ("x.jsonl", LINES.encode() + "é".encode("latin1"), ["line 4", "UTF-8"]),
    ("x.jsonl", b"hello\n", ["line 1", "JSON", "hello"]),
    ("x.jsonl", b'"hello"\n', ["line 1", "object", "a text"]),
    ("x.jsonl", b'{"prompt": "p", "prompt": "q"}', ["line 1", "'prompt'", "twice"]),
    ("x.json", b'{"a": [1,\n2', ["JSON"]),
    ("x.json", b"[]", ["no record"]),
    ("x.json", b"[[1]]", ["record 1", "object"]),
    ("x.json", b'{"train": [{"prompt": "p"}], "data": [{"prompt": "p"}]}', ["data and train"]),
    ("x.json", b'{"things": [{"prompt": "p"}]}', ["things", "prompt and completion"]),
    ("x.jsonl", b'{"inputs": "p", "targets": "t"}', ["inputs, targets", "prompt and completion"]),
    ("x.jsonl", b'{"instruction": "p", "input": ["x"], "output": "t"}', ["input", "text"]),
    ("x.jsonl", b'{"instruction": "p", "output": ["t"]}', ["instruction, output"]),
    ("x.jsonl", b'{"messages": "p"}', ["messages", "list"]),
    ("x.jsonl", b'{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}', ["0.5"]),
    ("x.jsonl", PAIR_ROW + b'["x", 1]}', ["scores", "x"]),
    ("x.jsonl", PAIR_ROW + b"[1]}", ["2 'responses'", "1 'scores'"]),
    ("x.jsonl", PAIR_ROW + b"[1, null]}", ["scores", "None"]),
]


@pytest.mark.parametrize("name, content, words", REFUSED)
def test_refusals_say_what_to_do(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_demonstrations(str(tmp_path / name))
    for word in [name, *words]:
        assert word in str(caught.value)


def test_names_that_are_no_files(tmp_path):
    for folder in ("saved", "split", "model", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").touch()
    (tmp_path / "split" / "dataset_dict.json").touch()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "other" / "README.txt").touch()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, word in [
        (str(tmp_path / "saved"), "load_from_disk('{}').to_json"),
        (str(tmp_path / "split"), "load_from_disk('{}')['train'].to_json"),
        (str(tmp_path / "model"), "a model's folder"),
        (str(tmp_path / "other"), "no file in it"),
        (str(tmp_path / "pipe.jsonl"), "standard input"),
        ("some-org/some-data.v1", "load_dataset('{}', split='train').to_json"),
        (str(tmp_path / "*.nothing"), "no file"),
        (str(tmp_path / "none.jsonl"), "No such file"),
    ]:
        with pytest.raises(UserError, match=re.escape(f"{name}: ")) as caught:
            read_demonstrations(name)
        assert word.format(name) in str(caught.value)


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
