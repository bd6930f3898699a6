"""examples/one_step.py: its numbers are those of training, and nothing of a model's is HTML."""

import pytest
import torch

import train_ppo
from examples import one_step
from minirlhf import UserError
from minirlhf.data import Prompt, Ranking, read_prompts
from minirlhf.device import open_model
from minirlhf.model import GPT, ScalarGPT


def test_a_page_and_a_short_form(stages, tmp_path, capsys):
    page = tmp_path / "new" / "one_step.html"
    folders = {"init": str(stages / "sft"), "reward": str(stages / "rm")}
    one_step.main(one_step.Settings(**folders, out=str(page)))
    text = page.read_text()
    assert text.count("<h3>Response") == one_step.REQUESTS
    for paper in ("Ziegler 2019", "Schulman 2017", "Rafailov 2023", "Ouyang 2022"):
        assert paper in text
    shown = capsys.readouterr().out
    assert "policy_loss" in shown and "DPO" in shown and "rank 1" in shown and str(page) in shown


def test_tokens_add_up_to_scores_and_losses(stages):
    folders = {"init": str(stages / "sft"), "reward": str(stages / "rm")}
    ppo = train_ppo.complete(train_ppo.Settings(max_tokens=16, **folders))
    policy = open_model(GPT, ppo.init, "cpu")
    value = open_model(ScalarGPT, ppo.reward, "cpu")
    prompts = read_prompts("toyworld", count=3, seed=1)
    step = one_step.second_ppo_step(ppo, prompts, policy, value)
    numbers, mask = step.numbers, step.batch.mask
    assert numbers["kl"].abs().sum() > 0
    rewards = step.scores - ppo.kl_coef * numbers["kl"].sum(1)
    torch.testing.assert_close(numbers["reward"].sum(1), rewards)
    assert step.before["policy_loss"] == pytest.approx(0, abs=1e-6)
    for name in ("policy", "value"):
        share = numbers[f"{name}_share"]
        assert float(share.sum()) == pytest.approx(step.after[f"{name}_loss"], abs=1e-6)
        assert not share[~mask].any()


def test_pairs_of_a_ranking_and_what_a_step_does(stages):
    settings = one_step.Settings(init=str(stages / "sft"), reward=str(stages / "rm"))
    prompt = Prompt.of("What does a cow say?")
    ranking = Ranking(prompt, ["Moo.", "A cow.", "<b>", "No."], [1, 2, 3, 3], "a test")
    ranked = one_step.ranking_step(settings, ranking)
    assert int((~ranked.pair_losses.isnan()).sum()) == 5  # of six, one is a tie
    assert float(ranked.pair_losses.nanmean()) == pytest.approx(ranked.loss[0])
    assert ranked.loss[1] < ranked.loss[0]

    pair = one_step.dpo_step(settings, ranking)
    assert pair.loss[0] == pytest.approx(torch.tensor(2.0).log().item())
    assert pair.loss[1] < pair.loss[0] and pair.margins[1] > 0
    margin = 0.1 * (pair.log_ratio[0].sum() - pair.log_ratio[1].sum())
    assert pair.margins[1] == pytest.approx(float(margin), abs=1e-4)

    html = one_step.ranking_html(ranking, ranked)
    assert "<b>" not in html and "&lt;b&gt;" in html


def test_a_missing_folder_is_a_sentence_with_the_command(stages, tmp_path):
    missing = str(tmp_path / "sft")
    with pytest.raises(UserError, match="train_sft"):
        one_step.main(one_step.Settings(init=missing))
    with pytest.raises(UserError, match="train_rm"):
        one_step.main(one_step.Settings(init=str(stages / "sft"), reward=missing))
