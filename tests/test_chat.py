"""Conversations in every chat format: as transformers renders them, and never as a message says."""

import json
import random

import pytest
import tokenizer_folders
from conftest import tiny
from tokenizer_folders import CHATS, KINDS

import train_sft
from minirlhf import UserError
from minirlhf.chat import CHATML, LLAMA3, PLAIN, recognise
from minirlhf.data import messages
from minirlhf.tokenizer import Tokenizer

MARKERS = [
    *("<|im_start|>", "<|im_end|>\n", "<|im_start|>assistant\n", "<|endoftext|>", "<|eot_id|>"),
    *("<|start_header_id|>user<|end_header_id|>\n\n", "<|begin_of_text|>", "<|end_of_text|>"),
    *("\n\nHuman:", "\n\nAssistant:", "system\n", "</think>", "{{ bos_token }}", "{% raw %}"),
    *("", " ", "\n", "\r\n", " a", "naïve ", "e\u0301", "12345", "東京", "\ud800"),
]
WORDS = [
    "The fox",
    " ran",
    " 12345",
    " miles;",
    " DON'T",
    "\n\nnaïve",
    " café.",
    " 東京",
    "  x ",
    "!",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    for kind in KINDS:
        tokenizer_folders.write(folder / kind, kind)
    return folder


@pytest.fixture(params=["gpt2", *CHATS])
def tokenizer(request, folders):
    return Tokenizer.from_pretrained(folders / request.param)


def text_of(rng, words, length=5) -> str:
    return "".join(rng.choices(words, k=rng.randrange(length)))


def conversation(rng, words, last="assistant") -> tuple:
    """Turns that alternate, as templates expect, with or without a system turn."""
    turns = [("system", text_of(rng, words))] if rng.random() < 0.5 else []
    for _ in range(rng.randrange(3)):
        turns.append(("user", text_of(rng, words)))
        turns.append(("assistant", text_of(rng, words)))
    turns.append(("user", text_of(rng, words)))
    if last == "assistant":
        turns.append(("assistant", text_of(rng, words)))
    return tuple(turns)


@pytest.mark.parametrize(
    ("kind", "chat_format", "additions"),
    [
        ("gpt2", "plain", {}),
        ("smollm2", "chatml", {"default_system": "You are a helpful assistant."}),
        ("qwen2.5", "chatml", {"default_system": "You are a helpful assistant."}),
        ("qwen3", "chatml", {"thought": "<think>\n\n</think>\n\n", "default_system": None}),
        ("llama3", "llama3", {"bos": "<|begin_of_text|>", "trims": True, "default_system": None}),
        ("llama3.1", "llama3", {"default_system": "", "bos": "<|begin_of_text|>"}),
    ],
)
def test_a_template_is_recognised_by_what_it_renders(folders, kind, chat_format, additions):
    chat = Tokenizer.from_pretrained(folders / kind).chat
    assert chat.name == chat_format
    for name, value in additions.items():
        assert getattr(chat, name) == value
    assert chat.before_system.startswith("Cutting Knowledge Date") == (kind == "llama3.1")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content }}"
        "{{ '<|im_end|>'}}{% endfor %}",
        KINDS["qwen3"]["template"].replace("<|im_end|>\\n", "<|im_end|>"),
        KINDS["llama3"]["template"].replace("trim", "upper"),
        "{{ raise_exception('no system turns') }}",
        "{{ messages[7].content }}",
        "{% for",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_other_templates_are_refused_with_what_to_do(folders, tmp_path, template):
    assert recognise(template, "<|begin_of_text|>", "<|im_end|>") is None
    folder = tokenizer_folders.write(tmp_path, "qwen2.5")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="--chat_format") as caught:
        Tokenizer.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    chosen = Tokenizer.from_pretrained(folder, "chatml")
    assert chosen.chat == CHATML and chosen.chat_format == "chatml"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ " + "(" * 10**5,
    ],
)
def test_a_template_without_end_is_given_up(monkeypatch, template):
    monkeypatch.setattr("minirlhf.chat.RENDERING_SECONDS", 1)
    assert recognise(template) is None


def test_the_format_can_be_chosen(folders):
    turns = (("user", "hi"),)
    plain = Tokenizer.from_pretrained(folders / "smollm2", "plain")
    assert plain.decode(plain.encode_prompt(turns)) == "\n\nHuman: hi\n\nAssistant:"
    assert plain.decode([plain.eos_id]) == "<|im_end|>"
    own = Tokenizer.from_pretrained(folders / "smollm2", "chatml")
    assert own.chat.default_system  # the template's own additions stay
    for name in ("chatml", "llama3", "nonsense"):
        with pytest.raises(UserError, match="--chat_format"):
            Tokenizer.from_pretrained(folders / "gpt2", name)


def test_a_template_can_be_one_of_several_or_in_a_file_of_its_own(tmp_path):
    folder = tokenizer_folders.write(tmp_path, "llama3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert Tokenizer.from_pretrained(folder).chat_format == "llama3"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    base = Tokenizer.from_pretrained(folder)
    assert base.chat_format == "plain" and base.chat.bos == "<|begin_of_text|>"
    (folder / "chat_template.jinja").write_text(template)
    assert Tokenizer.from_pretrained(folder).chat_format == "llama3"


def test_prompt_and_response_are_the_conversation(tokenizer):
    """SFT renders the conversation; reward model, DPO and RL join prompt and response."""
    rng = random.Random(0)
    for _ in range(300):
        *prompt, (_, response) = turns = conversation(rng, MARKERS)
        prompt = tuple(prompt)
        ids, mask = tokenizer.render(turns)
        prompt_ids = tokenizer.encode_prompt(prompt)
        response_ids = tokenizer.encode_response(prompt, response)
        assert prompt_ids + response_ids == ids
        assert mask[len(prompt_ids) :] == [True] * len(response_ids)
        assert tokenizer.encode_response(prompt, response, finished=False) == response_ids[:-1]


def test_what_a_message_quotes_is_no_turn(tokenizer):
    """Special tokens stand where the format puts them, and nowhere else."""
    rng = random.Random(1)
    special = {tokenizer.vocab[token] for token in tokenizer.spec.special_tokens}
    for _ in range(300):
        turns = conversation(rng, MARKERS)
        empty = tuple((role, "") for role, _ in turns)
        ids, mask = tokenizer.render(turns)
        expected, _ = tokenizer.render(empty)
        kept = [i for i in ids if i in special]
        assert kept == [i for i in expected if i in special]
        assert sum(mask[i] for i, token in enumerate(ids) if token == tokenizer.eos_id) == sum(
            role == "assistant" for role, _ in turns
        )


def test_the_loss_mask_covers_the_assistants_words_and_their_end(tokenizer):
    rng = random.Random(2)
    chat = tokenizer.chat
    for _ in range(200):
        turns = conversation(rng, WORDS, last=rng.choice(["user", "assistant"]))
        ids, mask = tokenizer.render(turns)
        supervised = [[]]
        for i, counts in zip(ids, mask):
            if counts:
                supervised[-1].append(i)
            elif supervised[-1]:
                supervised.append([])
        expected = []
        for role, text in turns:
            if role == "assistant":
                text = text.strip() if chat.trims else text
                expected.append((chat.space + text if text else "") + chat.end)
        assert [tokenizer.decode(answer) for answer in supervised if answer] == expected


def test_raw_texts(folders):
    for kind in ("gpt2", "qwen2.5", "llama3"):
        tokenizer = Tokenizer.from_pretrained(folders / kind)
        start = [tokenizer.bos_id] if kind == "llama3" else []
        text, more = tokenizer.encode("The fox"), tokenizer.encode(" ran")
        assert tokenizer.encode_prompt((("text", "The fox"),)) == [*start, *text]
        ids, mask = tokenizer.render((("text", "The fox"), ("assistant", " ran")))
        assert ids == [*start, *text, *more, tokenizer.eos_id]
        assert sum(mask) == len(more) + 1
        empty = tokenizer.encode_prompt((("text", ""),))
        assert empty == (start or [tokenizer.eos_id])


def test_decoding_stops_at_every_end(folders):
    tokenizer = Tokenizer.from_pretrained(folders / "llama3")
    prompt = (("user", "hi"),)
    other = tokenizer.vocab["<|end_of_text|>"]
    assert tokenizer.stop_ids == (tokenizer.eos_id, other)
    words = tokenizer.encode("The fox")
    for end in tokenizer.stop_ids:
        assert tokenizer.decode_response(prompt, [*words, end, *words]) == "The fox"


# ---------------------------------------------------------------------- saved folders


@pytest.mark.parametrize("kind", ["gpt2", *CHATS])
def test_a_saved_folder_is_the_same_tokenizer(folders, tmp_path, kind):
    tokenizer = Tokenizer.from_pretrained(folders / kind)
    (tmp_path / "chat_template.jinja").write_text("an older run's")
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    original = (folders / kind / "tokenizer.json").read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == original
    assert again.chat == tokenizer.chat
    assert again.vocab == tokenizer.vocab
    assert (again.eos_id, again.bos_id, again.pad_id) == (
        tokenizer.eos_id,
        tokenizer.bos_id,
        tokenizer.pad_id,
    )
    rng = random.Random(3)
    for _ in range(50):
        turns = conversation(rng, MARKERS)
        assert again.render(turns) == tokenizer.render(turns)


def test_formats_survive_their_template():
    for chat in (PLAIN, CHATML, LLAMA3):
        assert recognise(chat.template(), chat.bos, chat.end) == chat
        rendered = chat.template() + "{# not known by its text #}"
        assert recognise(rendered, chat.bos, chat.end) == chat


def test_sft_gives_a_model_the_format_that_is_chosen(folders, tmp_path):
    """A base model has no template; what is saved has one."""
    folder = tokenizer_folders.write(tmp_path / "base", "qwen2.5")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    config["eos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    base = Tokenizer.from_pretrained(folder)
    assert base.chat_format == "plain" and base.decode([base.eos_id]) == "<|endoftext|>"
    tiny(base).save_pretrained(folder)
    (tmp_path / "data.jsonl").write_text('{"prompt": "Hi", "completion": "The fox."}\n' * 4)
    options = {"init": str(folder), "data": str(tmp_path / "data.jsonl"), "validation": 0.0}
    options |= {"steps": 1, "batch_size": 2, "out": str(tmp_path / "sft"), "chat_format": "chatml"}
    train_sft.main(train_sft.Settings(**options))
    tuned = Tokenizer.from_pretrained(tmp_path / "sft")
    assert tuned.chat_format == "chatml"
    assert tuned.decode([tuned.eos_id]) == "<|im_end|>"
    with pytest.raises(UserError, match="--init"):
        train_sft.main(train_sft.Settings(chat_format="chatml", out=str(tmp_path / "fresh")))


# ---------------------------------------------------------------------- as in transformers


def theirs_of(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def apply(theirs, turns, **options):
    return theirs.apply_chat_template(
        messages(turns),
        add_generation_prompt=turns[-1][0] == "user",
        enable_thinking=False,
        date_string="26 Jul 2024",
        **options,
    )


@pytest.mark.parametrize("kind", CHATS)
def test_conversations_are_rendered_as_the_models_template_does(folders, kind):
    tokenizer = Tokenizer.from_pretrained(folders / kind)
    theirs = theirs_of(folders / kind)
    between = tokenizer.chat.between
    rng = random.Random(4)
    for _ in range(300):
        turns = conversation(rng, WORDS, last=rng.choice(["user", "assistant"]))
        text = apply(theirs, turns, tokenize=False)
        ids = apply(theirs, turns)["input_ids"]
        if turns[-1][0] == "user":
            assert text == tokenizer.chat.prompt_text(turns)
            ours = tokenizer.encode_prompt(turns)
        else:
            assert text == tokenizer.chat.text(turns) + between
            ours = tokenizer.render(turns)[0] + tokenizer.encode(between)
        # A header's last blank can merge with blanks that open an answer. We cut between them,
        # for the model answers behind a whole header.
        answers = [text for role, text in turns if role == "assistant"]
        if not any(text[:1].isspace() for text in answers):
            assert ours == ids


@pytest.mark.parametrize("kind", ["gpt2", *CHATS])
def test_transformers_supervises_what_we_supervise(folders, tmp_path, kind):
    """TRL's assistant_only_loss takes the mask of a template with generation marks."""
    tokenizer = Tokenizer.from_pretrained(folders / kind)
    tokenizer.save_pretrained(tmp_path)
    theirs = theirs_of(tmp_path)
    rng = random.Random(5)
    for _ in range(100):
        turns = conversation(rng, ["The fox", " ran", " 123", " miles!", "."])
        turns = tuple((role, text.strip()) for role, text in turns)
        batch = apply(theirs, turns, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = tokenizer.render(turns)
        assert batch["input_ids"] == ids
        assert batch["assistant_masks"] == [int(counts) for counts in mask]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_opens_in_transformers_with_the_same_ids(folders, tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_pretrained(folders / kind)
    tokenizer.save_pretrained(tmp_path, padding=True)
    for model_type in ("gpt2", "llama", "qwen3"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in (tokenizer_folders.TEXT, "a  1 b", "don't DON'T 12345\n\n\n x"):
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ids == tokenizer.encode(text)
        assert theirs.eos_token_id == tokenizer.eos_id
        assert theirs.pad_token_id == tokenizer.pad_id != tokenizer.eos_id
