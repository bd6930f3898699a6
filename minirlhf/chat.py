"""Chat formats: how the turns of a conversation become one text.

    plain     \\n\\nHuman: Hi\\n\\nAssistant: Hello.<|endoftext|>
    chatml    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello.<|im_end|>
    llama3    <|start_header_id|>user<|end_header_id|>\\n\\nHi<|eot_id|>...

A format is a handful of strings. What a model adds of its own (a default system text, dates, an
empty thought) is measured: the folder's Jinja template renders a few conversations, and ours must
render the same.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import Template
from typing import NamedTuple

from minirlhf.files import to_json

# Roles are "system", "user", "assistant"; "context", which is an assistant's turn that SFT does not
# learn; and "text", a raw prompt that the model continues as it is. "system" and "text" can only
# come first. (("text", ""),) is the empty prompt.
Turn = tuple[str, str]
Turns = tuple[Turn, ...]

USER_HEADER, ASSISTANT_HEADER = "\n\nHuman:", "\n\nAssistant:"


def is_raw(turns: Turns) -> bool:
    """Whether the model continues a text instead of answering in a conversation."""
    return turns[0][0] == "text"


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    is_markup: bool  # the format's own: special tokens in it count. In a message they are text
    supervised: bool = False  # the assistant's words and the end of its turn


@dataclass(frozen=True)
class ChatFormat:
    """The strings around messages. Special tokens are written out."""

    name: str
    headers: dict[str, str]  # role -> what stands before its message
    footer: str = ""  # behind a message of the system's or the user's
    end: str = ""  # the token that ends the assistant's turn
    between: str = ""  # between that token and the next turn
    space: str = ""  # before the assistant's words, if there are any
    trims: bool = False  # whether messages lose the blanks around them
    bos: str = ""  # before a conversation
    text_bos: str = ""  # before a raw text
    before_system: str = ""  # how every system text begins: Llama 3.1's dates
    default_system: str | None = None  # for a conversation that has none; None: it stays without
    thought: str = ""  # opens the last answer: Qwen3's empty thought. Not supervised

    def pieces(self, turns: Turns) -> Iterator[Piece]:
        """A conversation, up to the end of its last turn."""
        raw = is_raw(turns)
        yield Piece(self.text_bos if raw else self.bos, is_markup=True)
        if turns[0] == ("text", "") and not self.text_bos:
            yield Piece(self.end, is_markup=True)  # a fresh text follows the end of another
        if not raw and turns[0][0] != "system" and self.default_system is not None:
            yield from self.message("system", self.default_system)
        previous = ""
        for number, (role, text) in enumerate(turns, 1):
            if previous in ("assistant", "context"):
                yield Piece(self.between, is_markup=True)
            if role == "text":
                yield Piece(text, is_markup=False)
            elif role in ("assistant", "context"):
                if not raw:
                    yield Piece(self.header(is_last=number == len(turns)), is_markup=True)
                for piece in self.answer(turns, text):
                    yield piece._replace(supervised=role == "assistant")
            else:
                yield from self.message(role, text)
            previous = role

    def message(self, role: str, text: str) -> Iterator[Piece]:
        """A turn of the system's or the user's."""
        header = self.headers[role]
        if role == "system":
            header += self.before_system
        yield Piece(header, is_markup=True)
        yield Piece(self.trimmed(text), is_markup=False)
        yield Piece(self.footer, is_markup=True)

    def header(self, is_last: bool) -> str:
        """What stands before the assistant's words."""
        if is_last:
            return self.headers["assistant"] + self.thought
        return self.headers["assistant"]

    def answer(self, prompt: Turns, text: str) -> Iterator[Piece]:
        """Two pieces: the assistant's words and the end of its turn."""
        if not is_raw(prompt):
            text = self.trimmed(text)
            if text:
                text = self.space + text
        yield Piece(text, is_markup=False, supervised=True)
        yield Piece(self.end, is_markup=True, supervised=True)

    def trimmed(self, text: str) -> str:
        return text.strip() if self.trims else text

    def prompt(self, turns: Turns) -> list[Piece]:
        """All turns and the header behind which the assistant speaks."""
        pieces = list(self.pieces((*turns, ("assistant", ""))))
        return pieces[:-2]  # without the empty answer

    def text(self, turns: Turns) -> str:
        return "".join(piece.text for piece in self.pieces(turns))

    def prompt_text(self, turns: Turns) -> str:
        return "".join(piece.text for piece in self.prompt(turns))

    def markup(self) -> str:
        """All of the format's own strings."""
        return self.text((("system", ""), ("user", ""), ("assistant", "")))

    def template(self) -> str:
        """The same as a Jinja template for transformers, vLLM and others."""
        system = [] if self.default_system is None else self.message("system", self.default_system)
        strings = asdict(self) | {"opening": self.bos + "".join(piece.text for piece in system)}
        return JINJA.substitute({name: to_json(value) for name, value in strings.items()})


ROLES = ("system", "user", "assistant")

PLAIN = ChatFormat(
    name="plain",  # its end is the tokenizer's own EOS
    headers={"system": "", "user": USER_HEADER + " ", "assistant": ASSISTANT_HEADER},
    space=" ",
)
CHATML = ChatFormat(
    name="chatml",
    headers={role: f"<|im_start|>{role}\n" for role in ROLES},
    footer="<|im_end|>\n",
    end="<|im_end|>",
    between="\n",
)
LLAMA3 = ChatFormat(
    name="llama3",
    headers={role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ROLES},
    footer="<|eot_id|>",
    end="<|eot_id|>",
    trims=True,
    bos="<|begin_of_text|>",
)
FORMATS = {chat.name: chat for chat in (PLAIN, CHATML, LLAMA3)}

# ---------------------------------------------------------------------- Jinja templates

JINJA = Template("""\
{%- set headers = $headers %}
{{- $bos if messages[0]['role'] == 'system' else $opening }}
{%- for message in messages %}
    {%- set text = message['content'] | trim if $trims else message['content'] %}
    {%- if message['role'] == 'assistant' %}
        {{- headers['assistant'] }}
        {{- $thought if loop.last else '' }}
        {%- generation %}
        {{- $space + text if text else '' }}
        {{- $end }}
        {%- endgeneration %}
        {{- '' if loop.last and not add_generation_prompt else $between }}
    {%- else %}
        {{- headers[message['role']] }}
        {{- $before_system if message['role'] == 'system' else '' }}
        {{- text + $footer }}
    {%- endif %}
{%- endfor %}
{{- headers['assistant'] + $thought if add_generation_prompt else '' }}""")

RENDERER = Path(__file__).with_name("template_renderer.py")
RENDERING_SECONDS = 60  # before a template is given up; on a busy machine a good one took 8

HI = (("user", "hi"),)
OBEY_HI = (("system", "obey"), ("user", "hi"))
BLANK_HI = (("user", " hi "),)
PROBES: tuple[Turns, ...] = (
    (("user", " One?\n"),),
    (("system", " Be brief.\n"), ("user", "One?")),
    (("user", "One?"), ("assistant", " Two. "), ("user", "Three?"), ("assistant", "Four.\n")),
    (("system", ""), ("user", "One?"), ("assistant", ""), ("user", "Two?"), ("assistant", "")),
    (("user", ""), ("assistant", "One."), ("user", "Two?"), ("assistant", "3"), ("user", "4?")),
)
Texts = dict[tuple[Turns, bool], str]  # of conversations, True: with the header of an answer


@functools.lru_cache
def recognise(template: str, bos_token: str = "", eos_token: str = "") -> ChatFormat | None:
    """The format that renders as a folder's Jinja template does; None: none of ours.

    bos_token, eos_token: what the template gets under these names.
    """
    formats = (replace(PLAIN, end=eos_token), CHATML, LLAMA3)
    for known in formats:
        if template == known.template():
            return known
    texts = render(template, bos_token, eos_token)
    for known in formats if texts else ():
        chat = measure(known, texts, bos_token)
        if all(renders_as(chat, texts, turns) for turns in PROBES):
            return chat
    return None


def render(template: str, bos_token: str, eos_token: str) -> Texts:
    """What a template makes of the conversations above; {} if it fails on any, or takes long."""
    keys = [(HI, False), (HI, True), (OBEY_HI, False), (BLANK_HI, False)]
    keys += [(turns, is_open(turns)) for turns in PROBES]
    conversations = []
    for turns, asks in keys:
        messages = [{"role": role, "content": text} for role, text in turns]
        conversations.append((messages, asks))
    variables = {"bos_token": bos_token, "eos_token": eos_token, "enable_thinking": False}
    request = {"template": template, "variables": variables, "conversations": conversations}
    try:
        done = subprocess.run(
            [sys.executable, "-P", RENDERER],  # -P: this folder's modules are none of Jinja's
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=RENDERING_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode != 0:
        return {}
    return dict(zip(keys, json.loads(done.stdout)))


def measure(known: ChatFormat, texts: Texts, bos_token: str) -> ChatFormat:
    """A format with the additions of a template of its kind; of another kind's, nonsense."""
    hi = "".join(piece.text for piece in known.message("user", "hi"))
    alone = texts[HI, False]
    opening = alone.removesuffix(hi)
    header = known.headers["system"]
    has_bos = opening == bos_token or opening.startswith(bos_token + header)
    bos = bos_token if has_bos else ""
    before_system = texts[OBEY_HI, False].removeprefix(bos + header)
    before_system = before_system.removesuffix("obey" + known.footer + hi)
    default_system = None
    if opening != bos:
        default_system = opening.removeprefix(bos + header + before_system)
        default_system = default_system.removesuffix(known.footer)
    return replace(
        known,
        bos=bos,
        before_system=before_system,
        default_system=default_system,
        thought=texts[HI, True].removeprefix(alone + known.headers["assistant"]),
        trims=texts[BLANK_HI, False] == alone,
    )


def is_open(turns: Turns) -> bool:
    return turns[-1][0] == "user"


def renders_as(chat: ChatFormat, texts: Texts, turns: Turns) -> bool:
    text = texts[turns, is_open(turns)]
    if is_open(turns):
        return text == chat.prompt_text(turns)
    return text in (chat.text(turns), chat.text(turns) + chat.between)
