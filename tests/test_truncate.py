"""--truncate cuts what is too long: prompts at their beginning, responses at their end."""

import pytest

from minirlhf import preferences, rollout, supervised
from minirlhf.data import Prompt, Ranking
from minirlhf.truncate import shorten, shorten_prompt

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


@pytest.mark.parametrize("turns", [(("user", LONG),), (("text", LONG),)])
def test_a_long_request_keeps_its_end(tokenizer, turns):
    (((role, text),)) = shorten_prompt(tokenizer, turns, 40)
    assert role == turns[0][0] and LONG.endswith(text) and text.endswith("word59")
    assert 30 < len(tokenizer.encode_prompt(((role, text),))) <= 40


def test_a_prompt_gives_way_until_it_has_half_of_the_context(tokenizer):
    prompt = (("user", LONG),)
    shorter, (response, short) = shorten(tokenizer, prompt, [LONG, "no"], 64)
    assert short == "no" and LONG.startswith(response.removeprefix(" ")[:20])
    assert 24 < len(tokenizer.encode_prompt(shorter)) <= 32
    for text in (response, short):
        ids = tokenizer.encode_prompt(shorter) + tokenizer.encode_response(shorter, text)
        assert len(ids) <= 64
    kept, texts = shorten(tokenizer, (("user", "hi"),), ["yes", "no"], 64)
    assert (kept, texts) == ((("user", "hi"),), ["yes", "no"])


def test_every_stage_keeps_what_it_would_leave_out(policy, capsys):
    tokenizer, context = policy.tokenizer, policy.config.n_positions
    demonstrations = [(("user", "hi"), ("assistant", "yes")), (("user", LONG), ("assistant", LONG))]
    assert len(supervised.to_rows(policy, demonstrations)) == 1
    rows = supervised.to_rows(policy, demonstrations, cut=True)
    assert [len(ids) <= context for ids, _ in rows] == [True, True]
    assert any(rows[1][1]) and rows[1][0][-1] == tokenizer.eos_id

    rankings = []
    for _, request in demonstrations[0][:1] + demonstrations[1][:1]:
        rankings.append(Ranking(Prompt.of(request), ["yes", LONG], [1, 2], "here"))
    assert preferences.to_groups(tokenizer, rankings[1:] + rankings[1:], 10**6)
    groups = preferences.to_groups(tokenizer, rankings, context, cut=True)
    assert [group.longest() <= context for group in groups] == [True, True]

    prompts = [Prompt.of("hi"), Prompt.of(LONG)]
    assert len(rollout.prompts_that_fit(policy, prompts, 16)) == 1
    said = capsys.readouterr().out
    assert f"the context of {context} less --max_tokens 16" in said and "--truncate" in said
    cut = rollout.prompts_that_fit(policy, prompts, 16, cut=True)
    assert len(cut) == 2 and cut[1].source == LONG and cut[1].turns[-1][1] in LONG
