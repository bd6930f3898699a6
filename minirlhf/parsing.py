"""Texts and messages -> turns (see chat.py). A text is parsed here, once.

With hh-rlhf's markers a text is a dialogue, without them one user turn, with --template raw a text
that the model continues. Messages are OpenAI's or ShareGPT's; what they say is never parsed.
"""

import re
from typing import Any

from minirlhf import UserError
from minirlhf.chat import ASSISTANT_HEADER, USER_HEADER, Turns

# names of roles, in small letters -> ours
ROLES = dict.fromkeys(("user", "human", "prompter"), "user")
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant")
ROLES |= dict.fromkeys(("system", "developer"), "system")
TOOLS = {"tool", "function", "observation", "ipython", "function_call", "tool_call"}
TOOLS |= {"function_response", "tool_response"}
LEARNT = ("weight", "loss_mask", "loss", "train")  # where a message says whether SFT learns it
MESSAGE_FIELDS = {"role", "content", "from", "value", *LEARNT}


class Skip(UserError):
    """Raised to skip a well-formed record without use; it is counted under this message."""


def parse(source: Any, template: str = "chat") -> Turns:
    if isinstance(source, dict):
        source = [source]
    if isinstance(source, list):
        return parse_messages(source)
    if not isinstance(source, str):
        raise UserError(f"must be a text or a list of messages, not {kind_of(source)}")
    if template == "raw":
        return (("text", source),)
    if template != "chat":
        raise UserError(f"--template {template}: choose from chat, raw")
    if has_markers(source):
        return parse_dialogue(source)
    if not source.strip():
        raise Skip("an empty text")
    return (("user", source),)


def has_markers(text: str) -> bool:
    return USER_HEADER in text or ASSISTANT_HEADER in text


def parse_dialogue(text: str) -> Turns:
    """hh-rlhf's form -> turns. A text before the first marker is a system text."""
    if text.startswith(USER_HEADER.strip()):  # a file that strips its texts
        text = "\n\n" + text
    before, *pieces = re.split(f"({USER_HEADER}|{ASSISTANT_HEADER})", text)
    turns = [("system", before)] if before else []
    for header, content in zip(pieces[::2], pieces[1::2]):
        role = "user" if header == USER_HEADER else "assistant"
        turns.append((role, content.removeprefix(" ")))
    return tuple(turns)


def parse_messages(source: list) -> Turns:
    turns = []
    for number, message in enumerate(source, 1):
        if not isinstance(message, dict):
            raise UserError(f"message {number} must be an object with 'role' and 'content'")
        role = role_of(message)
        if role == "tool":
            raise Skip("tool calls, which no chat format here has")
        if role not in ("system", "user", "assistant"):
            raise UserError(f"message {number} has role {role!r:.40}; use system, user, assistant")
        text = message_text(message, number)
        if role == "system" and turns:
            if [earlier for earlier, _ in turns] != ["system"]:
                raise Skip("a system message behind the first turn")
            turns = [("system", turns[0][1] + "\n\n" + text)]
        elif role == "assistant" and not is_learnt(message, number):
            turns.append(("context", text))
        else:
            turns.append((role, text))
    if not turns:
        raise Skip("an empty list of messages")
    return tuple(turns)


def role_of(message: dict) -> str:
    """ "user", "assistant", "system", "tool", or a name that is none of ours."""
    name = message.get("role") or message.get("from")  # ShareGPT says from
    if not isinstance(name, str):
        return repr(name)
    if name.lower() in TOOLS or message.get("tool_calls") or message.get("function_call"):
        return "tool"
    return ROLES.get(name.lower(), name)


def is_learnt(message: dict, number: int) -> bool:
    for name in LEARNT:
        value = message.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise UserError(
                f"message {number}: {name!r} is {value!r:.40}; write 1 to learn it, or 0"
            )
        if not value:
            return False
    return True


def message_text(message: dict, number: int) -> str:
    """A message's text, which OpenAI's format also divides into parts."""
    content = message.get("content")
    if content is None:
        content = message.get("value")  # ShareGPT
    if content is None:
        raise Skip("a message without content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"message {number}: 'content' must be a text, not {kind_of(content)}")
    text = ""
    for part in content:
        if isinstance(part, dict):
            if part.get("type", "text") != "text":
                raise Skip(f"a message with a part of type {part['type']!r:.40}")
            part = part.get("text")
        if not isinstance(part, str):
            raise UserError(f"message {number}: a part of 'content' has no text")
        text += part
    return text


def messages(turns: Turns) -> list[dict]:
    """Turns as other libraries and chat endpoints take them."""
    names = {"text": "user", "context": "assistant"}
    return [{"role": names.get(role, role), "content": text} for role, text in turns]


def kind_of(value: Any) -> str:
    names = {str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number or bool")
