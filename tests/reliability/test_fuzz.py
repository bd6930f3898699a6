"""Damaged files, replies, answers and flags: a result or one sentence, no traceback and no hang.

MINIRLHF_FUZZ says how many inputs each parser gets; those that are slow get a share of it.
"""

import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from email.message import Message
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizer_folders
from conftest import FUZZ, tiny
from labelling import candidates, write_candidates
from test_report import make_folder as make_report_folder

import label
import train_ppo
from minirlhf import UserError, cli, report
from minirlhf.data import (
    Prompt,
    Ranking,
    read_demonstrations,
    read_labelled,
    read_prompts,
    read_rankings,
)
from minirlhf.feedback import chat, judge, page, rankings, server
from minirlhf.feedback.endpoint import Endpoint
from minirlhf.feedback.replies import TryAgain, read_preference, read_verdict
from minirlhf.files import read_jsonl
from minirlhf.model import GPT
from minirlhf.run import read_loop, read_run
from minirlhf.tokenizer import Tokenizer
from minirlhf.tokenizer_files import EOS

LONGEST = 10  # seconds of computing for one input
TEXT = "The fox\n\tcan't é, 東京 🦊 " + "".join(map(chr, range(0xA0, 0x250)))
PIECES = [character.encode() for character in '{}[]",:\\\n\r\0 <>|#=;']
PIECES += [b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff", b"\\ud800", b"\\udc00\\ud800", b"[" * 1200]
PIECES += [b"null", b"true", b"1e999", b"-0", b"NaN", b"9" * 400, "Ġ".encode(), b"\x1b[31m"]
PIECES += [b"\\n\\nHuman:", b"\\n\\nAssistant:", b"A", b"B", b"<think>", b"</think>", b"F16"]
ODD = [None, True, False, 0, -1, 1e300, 10**400, float("nan"), "", "x", "\ud800", "\x1b[31m"]
ODD += [[], {}, [[]], [None], {"": None}, [1, 2, 3], 0.5, 2**31]


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Up to three changes: of bytes or, in JSON, of values."""
    for _ in range(rng.randrange(4)):
        change = change_value if rng.random() < 0.4 else change_bytes
        content = change(rng, content)
    return content


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    before, after = content[:at], content[at:]
    size = rng.randrange(1, 30)
    pieces = [rng.choice(PIECES), bytes([rng.randrange(256)]), after[:size], b""]
    return before + rng.choice(pieces) + after[rng.choice((0, 0, 1, size)) :]


def change_value(rng: random.Random, content: bytes) -> bytes:
    """One value in the JSON of one line becomes another, or goes."""
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    try:
        root = [json.loads(lines[number])]
    except (ValueError, RecursionError):
        return content
    holder, key = root, 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    if holder is not root and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    lines[number] = json.dumps(root[0]).encode()
    return b"\n".join(lines)


@dataclass
class Parser:
    """read(path) reads a damaged file, and those of its folder that it wants beside it."""

    files: dict[str, list[bytes]]  # name -> good contents; the others have the first one
    read: Callable[[Path], object]
    share: float = 1.0  # of the inputs
    until: int | None = None  # bytes that may be damaged, from the beginning


def lines_of(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def contents(folder: Path, *names: str) -> dict[str, list[bytes]]:
    return {name: [(folder / name).read_bytes()] for name in names}


# ---- what there is to parse


def records(folder: Path, tokenizer: Tokenizer) -> Parser:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    hh = "\n\nHuman: a\n\nAssistant: "
    rows = [
        {"prompt": "a", "completion": "b"},
        {"text": "a"},
        {"messages": turns},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": hh + "b", "rejected": hh + "c"},
        {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "preferences": [[None, 1], [0]]},
        {"prompt": "a", "completion": "b", "label": False},
        {"instruction": "a", "input": "b", "output": "c"},
        {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"system": "s", "prompt": "a", "responses": ["b", "c"], "scores": [1, 2]},
        {"prompt": "a", "chosen": turns, "rejected": [turns[0], {"role": "bot", "content": "c"}]},
    ]
    readers = [read_demonstrations, read_rankings, read_prompts, read_labelled]
    rng = random.Random(0)

    def read(path: Path) -> None:
        for record in rng.choice(readers)(str(path), template=rng.choice(["chat", "raw"])):
            conversation = record  # a demonstration
            if isinstance(record, Ranking):
                conversation = (*record.prompt.turns, ("assistant", record.responses[-1]))
            elif isinstance(record, Prompt):
                conversation = record.turns
            elif isinstance(record[0], Prompt):
                conversation = (*record[0].turns, ("assistant", record[1]))
            tokenizer.render(conversation)
            "".join(text for _, text in conversation).encode()  # it can be written

    tables = [b"prompt,completion\na,b\n", b'prompt\tchosen\trejected\n"a\nb"\tc\td\n']
    two = [lines_of(a, b) for a, b in pairwise(rows)]
    files = {"x.jsonl": [lines_of(row) for row in rows] + two, "x.csv": tables}
    return Parser(files | {"x.json": [json.dumps({"data": rows[:2]}).encode()]}, read)


def opens(path: Path) -> None:
    read = Tokenizer.from_pretrained(path.parent)
    assert read.decode(read.encode(TEXT)) == TEXT
    read.render((("user", "hi"), ("assistant", "x")))


def gpt2_tokenizer(folder: Path, tokenizer: Tokenizer) -> Parser:
    tokenizer.save_pretrained(folder)
    (folder / "added_tokens.json").write_text(json.dumps({EOS: tokenizer.eos_id}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": EOS}))
    names = ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"]
    return Parser(contents(folder, *names), opens, share=0.25)


def one_file_tokenizer(kind: str) -> Callable:
    def tokenizer_json(folder: Path, tokenizer: Tokenizer) -> Parser:
        tokenizer_folders.write(folder, kind)
        names = [path.name for path in folder.iterdir() if path.name != "tokenizer_config.json"]
        return Parser(contents(folder, *names), opens, share=0.1)

    return tokenizer_json


def chat_template(folder: Path, tokenizer: Tokenizer) -> Parser:
    """A process of its own renders each."""
    tokenizer_folders.write(folder, "qwen3")
    return Parser(contents(folder, "tokenizer_config.json"), opens, share=0.005)


def model_folder(*names: str, **fields) -> Callable:
    def model(folder: Path, tokenizer: Tokenizer) -> Parser:
        tiny(tokenizer, **fields).save_pretrained(folder)
        if "part.safetensors" in names:
            (folder / "model.safetensors").rename(folder / "part.safetensors")
            index = {"weight_map": {"wte.weight": "part.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        files = contents(folder, *names)
        until = None
        if "model.safetensors" in names:
            until = 8 + int.from_bytes(files["model.safetensors"][0][:8], "little")
        return Parser(files, lambda path: GPT.from_pretrained(folder), 0.05, until)

    return model


LLAMA = {"model_type": "llama", "n_inner": 64, "n_kv_head": 2, "rope_theta": 1e4}


def run_files(folder: Path, tokenizer: Tokenizer) -> Parser:
    make_report_folder(folder / "x")

    def read(path: Path) -> None:
        read_run(folder / "x/round1/rm")
        read_loop(folder / "x")
        read_jsonl(folder / "x/round1/ppo/metrics.jsonl")

    names = ["x/loop.json", "x/round1/rm/run.json", "x/round1/ppo/metrics.jsonl"]
    return Parser(contents(folder, *names), read)


def whole_report(folder: Path, tokenizer: Tokenizer) -> Parser:
    make_report_folder(folder / "x", ppo_steps=3, rounds=1)
    names = ["loop.json", "evaluation.json", "round1/rm/run.json", "sft/metrics.jsonl"]
    names += ["round1/ppo/metrics.jsonl", "round1/ppo/samples.jsonl"]
    files = contents(folder, *[f"x/{name}" for name in names])
    return Parser(files, lambda path: report.write(folder / "x"), share=0.001)


def rankings_file(folder: Path, tokenizer: Tokenizer) -> Parser:
    rows = []
    for i, annotator in enumerate(["me", "me", "ai", "ai"]):
        row = {"id": i % 2, "prompt": f"q{i % 2}", "responses": ["a", "b"], "ranks": [1, 2]}
        row |= {"annotator": annotator, "seconds": 3.5, "principle": "Be brief."}
        rows.append(row | {"asked": [[0, 1, 0.7, 0.2]], "preferences": [[None, 0.7], [0.3, None]]})
    talk = {"talk": "t", "policies": ["x", "y"], "picked": 0, "replaces": True, "annotator": "me"}
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    choice = rows[0] | talk | {"id": "t-0", "prompt": said}
    files = {
        "r.jsonl": [lines_of(*rows), lines_of(choice, rows[0] | {"repeat": True}, choice)[:-1]]
    }
    asked = [rankings.Candidate(i, Prompt.of(f"q{i}"), ["a", "b"]) for i in range(2)]
    dice = random.Random(0)

    def read(path: Path) -> None:
        before = path.read_bytes()
        try:
            if dice.random() < 0.5:
                page.Sitting(asked, path, "me").question()
            else:
                chat.Talk(chat.Panel({}, chat.Options()), path, "me").state()
        finally:
            rankings.close_rankings(path)
            kept = path.read_bytes()
            assert before.startswith(kept) and b"\n" not in before[len(kept) :]
        label.summarize(label.Settings(out=str(path)))

    return Parser(files, read, share=0.1)


def candidates_file(folder: Path, tokenizer: Tokenizer) -> Parser:
    write_candidates(folder / "c.jsonl", candidates(2))
    return Parser(contents(folder, "c.jsonl"), lambda path: rankings.read_candidates(str(path)))


def endpoint_reply(folder: Path, tokenizer: Tokenizer) -> Parser:
    endpoint = Endpoint("http://localhost:1/v1", "m")
    message = {"content": "<think>B?</think> A", "reasoning": None, "refusal": None}
    top = [{"token": "A", "logprob": -0.1}, {"token": " B", "logprob": -2.5}]
    logprobs = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": top}]}
    choice = {"message": message, "finish_reason": "stop", "logprobs": logprobs}
    parts = {"content": [{"type": "text", "text": "The better response is B."}]}
    bodies = [{"choices": [choice], "error": None}, {"choices": [{"message": parts}]}]
    bodies.append({"error": {"code": 429, "message": "busy"}})
    rng = random.Random(0)

    def read(path: Path) -> None:
        status = rng.choice((200, 200, 200, 302, 400, 401, 422, 429, 500))
        headers = Message()
        headers["Retry-After"] = headers["Location"] = path.read_bytes()[:30].decode("latin-1")
        try:
            reply = endpoint._read(status, headers, path.read_bytes())
        except TryAgain as error:
            assert 0 <= error.wait < 1e7
            return
        preference = read_preference(reply)
        assert preference is None or 0 <= preference <= 1
        reply.text.encode()

    return Parser({"body": [json.dumps(body).encode() for body in bodies]}, read)


def judge_answer(folder: Path, tokenizer: Tokenizer) -> Parser:
    answers = [b"A", b"**B**", b"The better response is B.", b'{"answer": "A"}', b"A or B?"]
    answers += [
        b"Both are kind.\nAnswer: B",
        b"\\boxed{A}",
        b"I would choose A as it is short",
    ]

    def read(path: Path) -> None:
        text = path.read_bytes().decode(errors="replace")
        verdict = read_verdict(text)
        assert verdict in (None, 0.0, 1.0)
        letters = set(re.findall(r"(?<![^\W_])[AB](?![^\W_])", text.upper()))
        assert verdict is None or "AB"[verdict == 0.0] in letters

    return Parser({"answer": answers}, read)


def typed_order(folder: Path, tokenizer: Tokenizer) -> Parser:
    def read(path: Path) -> None:
        order = label.parse_order(path.read_bytes().decode(errors="replace"), 3)
        assert len(order["ranks"]) == 3 and min(order["ranks"]) == 1

    return Parser({"line": [b"2 > 1 = 3 h1 b", b"1 2 3", b"b"]}, read)


def flags(folder: Path, tokenizer: Tokenizer) -> Parser:
    lines = [b"--reward out/rm,my.py:f --reward_weights 0.7,0.3 --steps 3 --kl_coef 0.1"]
    lines += [b"--lr 1e-5 --no-checkpointing --advantage grpo --seed=7 --out x --resume"]

    def read(path: Path) -> None:
        with suppress(SystemExit):  # --help
            cli.parse(train_ppo.Settings, path.read_bytes().decode(errors="replace").split())

    return Parser({"line": lines}, read, share=0.03)


def principles(folder: Path, tokenizer: Tokenizer) -> Parser:
    texts = {"c.txt": [b"# a comment\n\nBe brief.\nAlways.\n\nBe kind.\n"]}
    return Parser(texts, lambda path: judge.read_constitution(str(path)))


def page_link(folder: Path, tokenizer: Tokenizer) -> Parser:
    server.write_link(folder / "x.page.html", f"http://127.0.0.1:123/?token={'a' * 32}")

    def read(path: Path) -> None:
        port, token = server.read_link(path)
        assert re.fullmatch(r"[\w-]{32}|", token, re.ASCII) and bool(port) == bool(token)

    return Parser(contents(folder, "x.page.html"), read)


PARSERS = {
    "records": records,
    "a tokenizer as GPT-2's": gpt2_tokenizer,
    "a tokenizer as SmolLM's": one_file_tokenizer("smollm2"),
    "a tokenizer as Llama 3's": one_file_tokenizer("llama3"),
    "a chat template": chat_template,
    "config.json as GPT-2's": model_folder("config.json"),
    "config.json as Llama's": model_folder("config.json", **LLAMA),
    "safetensors' header": model_folder("model.safetensors"),
    "safetensors' index": model_folder("part.safetensors", "model.safetensors.index.json"),
    "loop.json, run.json, metrics.jsonl": run_files,
    "the files of a report": whole_report,
    "rankings": rankings_file,
    "candidates": candidates_file,
    "an endpoint's reply": endpoint_reply,
    "a judge's answer": judge_answer,
    "an order typed in the terminal": typed_order,
    "flags": flags,
    "principles": principles,
    "the page's link": page_link,
}


def write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # where a file is emptied, some file systems wait for the disk
    path.write_bytes(content)


def too_long(*_):
    raise TimeoutError("a parser that hangs")


@pytest.mark.parametrize("name", PARSERS)
def test_fuzz(name, tmp_path, tokenizer, capsys):
    parser = PARSERS[name](tmp_path, tokenizer)
    dice = random.Random(name)
    for file, good in parser.files.items():
        write(tmp_path / file, good[0])
    signal.signal(signal.SIGPROF, too_long)
    count = max(10, round(FUZZ * parser.share))
    used = 0
    console = open(os.devnull, "w")  # noqa: SIM115
    for _ in range(count):
        file = dice.choice(list(parser.files))
        good = dice.choice(parser.files[file])
        content = mutate(dice, good[: parser.until])
        write(tmp_path / file, content + good[len(good[: parser.until]) :])
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        try:
            with redirect_stdout(console):
                parser.read(tmp_path / file)
            used += 1
        except UserError as error:
            assert len(str(error)) < 9000
        except BaseException:
            sys.stderr.write(f"{file}: {content[:3000]!r}\n")
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        write(tmp_path / file, parser.files[file][0])
    assert used > 0
    with capsys.disabled():
        print(f"{name}: {count} inputs, {used} of them usable")
