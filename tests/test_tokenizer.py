"""The tokenizer against naive encoders and trainers, GPT-2's own files, and hostile text."""

import gzip
import json
import random
import time
from collections import Counter
from itertools import pairwise

import pytest
import regex
from conftest import SHARED

from minirlhf import UserError
from minirlhf.bpe import BYTES, SYMBOLS, TRAINING_PIECE
from minirlhf.chat import PLAIN
from minirlhf.data import parse_dialogue
from minirlhf.tokenizer import Tokenizer
from minirlhf.tokenizer_files import EOS, GPT2, Spec

TEXT = (
    "the cat sat on the mat. The cat's hat, the rat's bat: that is that! 12 + 34 = 46, "
    "7 x 8 = 56.\n\nHuman: aaaa baaa aaab abab babab ababab?\n\n"
    "Assistant: naïve café, 東京タワー, 東京 und Köln; 🦜 x² 2024 12\t\t\n"
) * 3
HOSTILE = [
    "",
    "\x00",
    "\r\n",
    "\r",
    "a\u2028b\u2029c\x85d",
    "🦜👩\u200d👩",
    "東京",
    "\ufeffx",
    " \n \t x",
    EOS,
]


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
        lambda: rng.choice(
            ["the", " cat", "'s", "aaa", "ab", "12", "  ", "\n\n", "Human:", EOS, "東京", "🦜"]
        ),
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
    for piece in regex.findall(GPT2, text):
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
        for prompt in ((("text", "TL;DR:"),), (("user", "x"),)):
            for finished in (True, False):
                ids = tokenizer.encode_response(prompt, text, finished)
                assert (ids[-1:] == [tokenizer.eos_id]) == finished
                assert tokenizer.decode_response(prompt, ids) == text
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"
    assert tokenizer.decode([tokenizer.vocab[SYMBOLS[BYTES.index(0xE6)]], 10**6]) == "\ufffd\ufffd"


def test_special_tokens_in_text_are_text(tokenizer):
    assert tokenizer.eos_id not in tokenizer.encode(f"a{EOS}b {EOS}")
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eos_id]) == "a" + EOS
    ids = [*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("b")]
    assert tokenizer.decode_response((("text", "x"),), ids) == "a"


@pytest.mark.parametrize("character", ["a", " ", "\n", "=", "1", "é", "\x1c", "ab"])
def test_long_runs_take_linear_time(tokenizer, character):
    for end in ("", "x"):
        text = character * 300_000 + end
        began = time.perf_counter()
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert time.perf_counter() - began < 5


def test_long_runs_do_not_disturb_ordinary_text(tokenizer):
    assert tokenizer.encode("a" + " " * 9999 + "b") == tokenizer._bpe.encode_ordinary(
        "a" + " " * 9999 + "b"
    )
    ids = tokenizer.encode("the cat" + "\n" * 25_000 + "the mat")
    assert ids[: len(tokenizer.encode("the cat"))] == tokenizer.encode("the cat")
    assert ids[-len(tokenizer.encode("the mat")) :] == tokenizer.encode("the mat")


MARKERS = ["\n\nHuman:", "\n\nAssistant:", " a", "\n\n", "Human:", " b\r", EOS, "", "naïve"]


def random_conversation(rng, last="assistant"):
    """Turns whose texts quote the markers of the format."""
    turns = [("system", "".join(rng.choices(MARKERS, k=3)))] if rng.random() < 0.3 else []
    for _ in range(rng.randrange(5)):
        role = rng.choice(["user", "assistant"])
        turns.append((role, "".join(rng.choices(MARKERS, k=rng.randrange(5)))))
    turns.append((last, "".join(rng.choices(MARKERS, k=rng.randrange(5)))))
    return tuple(turns)


def test_a_conversation_is_rendered_as_hh_rlhf_writes_it(tokenizer):
    turns = (("user", "hi"), ("assistant", "Hello."), ("user", "bye"), ("assistant", ""))
    first, second = "\n\nHuman: hi\n\nAssistant:", "\n\nHuman: bye\n\nAssistant:"
    assert tokenizer.chat.text(turns) == first + " Hello." + EOS + second + EOS
    end = [tokenizer.eos_id]
    prompt, answer = tokenizer.encode(first), tokenizer.encode(" Hello.")
    assert tokenizer.render(turns)[0] == prompt + answer + end + tokenizer.encode(second) + end
    system = (("system", "Be brief."), ("user", "hi"))
    assert PLAIN.prompt_text(system) == "Be brief.\n\nHuman: hi\n\nAssistant:"
    assert tokenizer.encode_prompt(system) == tokenizer.encode(PLAIN.prompt_text(system))
    assert PLAIN.prompt_text((("text", "TL;DR:"),)) == "TL;DR:"


def test_an_empty_prompt_is_an_end_of_text_token(tokenizer):
    empty = (("text", ""),)
    assert tokenizer.encode_prompt(empty) == [tokenizer.eos_id]
    ids, mask = tokenizer.render((*empty, ("assistant", "the cat")))
    assert ids == [tokenizer.eos_id, *tokenizer.encode("the cat"), tokenizer.eos_id]
    assert mask == [False] + [True] * (len(ids) - 1)


def test_a_message_is_one_message_on_every_path(tokenizer):
    """SFT renders the conversation; reward model, DPO and RL join prompt and response."""
    rng = random.Random(4)
    for _ in range(500):
        *prompt, (_, response) = turns = random_conversation(rng)
        if not prompt:
            continue
        ids, mask = tokenizer.render(turns)
        prompt_ids = tokenizer.encode_prompt(tuple(prompt))
        response_ids = tokenizer.encode_response(tuple(prompt), response)
        assert prompt_ids + response_ids == ids
        assert mask[len(prompt_ids) :] == [True] * len(response_ids)
        assert tokenizer.decode_response(tuple(prompt), response_ids) == response


def test_the_loss_mask_covers_the_assistants_tokens_and_their_eos(tokenizer):
    rng = random.Random(6)
    for _ in range(300):
        turns = random_conversation(rng, last=rng.choice(["user", "assistant"]))
        ids, mask = tokenizer.render(turns)
        assert len(ids) == len(mask)
        responses = []
        supervised_before = False
        for i, supervised in zip(ids, mask):
            if supervised and not supervised_before:
                responses.append([])
            if supervised:
                responses[-1].append(i)
            supervised_before = supervised and i != tokenizer.eos_id
            assert supervised or i != tokenizer.eos_id
        expected = [
            (" " + text if text else "") + EOS for role, text in turns if role == "assistant"
        ]
        assert [tokenizer.decode(response) for response in responses] == expected


def test_dialogues_in_text_form_render_as_they_were():
    rng = random.Random(5)
    for _ in range(300):
        roles = rng.choices(["\n\nHuman:", "\n\nAssistant:"], k=rng.randrange(1, 8))
        text = "".join(role + rng.choice([" a", "", " b\r\n", "  c "]) for role in roles)
        turns = parse_dialogue(text)
        assert len(turns) == len(roles)
        rendered = PLAIN.text(turns)
        assert rendered.replace("\n\nHuman: ", "\n\nHuman:") == text.replace(
            "\n\nHuman: ", "\n\nHuman:"
        )


def test_show(tokenizer):
    shown = tokenizer.show(*tokenizer.render((("text", "Q\x1b[31m\n"), ("assistant", " A"))))
    assert "\x1b[31m" not in shown and "⏎" in shown
    assert f"\x1b[32m{EOS}\x1b[0m|" in shown and "\x1b[2mQ\x1b[0m|" in shown


def test_files_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "a")
    again = Tokenizer.from_pretrained(tmp_path / "a")
    assert again.vocab == tokenizer.vocab and again.merges == tokenizer.merges
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == [
        "merges.txt",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert (
        json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "GPT2Tokenizer"
    )


def test_ids_in_another_order_and_unused_ids(tokenizer):
    names = [EOS, *sorted(set(tokenizer.vocab) - {EOS})]
    vocab = {name: i for i, name in enumerate(names)} | {"<pad>": 1000}
    other = Tokenizer(Spec(vocab, tokenizer.merges, special_tokens={EOS}))
    assert other.eos_id == 0 and other.vocab_size == 1001
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
    refused(r"endoftext.*lacks", vocab={k: v for k, v in vocab.items() if k != EOS})
    for symbol in "Ġ©":  # the blank's byte, and one of é's two
        refused(f"lacks .{symbol}", vocab={k: v for k, v in vocab.items() if k != symbol})
    refused(
        "out of order",
        vocab={k: v for k, v in vocab.items() if k != "".join(merges[3])},
    )
    refused("out of order", merges=merges[::-1])
    refused("out of order", merges=[*merges, merges[0]])
    refused("twice", vocab=vocab | {"<pad>": 0})
    refused("wrong one", vocab=vocab | {"<pad>": [1]})
    refused("two tokens", merges=[("a", "b", "c")])
    for raw in (b"{", b"[1, 2]", b"\xff", b"3", b""):
        refused("vocab.json", raw=raw)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges.txt does not exist"):
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
