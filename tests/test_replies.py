"""Thoughts are no answer, and a verdict is read where there is one and never guessed."""

import math

import pytest

from minirlhf.feedback.replies import (
    TryAgain,
    read_logprobs,
    read_reply,
    read_verdict,
    without_thoughts,
)


def reply_of(content, end: str = "stop", **message) -> dict:
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": end}]}


@pytest.mark.parametrize(
    "text, answer",
    [
        ("B.", "B."),
        ("<think>A? No.</think>\nB", "B"),
        ("A? No.</think>B", "B"),  # some servers drop the first tag
        ("<think>A, or perhaps", ""),
        ("[THINK]A?[/THINK]B", "B"),
        ("<|channel|>analysis<|message|>A?<|end|><|channel|>final<|message|>B", "B"),
        ("<|channel|>analysis<|message|>A?", ""),
        ("<Thinking>A</Thinking>B", "B"),
    ],
)
def test_thoughts_are_no_answer(text, answer):
    assert without_thoughts(text) == answer


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("A", 1.0),
        ("b", 0.0),
        ("**B**", 0.0),
        ("(A)", 1.0),
        ("\\boxed{B}", 0.0),
        ("Answer: B", 0.0),
        ("The better response is B.", 0.0),
        ("Response A", 1.0),
        ('{"answer": "B"}', 0.0),
        ("I would choose A.", 1.0),
        ("B is better because it is short.", 0.0),
        ("Both are kind. B is shorter.\nB", 0.0),
        ("I like both A and B", None),
        ("Neither.", None),
        ("C", None),
        ("A or B?", None),
        ("As a language model", None),
        ("A\nOn reflection:\nB", None),
        ("", None),
    ],
)
def test_verdicts(text, verdict):
    assert read_verdict(text) == verdict


def test_a_verdict_that_may_go_on_is_none():
    assert read_verdict("A", is_cut=True) is None
    assert read_verdict("B\nbecause it is", is_cut=True) == 0.0


def test_log_probs():
    assert read_logprobs([("A", math.log(0.3)), ("B", math.log(0.1))]) == pytest.approx(0.75)
    assert read_logprobs([(" A", -0.1), ("The", -3.0)]) == 1.0
    assert read_logprobs([("The", -0.1), ("A", math.log(0.01))]) is None
    assert read_logprobs([("A", math.nan)]) is None
    assert read_logprobs([]) is None


def test_replies_as_servers_give_them():
    parts = [{"type": "thinking", "thinking": "A?"}, {"type": "text", "text": "B"}]
    assert read_reply(reply_of(parts)).text == "B"
    reply = read_reply(reply_of("B", reasoning_content="A?"))
    assert (reply.text, reply.thinks, reply.problem) == ("B", True, "")
    for content, end, problem in [
        (None, "stop", "empty"),
        ("", "stop", "empty"),
        ("<think>A", "stop", "thoughts alone"),
        ("A lon", "length", "cut off"),
        ("A", "content_filter", "filtered"),
    ]:
        assert read_reply(reply_of(content, end)).problem == problem
    assert read_reply(reply_of(None, refusal="I cannot.")).problem == "refused"
    assert "\ud800" not in read_reply(reply_of("half \ud800 a character")).text
    for body in ({}, {"choices": None}, {"choices": []}, {"choices": [{"message": None}]}):
        with pytest.raises(TryAgain):
            read_reply(body)
    with pytest.raises(TryAgain):
        read_reply(reply_of("", end="error"))
