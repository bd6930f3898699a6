"""Small tokenizers in the files of the models that people use, each with its own rules."""

import json
from collections import Counter
from pathlib import Path

import regex

from minirlhf.bpe import BYTES, SYMBOLS, learn_merges
from minirlhf.tokenizer_files import GPT2, LLAMA3, QWEN2, SMOLLM

TEXT = (
    "The fox can't run 12345 miles; DON'T ask, he'll say 1 234. \n\nHuman: What is 2 + 3?\n\n"
    "Assistant: naïve café, 東京タワー, Köln; x² 2024 12\t\t\n  if x:\n    y = 10_000\r\n\r\n"
    "system\nuser\nassistant\nYou are a helpful assistant.\n 1\n  22 the the the fox fox ran ran"
) * 4

# What the models' templates do with plain turns.
CHATML_TURNS = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
DEFAULT_SYSTEM = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
)
QWEN3 = """\
{%- set ns = namespace(last_query=messages | length - 1) %}
{%- for message in messages %}{%- if message.role == 'user' %}
    {%- set ns.last_query = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last and loop.index0 > ns.last_query %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA3_TURNS = """\
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
LLAMA3_DATES = """\
{{- bos_token }}
{%- if date_string is not defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- endif %}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}
{{- system + '<|eot_id|>' }}
"""

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def byte_level(use_regex: bool) -> dict:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split(pattern: str) -> dict:
    step = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [step, byte_level(False)]}


DIGITS = {"type": "Digits", "individual_digits": True}
PUTS_BOS = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},  # filled in below
}

KINDS = {
    "gpt2": {"pattern": GPT2, "pre_tokenizer": byte_level(True), "special": ("<|endoftext|>",)},
    "smollm2": {
        "pattern": SMOLLM,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, byte_level(True)]},
        "special": CHATML_TOKENS,
        "lacks": "ē",  # a control character, as SmolLM's vocabulary does
        "names": {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
        },
        "template": DEFAULT_SYSTEM + CHATML_TURNS,
    },
    "qwen2.5": {
        "pattern": QWEN2,
        "pre_tokenizer": split(QWEN2),
        "normalizer": {"type": "NFC"},
        "special": CHATML_TOKENS,
        "names": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "template": DEFAULT_SYSTEM + CHATML_TURNS,
        "generation": ["<|im_end|>", "<|endoftext|>"],
    },
    "qwen3": {
        "pattern": QWEN2,
        "pre_tokenizer": split(QWEN2),
        "normalizer": {"type": "NFC"},
        "special": CHATML_TOKENS,
        "in_text": ("<think>", "</think>"),
        "names": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "template": QWEN3,
    },
    "llama3": {
        "pattern": LLAMA3,
        "pre_tokenizer": split(LLAMA3),
        "special": LLAMA3_TOKENS,
        "ignore_merges": True,
        "names": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "template": "{{- bos_token }}" + LLAMA3_TURNS,
        "generation": ["<|end_of_text|>", "<|eot_id|>"],
        "post_processor": PUTS_BOS,
    },
    "llama3.1": {
        "pattern": LLAMA3,
        "pre_tokenizer": split(LLAMA3),
        "special": LLAMA3_TOKENS,
        "names": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "template": LLAMA3_DATES + LLAMA3_TURNS,
        "post_processor": PUTS_BOS,
    },
}
CHATS = [kind for kind in KINDS if kind != "gpt2"]


def train(pattern: str, merges: int = 200) -> tuple[list[str], list[list[str]]]:
    """Tokens and merges of TEXT, cut as the pattern says."""
    pieces = Counter(regex.findall(pattern, TEXT))
    words = [[BYTES.index(byte) for byte in piece.encode()] for piece in pieces]
    tokens = list(SYMBOLS)
    pairs = []
    for left, right in learn_merges(words, list(pieces.values()), merges):
        pairs.append([tokens[left], tokens[right]])
        tokens.append(tokens[left] + tokens[right])
    return tokens, pairs


def with_other_splits(tokens: list[str], pairs: list[list[str]]) -> list[list[str]]:
    """As in Llama 3's file, which lists every way to make a token of two."""
    known = set(tokens)
    merges = []
    for left, right in pairs:
        token = left + right
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known:
                merges.append([token[:cut], token[cut:]])
    return merges


def write(folder: Path, kind: str) -> Path:
    """A tokenizer's folder, as the hub has it."""
    rules = KINDS[kind]
    tokens, merges = train(rules["pattern"])
    tokens = [token for token in tokens if token != rules.get("lacks")]
    if rules.get("ignore_merges"):
        merges = with_other_splits(tokens, merges)
    added = []
    for text in (*rules["special"], *rules.get("in_text", ())):
        is_special = text in rules["special"]
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        number = len(tokens) + len(added)
        added.append({"id": number, "content": text, "special": is_special} | flags)
    ids = {token["content"]: token["id"] for token in added}
    post_processor = rules.get("post_processor", byte_level(True) | {"trim_offsets": False})
    if post_processor is PUTS_BOS:
        bos = "<|begin_of_text|>"
        entry = {"id": bos, "ids": [ids[bos]], "tokens": [bos]}
        post_processor = PUTS_BOS | {"special_tokens": {bos: entry}}
    content = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": rules.get("normalizer"),
        "pre_tokenizer": rules["pre_tokenizer"],
        "post_processor": post_processor,
        "decoder": byte_level(True),
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
            "ignore_merges": rules.get("ignore_merges", False),
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | rules.get("names", {})
    if "template" in rules:
        config["chat_template"] = rules["template"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if "generation" in rules:
        ends = {"eos_token_id": [ids[token] for token in rules["generation"]]}
        (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder
