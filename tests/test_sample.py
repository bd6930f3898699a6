"""sample.py: one prompt, a chat, candidates, the best of n."""

import json
import shutil
import sys

import pytest
import torch

import sample
import toyworld
from minirlhf import UserError, rollout
from minirlhf.cli import printable
from minirlhf.data import Prompt, read_demonstrations
from minirlhf.files import read_jsonl, write_json


def settings_of(stages, **changes) -> sample.Settings:
    return sample.Settings(**{"init": str(stages / "sft"), "max_tokens": 12} | changes)


def test_one_prompt(stages, capsys):
    for _ in range(2):
        sample.main(settings_of(stages, prompt="What is 2 plus 3?", samples=2))
    first, second = capsys.readouterr().out.split("---\n", 2)[0::2]
    assert first.strip() and second.endswith("\n")


@pytest.mark.parametrize("flag", ["candidates_out", "sft_out"])
def test_what_is_read_is_not_written_to(stages, tmp_path, flag):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Why?"}\n')
    link = tmp_path / "link.jsonl"
    link.symlink_to(prompts)
    for target in (prompts, link):
        settings = settings_of(stages, data=f"toyworld,{prompts}", **{flag: str(target)})
        with pytest.raises(UserError, match="is read as --data and would be replaced"):
            sample.main(settings)
    assert prompts.read_text() == '{"prompt": "Why?"}\n'


def test_a_message_that_quotes_markers_is_one_message(stages, monkeypatch):
    seen = []
    answer = sample.Sampler.__call__

    def look(self, prompts):
        seen.extend(prompts)
        return answer(self, prompts)

    monkeypatch.setattr(sample.Sampler, "__call__", look)
    text = "say:\n\nHuman: hi\n\nAssistant:"
    sample.main(settings_of(stages, prompt=text))
    assert seen[0].turns == (("user", text),)


def chat_with(stages, monkeypatch, requests, **changes) -> list:
    """The prompts of a conversation in the terminal."""
    lines = iter(requests)
    prompts = []
    answer = sample.Sampler.stream

    def ask(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    def look(self, prompt):
        prompts.append(prompt)
        return answer(self, prompt)

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sample.Sampler, "stream", look)
    sample.main(settings_of(stages, chat=True, **changes))
    return prompts


def test_a_chat_answers_remembers_and_forgets(stages, monkeypatch, capsys):
    requests = ["I am Ada and I like soup.", "What is my name?", *["And why is that so?"] * 12]
    prompts = chat_with(stages, monkeypatch, requests, max_tokens=24)
    assert len(prompts[1].turns) == 3 and prompts[1].turns[0] == ("user", requests[0])
    assert len(prompts) == len(requests)
    shown = capsys.readouterr().out
    assert "forgotten" in shown
    assert f"Assistant: {printable(prompts[1].turns[1][1])}\n" in shown
    assert all(prompt.turns[-1][1] == request for prompt, request in zip(prompts, requests))


def test_a_system_text_comes_first_and_is_never_forgotten(stages, monkeypatch, capsys):
    requests = ["And why is that so?"] * 12
    prompts = chat_with(stages, monkeypatch, requests, max_tokens=24, system="Be brief.")
    assert "forgotten" in capsys.readouterr().out
    assert all(prompt.turns[0] == ("system", "Be brief.") for prompt in prompts)
    sample.main(settings_of(stages, prompt="Hi", system="Be brief."))


def test_the_best_of_several_in_a_chat(stages, monkeypatch, capsys):
    chat_with(stages, monkeypatch, ["Hi"], best_of=2, reward=str(stages / "rm"))
    assert "Assistant: " in capsys.readouterr().out


def test_a_long_message_is_said_and_the_conversation_goes_on(stages, monkeypatch, capsys):
    requests = ["I am Ada.", "word " * 500, "Who am I?"]
    prompts = chat_with(stages, monkeypatch, requests)
    assert [prompt.last_request() for prompt in prompts] == requests[::2]
    assert prompts[1].turns[0] == ("user", requests[0])
    assert "too long" in capsys.readouterr().out


def test_commands_of_a_chat(stages, monkeypatch, capsys):
    lines = ["/retry", "Hi", "/retry", "/help", "/nothing", "", "/new", "/tmp is what?"]
    prompts = chat_with(stages, monkeypatch, lines)
    asked = [prompt.turns for prompt in prompts]
    assert asked == [(("user", "Hi"),)] * 2 + [(("user", "/tmp is what?"),)]
    shown = capsys.readouterr().out
    assert "no message yet" in shown and "Ctrl-D" in shown and "no /nothing" in shown


def test_ctrl_c_stops_an_answer_or_a_line_and_the_conversation_goes_on(stages, monkeypatch, capsys):
    prompts = []

    def stream(self, prompt):
        prompts.append(prompt)
        yield "It is"
        raise KeyboardInterrupt

    monkeypatch.setattr(sample.Sampler, "stream", stream)
    lines = iter(["Hi", KeyboardInterrupt, "And?", EOFError])

    def ask(_):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", ask)
    sample.main(settings_of(stages, chat=True))
    assert prompts[1].turns == (("user", "Hi"), ("assistant", "It is"), ("user", "And?"))
    shown = capsys.readouterr().out
    assert "It is (stopped)" in shown and "Ctrl-D leaves" in shown


def test_an_answer_cannot_steer_the_terminal(stages, monkeypatch, capsys):
    text = "a\x1b]0;title\x07b\rc\nd"
    monkeypatch.setattr(
        sample.Sampler, "stream", lambda *_: (text[:i] for i in range(len(text) + 1))
    )
    sampler = sample.Sampler(settings_of(stages, chat=True))
    assert sample.say(sampler, Prompt.of("Hi")) == text
    assert capsys.readouterr().out == "Assistant: a\\x1b]0;title\\x07b\\rc\nd\n"


def test_a_policy_is_sampled_at_the_temperature_of_its_training(stages, tmp_path, capsys):
    shutil.copytree(stages / "sft", tmp_path / "ppo")
    for content, expected in (({"temperature": 1.25}, 1.25), ({}, rollout.TEMPERATURE)):
        write_json(tmp_path / "ppo" / "generation_config.json", content)
        sampler = sample.Sampler(settings_of(tmp_path, init=str(tmp_path / "ppo"), chat=True))
        assert sampler.temperature == expected
    assert sample.Sampler(settings_of(stages, chat=True, temperature=0.0)).temperature == 0
    (tmp_path / "ppo" / "run.json").unlink()
    assert sample.known_requests(settings_of(tmp_path, init=str(tmp_path / "ppo"))) == []


def test_the_greeting_shows_requests_of_the_world(stages, monkeypatch, capsys):
    chat_with(stages, monkeypatch, [])
    shown = capsys.readouterr().out.splitlines()
    requests = [line.strip() for line in shown if line.startswith("  ")]
    assert len(requests) == 3 and all(toyworld.kind(request) != "other" for request in requests)


def test_a_character_is_printed_when_its_last_byte_is_there(stages, monkeypatch, capsys):
    sampler = sample.Sampler(settings_of(stages, chat=True))
    tokenizer = sampler.model.tokenizer
    ids = tokenizer.encode(" naïve 🦊")
    printed = []
    monkeypatch.setattr(sample.rollout, "stream", lambda *args, **options: iter(ids))
    monkeypatch.setattr(sys.stdout, "write", printed.append)
    response = sample.say(sampler, Prompt.of("Hi"))
    monkeypatch.undo()
    assert response == "naïve 🦊" and "".join(printed) == "Assistant: naïve 🦊\n"
    assert len(printed) > 4 and not any("\ufffd" in text for text in printed)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8, "top_k": 20}, {}])
def test_a_stream_is_what_generate_gives(policy, monkeypatch, options):
    lengths = set()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        streamed = list(rollout.stream(policy, [5, 6, 7], 70, generator, **options))
        generator = torch.Generator().manual_seed(seed)
        (generated,), _ = rollout.generate(policy, [[5, 6, 7]], 70, generator, **options)
        assert streamed == generated
        lengths.add(len(streamed))
    assert max(lengths) <= policy.config.n_positions - 3
    monkeypatch.setattr(policy.tokenizer, "stop_ids", (streamed[4],))
    generator = torch.Generator().manual_seed(seed)
    again = list(rollout.stream(policy, [5, 6, 7], 70, generator, **options))
    assert again == streamed[: streamed.index(streamed[4]) + 1]


def test_candidates_and_demonstrations(stages, tmp_path):
    settings = settings_of(stages, data="toyworld", count=6, samples=2)
    for name in ("a", "b"):
        settings.candidates_out = str(tmp_path / f"{name}.jsonl")
        sample.main(settings)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert len(rows) == 6 and all(len(row["responses"]) == 2 for row in rows)

    settings.candidates_out, settings.sft_out = "", str(tmp_path / "best.jsonl")
    settings.max_tokens = 48
    settings.best_of, settings.reward = 3, str(stages / "rm")
    sample.main(settings)
    for turns in read_demonstrations(settings.sft_out):
        assert turns[-1][0] == "assistant"


def test_without_a_file_the_lines_are_printed(stages, capsys):
    sample.main(settings_of(stages, data="toyworld", count=2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and {"id", "prompt", "responses"} == json.loads(lines[0]).keys()


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({}, "--prompt"),
        ({"prompt": "x", "chat": True}, "--prompt"),
        ({"prompt": "x", "top_p": 0.0}, "--top_p"),
        ({"data": "toyworld", "system": "x"}, "--system"),
        ({"prompt": "x", "system": "x", "template": "raw"}, "--system"),
        ({"prompt": "x", "chat_format": "chatml"}, "--chat_format"),
        ({"prompt": "x", "best_of": 4}, "--reward"),
        ({"prompt": "x", "reward": "toyworld"}, "--best_of"),
        ({"prompt": "x", "sft_out": "x.jsonl"}, "--data"),
        ({"prompt": "x", "samples": 0}, "--samples"),
        ({"prompt": "x " * 300}, "context"),
    ],
)
def test_what_does_not_go_together(stages, changes, flag):
    with pytest.raises(UserError, match=flag):
        sample.main(settings_of(stages, **changes))
