"""The tokenizer against naive encoders and trainers, GPT-2's own files, and hostile text."""

import gzip
import json
import random
import time
from collections import Counter
from itertools import pairwise

import jinja2
import pytest
import regex
from conftest import SHARED

from minirlhf import UserError
from minirlhf.tokenizer import (
    ASSISTANT,
    BYTES,
    CHAT_TEMPLATE,
    EOS,
    HUMAN,
    PIECE,
    SYMBOLS,
    TRAINING_PIECE,
    Tokenizer,
    conversation_segments,
    parse_prompt,
    response_text,
)

TEXT = (
    "the cat sat on the mat. The cat's hat, the rat's bat: that is that! 12 + 34 = 46, 7 x 8 = 56.\n\n"
    "Human: aaaa baaa aaab abab babab ababab?\n\nAssistant: naïve café, 東京タワー, 東京 und Köln; 🦜 x² 2024 12\t\t\n"
) * 3
HOSTILE = ["", "\x00", "\r\n", "\r", "a\u2028b\u2029c\x85d", "🦜👩\u200d👩", "東京", "\ufeffx", " \n \t x", EOS]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], 400)


@pytest.fixture(scope="module")
def gpt2():
    if not (SHARED / "gpt2").exists():
        pytest.skip("GPT-2's tokenizer is not here")
    return Tokenizer.from_pretrained(SHARED / "gpt2")


def random_text(rng, length=40):
    kinds = [
        lambda: rng.choice("ab the cat'12 \n\t.,"),
        lambda: rng.choice(["the", " cat", "'s", "aaa", "ab", "12", "  ", "\n\n", "Human:", EOS, "東京", "🦜"]),
        lambda: chr(rng.randrange(0xD800)),
        lambda: chr(rng.randrange(0xE000, 0x110000)),
    ]
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(length)))


def naive_merges(text, wanted):
    """Recounts everything at each merge."""
    words = Counter(TRAINING_PIECE.findall(text))
    words = [([BYTES.index(b) for b in piece.encode()], n) for piece, n in words.items()]
    merges = []
    while len(merges) < wanted:
        counts = Counter()
        for word, n in words:
            for pair in pairwise(word):
                counts[pair] += n
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        words = [(replace(word, best, 256 + len(merges)), n) for word, n in words]
        merges.append(best)
    return merges


def replace(word, pair, new):
    done, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            done.append(new)
            i += 2
        else:
            done.append(word[i])
            i += 1
    return done


def naive_encode(tokenizer, text):
    """Every merge in its order, on every piece."""
    ids = []
    for piece in regex.findall(PIECE, text):
        word = [SYMBOLS[BYTES.index(b)] for b in piece.encode()]
        for left, right in tokenizer.merges:
            word = replace(word, (left, right), left + right)
        ids += [tokenizer.vocab[token] for token in word]
    return ids


def test_training_equals_the_naive_trainer():
    rng = random.Random(0)
    for text in [TEXT, *("".join(rng.choice("aab c1") for _ in range(300)) for _ in range(30))]:
        trained = Tokenizer.train([text], 257 + 120)
        tokens = list(SYMBOLS)
        for left, right in naive_merges(text, 120):
            tokens.append(tokens[left] + tokens[right])
        assert list(trained.vocab) == [*tokens, EOS]
        assert trained.vocab_size == len(tokens) + 1 and trained.eos_id == len(tokens)


def test_encoding_equals_merging_in_order(tokenizer):
    rng = random.Random(1)
    for text in [TEXT, *HOSTILE, *(random_text(rng) for _ in range(300))]:
        assert tokenizer.encode(text) == naive_encode(tokenizer, text)
    runs = Tokenizer.train(["aaaaaaa aaaa aaa baaab bbb bab " * 5], 300)
    for _ in range(300):
        text = "".join(rng.choice("aab ") for _ in range(20))
        assert runs.encode(text) == naive_encode(runs, text)


def test_training_does_not_depend_on_the_order_of_texts_and_may_stop_early(tokenizer):
    lines = TEXT.split(".")
    rng = random.Random(2)
    vocab = Tokenizer.train(lines, 350).vocab
    rng.shuffle(lines)
    assert Tokenizer.train(lines, 350).vocab == vocab
    assert Tokenizer.train([], 400).vocab_size == 257
    assert Tokenizer.train(["abab \ud800 abab"], 400).vocab_size < 265
    with pytest.raises(UserError, match="257"):
        Tokenizer.train([TEXT], 256)


def test_numbers_are_spelt_out(tokenizer):
    digits = [token for token in tokenizer.vocab if sum(c.isdigit() for c in token) > 1]
    assert not digits
    assert [tokenizer.decode([i]) for i in tokenizer.encode("x 1234")][-3:] == ["2", "3", "4"]


def test_every_text_survives(tokenizer):
    rng = random.Random(3)
    for text in [TEXT, *HOSTILE, *(random_text(rng) for _ in range(1000))]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        for prompt in ("TL;DR:", HUMAN + " x" + ASSISTANT):
            for finished in (True, False):
                ids = tokenizer.encode_response(prompt, text, finished)
                assert (ids[-1:] == [tokenizer.eos_id]) == finished
                assert tokenizer.decode_response(prompt, ids) == text
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"
    assert tokenizer.decode([tokenizer.vocab[SYMBOLS[BYTES.index(0xE6)]], 10**6]) == "\ufffd\ufffd"


def test_special_tokens_in_text_are_text(tokenizer):
    assert tokenizer.eos_id not in tokenizer.encode(f"a{EOS}b {EOS}")
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eos_id]) == "a" + EOS
    assert tokenizer.decode_response("x", [*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("b")]) == "a"


@pytest.mark.parametrize("character", ["a", " ", "\n", "=", "1", "é", "\x1c", "ab"])
def test_long_runs_take_linear_time(tokenizer, character):
    for end in ("", "x"):
        text = character * 300_000 + end
        began = time.perf_counter()
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert time.perf_counter() - began < 5


def test_long_runs_do_not_disturb_ordinary_text(tokenizer):
    assert tokenizer.encode("a" + " " * 9999 + "b") == tokenizer._bpe.encode_ordinary("a" + " " * 9999 + "b")
    ids = tokenizer.encode("the cat" + "\n" * 25_000 + "the mat")
    assert ids[: len(tokenizer.encode("the cat"))] == tokenizer.encode("the cat")
    assert ids[-len(tokenizer.encode("the mat")) :] == tokenizer.encode("the mat")


def test_prompts_parse_and_come_back():
    conversation = [
        ("\n\nHuman: hi\n\nAssistant:", False), (" Hello.", True), ("\n\nHuman: bye\n\nAssistant:", False),
    ]  # fmt: skip
    assert parse_prompt("".join(text for text, _ in conversation)) == conversation
    assert parse_prompt("TL;DR:") == [("TL;DR:", False)] and parse_prompt("") == [("", False)]
    assert parse_prompt("\n\nHumans: x") == [("\n\nHumans: x", False)]
    assert parse_prompt("\n\nHuman: x\n\nAssistant: so far")[-1] == ("\n\nHuman: x\n\nAssistant: so far", False)
    empty = [("a\n\nAssistant:", False), ("", True), ("\n\nHuman: b", False)]
    assert parse_prompt("a\n\nAssistant:\n\nHuman: b") == empty
    rng = random.Random(4)
    for _ in range(300):
        text = "".join(rng.choice([HUMAN, ASSISTANT, " a", "\n\n", "Human:", " b\r"]) for _ in range(rng.randrange(12)))
        segments = parse_prompt(text)
        assert "".join(piece for piece, _ in segments) == text
        assert [by for _, by in segments] == [i % 2 == 1 for i in range(len(segments))] and not segments[-1][1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HUMAN} hi{ASSISTANT}{HUMAN} there?{ASSISTANT}", [""]),
        (f"{HUMAN} hi{ASSISTANT}{HUMAN} a{ASSISTANT} b{HUMAN} c{ASSISTANT}", ["", " b"]),
        (f"{HUMAN} hi{ASSISTANT}{HUMAN} a{ASSISTANT}{HUMAN} b{ASSISTANT}", ["", ""]),
        (f"{HUMAN} hi{ASSISTANT}{ASSISTANT}{ASSISTANT}{HUMAN} b{ASSISTANT}", ["", "", ""]),
        (f"{HUMAN}{ASSISTANT} yes{HUMAN}{ASSISTANT}", [" yes"]),
        (f"{HUMAN}{HUMAN}{ASSISTANT}{HUMAN}{HUMAN}{ASSISTANT}", [""]),
        (f"{ASSISTANT} Welcome.{HUMAN} hi{ASSISTANT}", [" Welcome."]),
        (f"{ASSISTANT}{HUMAN} hi{ASSISTANT}", [""]),
    ],
)
def test_an_empty_turn_is_an_empty_turn(tokenizer, text, said):
    segments = parse_prompt(text)
    assert "".join(piece for piece, _ in segments) == text
    assert [piece for piece, by_assistant in segments if by_assistant] == said
    ids, mask = tokenizer.render(segments)
    supervised = [i for i, by_assistant in zip(ids, mask) if by_assistant]
    assert tokenizer.decode(supervised) == "".join(piece + EOS for piece in said)


def test_text_and_messages_render_the_same_with_empty_turns_too(tokenizer):
    rng = random.Random(8)

    def content():
        text = "" if rng.random() < 0.4 else random_text(rng, 12)
        return "" if HUMAN in text or ASSISTANT in text else text

    for _ in range(500):
        roles = ["system"] * rng.randrange(2) + [rng.choice(["user", "assistant"]) for _ in range(rng.randrange(6))]
        messages = [{"role": role, "content": content()} for role in [*roles, "user"]]
        segments = conversation_segments(messages)
        text = "".join(piece for piece, _ in segments)
        assert parse_prompt(text) == segments
        assert tokenizer.render(parse_prompt(text)) == tokenizer.render(segments)

        answer = content()
        whole = conversation_segments([*messages, {"role": "assistant", "content": answer}])
        ids = tokenizer.encode_prompt(text) + tokenizer.encode_response(text, answer)
        assert ids == tokenizer.render(whole)[0]


def test_messages():
    def say(*turns):
        return conversation_segments([{"role": role, "content": content} for role, content in turns])

    assert say(("user", "hi"), ("assistant", "yo")) == [("\n\nHuman: hi\n\nAssistant:", False), (" yo", True)]
    assert say(("system", "Be brief."), ("human", "hi")) == [("Be brief.\n\nHuman: hi\n\nAssistant:", False)]
    assert say(("assistant", ""), ("user", "x"))[1] == ("", True)
    assert say() == [(ASSISTANT, False)]
    for turns, words in [
        ([("tool", "x")], "message 1 has role 'tool'"),
        ([("user", "a"), ("system", "b")], "message 2"),
        ([("user", None)], "message 1 must"),
        ([("user", [{"type": "text"}])], "message 1 must"),
    ]:
        with pytest.raises(UserError, match=words):
            say(*turns)


def test_chat_template_renders_the_same(tokenizer):
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE)
    rng = random.Random(5)
    for _ in range(100):
        roles = ["system"] * rng.randrange(2) + [rng.choice(["user", "assistant"]) for _ in range(rng.randrange(1, 6))]
        messages = [{"role": role, "content": random_text(rng, 5)} for role in roles]
        rendered = template.render(messages=messages, eos_token=EOS, add_generation_prompt=roles[-1] != "assistant")
        assert rendered == "".join(text + EOS * by_assistant for text, by_assistant in conversation_segments(messages))


def test_loss_mask_covers_the_assistants_tokens_and_their_eos(tokenizer):
    rng = random.Random(6)
    for _ in range(300):
        roles = [rng.choice(["user", "assistant"]) for _ in range(rng.randrange(1, 7))]
        messages = [{"role": role, "content": random_text(rng)} for role in roles]
        ids, mask = tokenizer.render(conversation_segments(messages))
        assert len(ids) == len(mask)
        runs, last = [], False
        for i, supervised in zip(ids, mask):
            if supervised and not last:
                runs.append([])
            if supervised:
                runs[-1].append(i)
            last = supervised and i != tokenizer.eos_id
            assert supervised or i != tokenizer.eos_id
        said = [response_text(ASSISTANT, m["content"]) + EOS for m in messages if m["role"] == "assistant"]
        assert [tokenizer.decode(run) for run in runs] == said
        assert all(run[-1] == tokenizer.eos_id and run.count(tokenizer.eos_id) == 1 for run in runs)
        other = [i for i, supervised in zip(ids, mask) if not supervised]
        expected = "".join(text for text, by_assistant in conversation_segments(messages) if not by_assistant)
        assert tokenizer.decode(other) == expected


def test_prompt_and_response_join_to_the_conversation(tokenizer):
    turns = zip(["user", "assistant"] * 2, ["hi", "the cat", "12", "that's it"])
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = "".join(text for text, _ in conversation_segments(messages[:-1]))
    ids, _ = tokenizer.render(conversation_segments(messages))
    assert tokenizer.encode_prompt(prompt) + tokenizer.encode_response(prompt, "that's it") == ids


def test_show(tokenizer):
    shown = tokenizer.show(*tokenizer.render([("Q\x1b[31m\n", False), (" A", True)]))
    assert "\x1b[31m" not in shown and "⏎" in shown
    assert f"\x1b[32m{EOS}\x1b[0m|" in shown and "\x1b[2mQ\x1b[0m|" in shown


def test_files_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "a")
    again = Tokenizer.from_pretrained(tmp_path / "a")
    assert again.vocab == tokenizer.vocab and again.merges == tokenizer.merges
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())["tokenizer_class"] == "GPT2Tokenizer"


def test_ids_in_another_order_and_unused_ids(tokenizer):
    names = [EOS, *sorted(set(tokenizer.vocab) - {EOS})]
    vocab = {name: i for i, name in enumerate(names)} | {"<pad>": 1000}
    other = Tokenizer(vocab, tokenizer.merges)
    assert other.eos_id == 0 and other.vocab_size == 1001 and other.decode([1000]) == "<pad>"
    back = {i: name for name, i in tokenizer.vocab.items()}
    assert other.encode(TEXT) == [vocab[back[i]] for i in tokenizer.encode(TEXT)]
    assert other.decode(other.encode(TEXT)) == TEXT


def test_damaged_files_are_refused(tokenizer, tmp_path):
    def refused(words, vocab=None, merges=None, raw=None):
        tokenizer.save_pretrained(tmp_path)
        if vocab is not None:
            (tmp_path / "vocab.json").write_text(json.dumps(vocab))
        if merges is not None:
            (tmp_path / "merges.txt").write_text("".join(" ".join(m) + "\n" for m in merges))
        if raw is not None:
            (tmp_path / "vocab.json").write_bytes(raw)
        with pytest.raises(UserError, match=words) as caught:
            Tokenizer.from_pretrained(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    vocab, merges = tokenizer.vocab, tokenizer.merges
    refused(r"lacks <\|endoftext\|>", vocab={k: v for k, v in vocab.items() if k != EOS})
    refused("lacks Ġ", vocab={k: v for k, v in vocab.items() if k != "Ġ"})
    refused("out of order, or not in vocab.json", vocab={k: v for k, v in vocab.items() if k != "".join(merges[3])})
    refused("out of order", merges=merges[::-1])
    refused("out of order", merges=[*merges, merges[0]])
    refused("id twice", vocab=vocab | {"<pad>": 0})
    refused("whole number", vocab=vocab | {"<pad>": [1]})
    refused("two tokens", merges=[("a", "b", "c")])
    for raw in (b"{", b"[1, 2]", b"\xff", b"3", b""):
        refused("vocab.json", raw=raw)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges.txt.*No such file"):
        Tokenizer.from_pretrained(tmp_path)


def test_gpt2(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.vocab_size == 50257 and gpt2.eos_id == 50256
    for text in [TEXT, *HOSTILE]:
        assert gpt2.decode(gpt2.encode(text)) == text
    if (SHARED / "text" / "tinyshakespeare.txt.gz").exists():
        text = gzip.decompress((SHARED / "text" / "tinyshakespeare.txt.gz").read_bytes()).decode()
        assert len(gpt2.encode(text)) == 338_025


def test_training_is_fast_enough():
    path = SHARED / "text" / "books.txt.gz"
    if not path.exists():
        pytest.skip("the novels are not here")
    with gzip.open(path) as file:
        text = file.read(2_000_000).decode("utf-8", "ignore")
    began = time.perf_counter()
    trained = Tokenizer.train([text], 4000)
    assert time.perf_counter() - began < 20  # about 1 s on an idle core
    assert trained.vocab_size == 4000 and len(trained.encode(text)) < len(text) / 3
