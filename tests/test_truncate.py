"""--truncate cuts what is too long: prompts at their beginning, responses at their end."""

import json

import pytest
from conftest import tiny

import train_dpo
from minirlhf import preferences, rollout, supervised
from minirlhf.data import Prompt, Ranking
from minirlhf.truncate import encode, shorten_prompt

LONG = " ".join(f"word{i}" for i in range(60))


def test_old_turns_go_first_and_the_system_turn_stays(tokenizer):
    turns = (
        ("system", "Be brief."),
        ("user", LONG),
        ("assistant", "yes"),
        ("user", "What is rust?"),
        ("assistant", "Iron and air."),
        ("user", "And verdigris?"),
    )
    length = len(tokenizer.encode_prompt(turns))
    assert shorten_prompt(tokenizer, turns, length) == turns
    shorter = shorten_prompt(tokenizer, turns, length - 1)
    assert shorter == (turns[0], *turns[3:])
    room = len(tokenizer.encode_prompt(shorter)) - 1
    assert shorten_prompt(tokenizer, turns, room) == (turns[0], turns[5])


@pytest.mark.parametrize("text", [LONG, "é" * 60])
@pytest.mark.parametrize("role", ["user", "text"])
def test_a_long_request_keeps_its_end(tokenizer, role, text):
    (((kept_role, kept),)) = shorten_prompt(tokenizer, ((role, text),), 40)
    assert kept_role == role and text.endswith(kept) and kept
    assert 30 < len(tokenizer.encode_prompt(((role, kept),))) <= 40


def test_conversations_that_begin_with_the_assistant_are_cut_too(policy):
    says = ("assistant", LONG)
    cut = supervised.to_rows(policy, [(says,), (("system", LONG), says)], cut=True)
    assert len(cut[0][0]) == policy.config.n_positions and any(cut[0][1])


def test_a_prompt_gives_way_until_it_has_half_of_the_context(tokenizer, capsys):
    texts = [((("user", LONG),), [LONG, "no"]), ((("user", "hi"),), ["yes", "no"])]
    (prompt, (response, short)), fitting = encode(tokenizer, texts, 64, "pairs", cut=True)
    assert 24 < len(prompt) <= 32 and len(prompt) + len(response) == 64
    assert short == tokenizer.encode_response((("user", LONG),), "no")
    whole = tokenizer.encode_response((("user", LONG),), LONG)
    assert response == whole[: len(response)]  # without EOS: nobody stopped there
    assert fitting == encode(tokenizer, texts[1:], 64, "pairs", cut=False)[0]
    assert "1 of 2 pairs cut to 64 tokens" in capsys.readouterr().out


def test_every_stage_keeps_what_it_would_leave_out(policy, capsys, tmp_path):
    tokenizer, context = policy.tokenizer, policy.config.n_positions
    short, long = (("user", "hi"), ("assistant", "yes")), (("user", LONG), ("assistant", LONG))
    no_room = (("system", LONG), *short)
    assert len(supervised.to_rows(policy, [short, long])) == 1
    _, row = supervised.to_rows(policy, [short, long, no_room], cut=True)
    ids, mask = row
    assert len(ids) == context and mask[-1] and tokenizer.eos_id not in ids
    said = capsys.readouterr().out
    assert "1 of 3 demonstrations cut" in said and "1 of 3 demonstrations skipped" in said

    rankings = []
    for request in ("hi", LONG):
        rankings.append(Ranking(Prompt.of(request), ["yes", LONG], [1, 2], "here"))
    groups = preferences.to_groups(tokenizer, rankings, context, cut=True)
    assert [group.longest() for group in groups] == [context, context]
    assert all(ids[-1] == tokenizer.eos_id for group in groups for ids in group.responses)

    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": LONG, "chosen": "yes", "rejected": LONG}) + "\n")
    settings = train_dpo.Settings(data=str(data), truncate=True)
    (item,) = train_dpo.read(settings, policy)
    assert item.longest() == context and item.responses[0][-1] == tokenizer.eos_id

    prompts = [Prompt.of("hi"), Prompt.of(LONG)]
    assert len(rollout.prompts_that_fit(policy, prompts, 16)) == 1
    said = capsys.readouterr().out
    assert f"the context of {context} less --max_tokens 16" in said and "--truncate" in said
    cut = rollout.prompts_that_fit(policy, prompts, 16, cut=True)
    assert len(cut) == 2 and cut[1].source == LONG and cut[1].turns[-1][1] in LONG
    assert "1 of 2 prompts cut to 48 tokens" in capsys.readouterr().out


def test_a_row_of_a_raw_prompt_is_cut_too(tokenizer):
    model = tiny(tokenizer, n_positions=32)
    ((ids, mask),) = supervised.to_rows(model, [(("text", LONG), ("assistant", "yes"))], cut=True)
    assert len(ids) <= 32 and ids[-1] == tokenizer.eos_id and mask[-1] and not mask[0]
