"""Records of every shape, real files, bad input, splits and batches."""

import gzip
import json
import re
from pathlib import Path

import pytest
from conftest import SHARED

from minirlhf import UserError
from minirlhf.data import (
    Prompt,
    good_and_bad,
    parse,
    read_demonstrations,
    read_labelled,
    read_prompts,
    read_rankings,
    transcript,
)
from minirlhf.records import records
from minirlhf.tokenizer import Tokenizer

DIALOGUE = "\n\nHuman: hi\n\nAssistant:"
HI, YO = ("user", "hi"), ("assistant", "yo")
USER, ASSISTANT_SAYS = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="file.jsonl"):
        path = tmp_path / name
        text = "".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
        )
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not here")
    return str(SHARED / name)


# ---- shapes of records


@pytest.mark.parametrize("record", [
    {"prompt": "hi", "completion": "yo"},
    {"prompt": "hi", "completion": " yo"},
    {"prompt": DIALOGUE, "completion": "yo"},
    {"prompt": DIALOGUE + " ", "completion": "yo"},
    {"prompt": "\n\nHuman: hi", "completion": "yo"},
    {"prompt": [USER], "completion": [ASSISTANT_SAYS]},
    {"messages": [USER, ASSISTANT_SAYS]},
    {"prompt": "hi", "chosen": "yo", "rejected": "no"},
    {"chosen": DIALOGUE + " yo", "rejected": DIALOGUE + " no"},
    {"chosen": [USER, ASSISTANT_SAYS], "rejected": [USER, ASSISTANT_SAYS | {"content": "no"}]},
    {"prompt": "hi", "completion": "yo", "messages": None, "label": None},
])  # fmt: skip
def test_demonstrations(write, record):
    assert read_demonstrations(write(record)) == [(HI, YO)]
    assert [prompt.turns for prompt in read_prompts(write(record))] == [(HI,)]


def test_demonstrations_of_several_turns(write):
    dialogue = DIALOGUE + " a\n\nHuman: b\n\nAssistant:"
    expected = (HI, ("assistant", "a"), ("user", "b"), ("assistant", "c"))
    assert read_demonstrations(write({"prompt": dialogue, "completion": "c"})) == [expected]
    sides = {"chosen": dialogue + " c", "rejected": dialogue + " d"}
    assert read_demonstrations(write(sides)) == [expected]
    unanswered = [USER, ASSISTANT_SAYS, USER]
    assert read_demonstrations(write({"messages": unanswered})) == [(HI, YO)]


def test_an_empty_assistant_turn_is_an_empty_turn():
    text = "\n\nHuman: hi\n\nAssistant:\n\nHuman: there?\n\nAssistant:"
    assert Prompt.of(text).turns == (HI, ("assistant", ""), ("user", "there?"))


def test_markers_that_a_message_quotes_are_text(write):
    quote = "see:\n\nHuman: x\n\nAssistant: y"
    asked = {"role": "user", "content": quote}
    for record in (
        {"messages": [asked, ASSISTANT_SAYS]},
        {"prompt": [asked], "chosen": "yo", "rejected": "no"},
        {"prompt": [asked], "completion": [ASSISTANT_SAYS]},
    ):
        assert read_demonstrations(write(record)) == [(("user", quote), YO)]
        assert read_prompts(write(record))[0].turns == (("user", quote),)
    answered = {"prompt": "hi", "chosen": quote, "rejected": "no"}
    assert read_rankings(write(answered))[0].responses[0] == quote


def test_sides_that_repeat_the_prompt(write):
    text = "Which month comes after May?"
    asked = {"role": "user", "content": text}
    no = {"role": "assistant", "content": "no"}
    for record in (
        {"prompt": text, "chosen": text + " yo", "rejected": text + " no"},
        {"prompt": text, "chosen": [asked, ASSISTANT_SAYS], "rejected": [asked, no]},
        {"prompt": [asked], "chosen": [asked, ASSISTANT_SAYS], "rejected": [asked, no]},
        {
            "prompt": text,
            "chosen": f"\n\nHuman: {text}\n\nAssistant: yo",
            "rejected": f"\n\nHuman: {text}\n\nAssistant: no",
        },
    ):
        ranking = read_rankings(write(record))[0]
        assert ranking.prompt.turns == (("user", text),)
        assert ranking.responses == ["yo", "no"]


def test_a_prompt_keeps_what_the_record_had(write):
    path = write({"prompt": "hi", "answer": 3}, {"prompt": [USER], "answer": 4})
    (prompt,) = read_prompts(path)  # the same turns: one prompt
    assert prompt.source == "hi" and prompt.columns == {"answer": 3}
    assert prompt.last_request() == "hi"
    system = {"role": "system", "content": "Be brief."}
    turns = [system, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    long = Prompt.of([*turns, {"role": "user", "content": "c"}])
    assert (long.first_request(), long.last_request()) == ("a", "c")
    assert Prompt.of("plain", "raw").first_request() == "plain"
    assert transcript(prompt.turns) == "hi"
    assert transcript((HI, YO)) == "Human: hi\nAssistant: yo"


def test_raw_template(write):
    path = write({"prompt": "TL;DR:", "completion": " short"}, {"prompt": "", "completion": "x"})
    assert read_demonstrations(path, template="raw") == [
        (("text", "TL;DR:"), ("assistant", " short")),
        (("text", ""), ("assistant", "x")),
    ]
    sides = write({"prompt": "TL;DR:", "chosen": " a", "rejected": "a"})
    pair = read_rankings(sides, template="raw")[0]
    assert (pair.prompt.turns, pair.responses) == ((("text", "TL;DR:"),), [" a", "a"])
    with pytest.raises(UserError, match="template"):
        read_prompts(path, template="Chat")


def test_messages_become_turns():
    system = {"role": "system", "content": "Be brief."}
    assert parse([system, USER]) == (("system", "Be brief."), HI)
    for turns, words in [
        ([{"role": "tool", "content": "x"}], "tool"),
        ([{"role": "king", "content": "x"}], "message 1 has role 'king'"),
        ([USER, system], "behind the first turn"),
        ([{"role": "user", "content": None}], "without content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([], "empty list"),
    ]:
        with pytest.raises(UserError, match=words):
            parse(turns)


def test_rankings(write):
    path = write(
        {"prompt": "hi", "responses": ["a", "", "c"], "ranks": [2, 3, 1], "annotator": "me"},
        {"prompt": "hi", "chosen": " a", "rejected": "b"},
        {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " b"},
        {"prompt": [USER], "chosen": [ASSISTANT_SAYS | {"content": "a"}], "rejected": "b"},
    )
    first, *pairs = read_rankings(path)
    assert (first.prompt.turns, first.responses) == ((HI,), ["a", "", "c"])
    assert (first.ranks, first.annotator, first.where) == ([2, 3, 1], "me", f"{path}, line 1")
    for pair in pairs:
        assert (pair.prompt.turns, pair.responses, pair.ranks) == ((HI,), ["a", "b"], [1, 2])


def test_labelled_responses(write):
    path = write(
        {"prompt": "hi", "response": "yo", "label": True},
        {"prompt": "hi", "completion": "no", "label": False},
        {"prompt": "x", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]},
    )
    labelled = [(text, good) for _, text, good in read_labelled(path)]
    assert labelled == [("yo", True), ("no", False), ("a", True), ("c", False)]
    assert good_and_bad(["a", "b"], [1, 1]) == []
    with pytest.raises(UserError, match="'label'"):
        read_labelled(write({"prompt": "hi", "response": "yo", "label": "perhaps"}))
    both = write(
        {"prompt": "hi", "response": "yo", "label": True},
        {"prompt": "hi", "response": "no", "label": False},
    )
    assert read_demonstrations(both) == [(HI, YO)]  # SFT does not learn what is bad


def test_prompts_are_taken_once_each_in_order(write):
    ranking = {"prompt": "a", "responses": ["x", "y"], "ranks": [1, 2]}
    path = write({"prompt": "b"}, ranking, {"prompt": "b", "completion": "z"}, {"messages": [USER]})
    assert [prompt.last_request() for prompt in read_prompts(path)] == ["b", "a", "hi"]


# ---- files


def test_files(write, tmp_path):
    text = "a\u2028b\rc\x85d"
    one = write({"text": text}, "", "  \r", {"text": "é"}, name="one.jsonl.gz")
    (tmp_path / "two.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "x\xe2\x80\xa8y"}\r\n{"text": "last"}'
    )
    three = write(json.dumps([{"text": "p"}, {"text": "q"}], indent=1), name="three.json")
    (tmp_path / "four.txt").write_bytes(b"l1\r\nl2")
    two, four = str(tmp_path / "two.jsonl"), str(tmp_path / "four.txt")
    found = list(records(f"{one}, {two},{three},{four}", "demonstrations"))
    texts = [record["text"] for _, record in found]
    assert texts == [text, "é", "x\u2028y", "last", "p", "q", "l1\r\nl2"]
    assert [place.split("/")[-1] for place, _ in found] == [
        "one.jsonl.gz, line 1",
        "one.jsonl.gz, line 4",
        "two.jsonl, line 1",
        "two.jsonl, line 2",
        "three.json, record 1",
        "three.json, record 2",
        "four.txt",
    ]
    assert read_demonstrations(one)[0] == (("text", ""), ("assistant", text))


WORLD = """
def prompts(split, count, seed):
    return [f"{split} {seed} {i}" for i in range(count)]

def demonstrations(split, count, seed):
    return [{"prompt": p, "completion": "yes"} for p in prompts(split, count, seed)]
"""


def test_a_world_is_a_module_of_the_users_own(tmp_path):
    file = tmp_path / "my_small_world.py"
    file.write_text(WORLD)
    prompts = read_prompts(str(file), split="test", count=2, seed=5)
    assert [prompt.source for prompt in prompts] == ["test 5 0", "test 5 1"]
    assert len(read_demonstrations(str(file), count=3)) == 3
    assert len(read_demonstrations(str(file))) > 100
    with pytest.raises(UserError, match="rankings"):
        read_rankings(str(file))
    file.with_name("broken_world.py").write_text("import nothing_like_this")
    with pytest.raises(UserError, match="nothing_like_this"):
        read_prompts(str(tmp_path / "broken_world.py"))


# ---- bad input


GOOD = {"prompt": "p", "completion": "c"}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
RANKING = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}

TLDR = {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0.0}


MALFORMED = [  # the reader, a record, and words that the error must hold
    (read_demonstrations, "{oops", ["JSON", "oops"]),
    (read_demonstrations, "[1]", ["object", "a list"]),
    (read_demonstrations, {"prompt": "p", "complection": "c"}, ["'completion'", "complection"]),
    (read_demonstrations, {"prompt": 3, "completion": "c"}, ["'prompt'", "a number"]),
    (read_demonstrations, {"text": ["x"]}, ["'text'", "a list"]),
    (read_demonstrations, {"messages": 3}, ["'messages'", "list"]),
    (read_demonstrations, {"messages": [USER | {"role": "king"}]}, ["message 1", "'king'"]),
    (read_demonstrations, {"question": "x"}, ["'completion'", "missing"]),
    (read_demonstrations, {}, ["'prompt'"]),
    (read_prompts, {"text": "x"}, ["'prompt'", "text"]),
    (read_rankings, GOOD, ["'chosen'", "completion"]),
    (read_rankings, {"prompt": "p", "chosen": "c"}, ["'rejected'"]),
    (read_rankings, {"chosen": "c", "rejected": "r"}, ["chosen", "'prompt' is missing"]),
    (read_rankings, TLDR | {"summaries": [{"text": 3}, {"text": "b"}]}, ["'chosen'"]),
    (read_rankings, RANKING | {"ranks": [1, 2, 3]}, ["2 'responses'", "3 'ranks'"]),
    (read_rankings, RANKING | {"responses": ["a"], "ranks": [1]}, ["1 'responses'"]),
    (read_rankings, RANKING | {"ranks": [1, "2"]}, ["'ranks'", "'2'"]),
    (read_rankings, RANKING | {"ranks": [1, True]}, ["'ranks'", "True"]),
    (read_rankings, RANKING | {"ranks": [1, 10**400]}, ["'ranks'", "10000"]),
    (read_rankings, RANKING | {"ranks": [1, float("nan")]}, ["'ranks'", "nan"]),
    (read_rankings, RANKING | {"ranks": 1}, ["'ranks'", "list"]),
    (read_rankings, RANKING | {"responses": ["a", 2]}, ["responses[1]"]),
    (read_rankings, {"prompt": "p", "responses": ["a", "b"]}, ["'ranks'"]),
]


@pytest.mark.parametrize("read, record, words", MALFORMED)
def test_malformed_records(write, read, record, words):
    good = PAIR if read is read_rankings else GOOD
    path = write(*[good] * 16, record, good)
    with pytest.raises(UserError) as caught:
        read(path)
    for word in [f"{path}, line 17", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


TWICE_ANSWERED = {  # in a row
    "chosen": [USER, ASSISTANT_SAYS, ASSISTANT_SAYS],
    "rejected": [USER, ASSISTANT_SAYS, ASSISTANT_SAYS | {"content": "x"}],
}
USELESS = [
    (read_rankings, PAIR | {"rejected": "c"}, "'chosen' equals 'rejected'"),
    (read_rankings, PAIR | {"rejected": " "}, "empty"),
    (read_rankings, {"chosen": DIALOGUE + " a", "rejected": "x" + DIALOGUE + " b"}, "differ"),
    (read_rankings, {"chosen": DIALOGUE + " a\n\nHuman: b", "rejected": DIALOGUE}, "ends with"),
    (read_rankings, RANKING | {"ranks": [1, 1]}, "tied"),
    (read_rankings, PAIR | {"chosen": []}, "'chosen': an empty list"),
    (read_rankings, PAIR | {"chosen": [USER]}, "'chosen' ends with the user's turn"),
    (read_demonstrations, GOOD | {"completion": ""}, "empty"),
    (read_demonstrations, GOOD | {"completion": None}, "'completion' is missing"),
    (read_demonstrations, {"messages": []}, "empty list"),
    (read_demonstrations, {"messages": [USER, ASSISTANT_SAYS | {"content": ""}]}, "empty"),
    (read_demonstrations, GOOD | {"prompt": "\n"}, "'prompt'"),
    (read_demonstrations, {"text": ""}, "'text'"),
    (read_demonstrations, {"messages": [USER]}, "no assistant turn"),
    (read_prompts, {"prompt": [ASSISTANT_SAYS]}, "'prompt': the prompt must end"),
    (read_prompts, {"prompt": "\n\nAssistant:"}, "'prompt': the prompt must end"),
    (read_prompts, {"prompt": [{"role": "system", "content": "x"}]}, "the prompt must end"),
    (read_prompts, TWICE_ANSWERED, "the prompt must end with the user's turn"),
    (read_rankings, TWICE_ANSWERED, "the prompt must end with the user's turn"),
    (read_labelled, TWICE_ANSWERED, "the prompt must end with the user's turn"),
    (read_demonstrations, TWICE_ANSWERED, "the prompt must end with the user's turn"),
    (read_demonstrations, GOOD | {"prompt": [USER, ASSISTANT_SAYS]}, "the prompt must end"),
]


@pytest.mark.parametrize("read, record, words", USELESS)
def test_useless_records_are_counted_and_fatal_only_alone(write, capsys, read, record, words):
    good = PAIR if read in (read_rankings, read_labelled) else GOOD
    path = write(good, record, good | {"prompt": "q"}, record)
    assert len(read(path)) >= 2
    printed = capsys.readouterr().out
    assert "2 of 4" in printed and words in printed and f"{path}, line 2" in printed
    path = write(record)
    with pytest.raises(UserError, match="line 1") as caught:
        read(path)
    assert words in str(caught.value)


def test_bad_files(write, tmp_path):
    def refused(data, *words):
        with pytest.raises(UserError) as caught:
            read_demonstrations(str(data))
        for word in [Path(data).name, *words]:
            assert word in str(caught.value)

    refused(tmp_path / "none.jsonl", "No such file", "check the file")
    refused(write(), "no record", "one JSON object")
    refused(write("", " "), "no record")
    refused(write(name="a.jsonl.gz"), "no record")
    refused(tmp_path / "a.doc", ".jsonl")
    assert len(read_demonstrations(write(GOOD, name="a.json"))) == 1
    refused(write("[", name="b.json"), "JSON")
    refused(write('{"text": ' + "1" * 5000 + "}", name="big.jsonl"), "line 1")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9"}\n')
    refused(tmp_path / "latin.jsonl", "line 2", "UTF-8")
    (tmp_path / "plain.jsonl.gz").write_bytes(b"no gzip")
    refused(tmp_path / "plain.jsonl.gz", "gzip")
    whole = gzip.compress(json.dumps({"text": "x" * 1000}).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    refused(tmp_path / "cut.jsonl.gz")
    (tmp_path / "folder.jsonl").mkdir()
    refused(tmp_path / "folder.jsonl")


# ---- real files


@pytest.mark.parametrize("name, total, differing, empty, identical, longer", [
    ("harmless-base", 2312, 5, 4, 0, 0.442),
    ("helpful-base", 2354, 9, 4, 2, 0.607),
    ("helpful-rejection-sampled", 2749, 3, 0, 32, 0.574),
])  # fmt: skip
def test_hh_rlhf(capsys, name, total, differing, empty, identical, longer):
    tokenizer = Tokenizer.from_pretrained(Path(shared("gpt2/vocab.json")).parent)
    path = shared(f"hh_rlhf/{name}.test.jsonl.gz")
    rankings = read_rankings(path)
    printed = capsys.readouterr().out
    assert len(rankings) == total - differing - empty - identical
    for count, reason in [(differing, "differ"), (empty, "empty"), (identical, "equals")]:
        if count:
            assert re.search(rf"{count}: [^;]*{reason}", printed)
    lengths = []
    for ranking in rankings:
        prompt = ranking.prompt.turns
        lengths.append([len(tokenizer.encode_response(prompt, x)) for x in ranking.responses])
    share = sum(a > b for a, b in lengths) / sum(a != b for a, b in lengths)
    assert share == pytest.approx(longer, abs=0.0006)  # in GPT-2 tokens, equal lengths apart
    assert len(read_demonstrations(path)) >= total - empty - differing


def test_a_text_is_never_compared_with_itself(write):
    chances = [[0, 0.5, 0.9], [0.5, 0, 0.8], [0.1, 0.2, 0]]
    record = {"prompt": "p", "responses": ["a", "a", "b"], "ranks": [1, 3, 4]}
    (ranking,) = read_rankings(write(record | {"preferences": chances}))
    assert ranking.responses == ["a", "b"]
    assert ranking.ranks == [2, 4]  # of "a" the mean
    assert ranking.preferences == [[0, 0.9], [0.1, 0]]
    labels = [(text, good) for _, text, good in read_labelled(write(record))]
    assert labels == [("a", True), ("b", False)]


def test_line_separators_inside_real_records():
    assert len(read_demonstrations(shared("sft/dolly_3k.jsonl.gz"))) == 2996
    problems = read_demonstrations(shared("sft/gsm8k_train.jsonl.gz"))
    assert len(problems) == 7473
    assert any("\u2028" in text for turns in problems for _, text in turns)


def test_a_prompt_ends_with_a_request(write):
    again = ASSISTANT_SAYS | {"content": "again"}
    path = write({"messages": [USER, ASSISTANT_SAYS, again]}, {"messages": [ASSISTANT_SAYS]})
    assert [prompt.turns for prompt in read_prompts(path)] == [(HI,)]


def test_what_is_bad_or_weighs_nothing_is_not_learnt(write):
    for good, bad in ((True, False), (1, 0), ("true", "False")):
        rows = [
            {"prompt": "hi", "completion": "yo", "label": good},
            {"prompt": "hi", "completion": "no", "label": bad},
        ]
        assert read_demonstrations(write(*rows)) == [(HI, YO)]
        assert [label for _, _, label in read_labelled(write(*rows))] == [True, False]
    unweighted = [USER, ASSISTANT_SAYS | {"weight": 0}, USER, ASSISTANT_SAYS]
    turns = read_demonstrations(write({"messages": unweighted}))[0]
    assert [role for role, _ in turns] == ["user", "context", "user", "assistant"]
    assert read_prompts(write({"prompt": unweighted[:3]}))[0].turns == (HI, YO, HI)
    answers = [ASSISTANT_SAYS, ASSISTANT_SAYS | {"weight": 0}]
    assert read_demonstrations(write({"prompt": "hi", "completion": answers})) == [(HI, YO)]
    with pytest.raises(UserError, match="'label'"):
        read_labelled(write({"prompt": "hi", "response": "yo"}))


def test_messages_without_a_request_are_no_prompt(write):
    system = {"role": "system", "content": "Be brief."}
    good = {"messages": [system, USER]}
    for bad in ([system], [system, ASSISTANT_SAYS]):
        (prompt,) = read_prompts(write({"messages": bad}, good))
        assert prompt.turns[-1] == HI


def test_alpaca_with_system_and_history(write):
    record = {
        "system": "Be brief.",
        "history": [["hi", "yo"]],
        "instruction": "Add.",
        "input": "1 2",
        "output": "3",
    }
    turns = read_demonstrations(write(record))[0]
    assert turns == (("system", "Be brief."), HI, YO, ("user", "Add.\n\n1 2"), ("assistant", "3"))
    with pytest.raises(UserError, match=r"line 1.*history"):
        read_demonstrations(write(record | {"history": ["hi"]}))


def test_a_world_with_a_bug_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bug_world.py").write_text("def prompts(split, count, seed):\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"bug_world.*ZeroDivisionError"):
        read_prompts("bug_world.py")
    (tmp_path / "worse_world.py").write_text("def prompts(:\n")
    with pytest.raises(UserError, match=r"worse_world.*SyntaxError"):
        read_prompts("worse_world")
