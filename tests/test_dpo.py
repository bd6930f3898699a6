"""DPO and its relatives: formulas against hand-made values and exact identities, the script against what must hold."""
import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file
from torch.autograd import gradcheck

import train_dpo
from minirlhf import UserError, losses
from minirlhf.data import distinct, good_and_bad, read_labelled, read_rankings
from minirlhf.model import GPT
from minirlhf.run import Run, read_jsonl, seed_of

PROMPTS = ["What is 2 + 3?", "Tell me of a fox.", "Why not?", "Tell me of a dog.", "Tell me of the cat.", "Who ran home?"]
TEXTS = ["It is 5.", "The fox ran home.", "Because it can't.", "The dog slept by the fire, and the cat looked on."]
SMALL = {"steps": 6, "batch_size": 3, "validation": 0.3, "eval_every": 3, "eval_samples": 3, "max_tokens": 6, "save_every": 2,
         "lr": 1e-3, "warmup": 1, "temperature": 1.0}


def f64(*x):
    return torch.tensor(x, dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# --- the losses by hand

def test_simpo_by_hand():
    loss, chosen, rejected = losses.simpo_loss(f64(-4.0), f64(-9.0), f64(2.0), f64(3.0), beta=2.0, margin=0.5)
    assert (chosen.item(), rejected.item()) == (-4.0, -6.0)
    assert loss.item() == pytest.approx(-math.log(sigmoid(-4 + 6 - 0.5)))


def test_orpo_by_hand():
    p, q = 0.5, 0.2                                          # per token, geometric means over 2 and 3 tokens
    loss, chosen, rejected = losses.orpo_loss(f64(2 * math.log(p)), f64(3 * math.log(q)), f64(2.0), f64(3.0), beta=0.3)
    odds, other = p / (1 - p), q / (1 - q)
    assert chosen.item() == pytest.approx(math.log(odds), abs=1e-12) and rejected.item() == pytest.approx(math.log(other))
    assert loss.item() == pytest.approx(-math.log(p) - 0.3 * math.log(sigmoid(math.log(odds / other))))


def test_orpo_survives_a_certain_response():
    x = torch.zeros(1, requires_grad=True)
    loss, *_ = losses.orpo_loss(x, torch.tensor([-5.0]), torch.ones(1), torch.ones(1), 0.1)
    loss.sum().backward()
    assert loss.isfinite().all() and x.grad.isfinite().all()


def test_kto_by_hand():
    policy, ref, good = f64(-3.0, -3.0, -8.0), f64(-5.0, -5.0, -6.0), torch.tensor([True, False, False])
    loss, reward = losses.kto_loss(policy, ref, good, 1.5, beta=0.4, bad_weight=2.0)
    assert torch.allclose(reward, f64(0.8, 0.8, -0.8))
    assert torch.allclose(loss, f64(1 - sigmoid(0.8 - 0.6), 2 * (1 - sigmoid(0.6 - 0.8)), 2 * (1 - sigmoid(0.6 + 0.8))))
    start, _ = losses.kto_loss(ref, ref, good, 0.0, beta=0.4)
    assert torch.equal(start, torch.full((3,), 0.5, dtype=torch.float64))


def test_robust_by_hand_and_unbiased_under_flips():
    pc, pr, rc, rr = (rand(5, seed=s) for s in range(4))
    for flip in (0.1, 0.4):
        clean, *_ = losses.dpo_loss(pc, pr, rc, rr, 0.7)
        right, *_ = losses.dpo_loss(pc, pr, rc, rr, 0.7, flip, "robust")
        wrong, *_ = losses.dpo_loss(pr, pc, rr, rc, 0.7, flip, "robust")
        assert torch.allclose((1 - flip) * right + flip * wrong, clean)            # the mean over noisy labels
    loss, *_ = losses.dpo_loss(f64(1.0), f64(0.0), f64(0.0), f64(0.0), 1.0, 0.2, "robust")
    assert loss.item() == pytest.approx((-0.8 * math.log(sigmoid(1)) + 0.2 * math.log(sigmoid(-1))) / 0.6)
    with pytest.raises(ValueError, match=r"label_smoothing 0\.5"):
        losses.dpo_loss(pc, pr, rc, rr, 0.7, 0.5, "robust")


def test_plackett_luce_by_hand_with_ties_and_absent_responses():
    scores = f64(*range(8)).reshape(2, 4) / 3
    ranks, mask = torch.tensor([[2, 1, 4, 3], [1, 1, 2, 9]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    found = losses.plackett_luce_loss(scores, losses.untied_pairs(ranks, mask))
    w = scores.exp()
    ordered = w[0][[1, 0, 3, 2]]
    first = -sum(math.log(ordered[i] / ordered[i:].sum()) for i in range(3))
    second = -sum(math.log(w[1, i] / (w[1, i] + w[1, 2])) for i in (0, 1))         # tied: each against what is below
    assert found.tolist() == pytest.approx([first, second])


# --- gradients and identities

LOGPS, REFS, LENGTHS = (-4 - rand(6, seed=1).abs(), -4 - rand(6, seed=2).abs()), (rand(6, seed=3), rand(6, seed=4)), (
    torch.arange(1, 7).double(), torch.arange(6, 0, -1).double())
RANKS, PRESENT = torch.tensor([[1, 2, 3, 4], [2, 1, 1, 3], [3, 1, 2, 9]]), torch.tensor([[1] * 4, [1] * 4, [1, 1, 1, 0]]).bool()
PAIR_LOSSES = {
    "sigmoid": lambda c, r: losses.dpo_loss(c, r, *REFS, 0.7)[0],
    "conservative": lambda c, r: losses.dpo_loss(c, r, *REFS, 0.7, 0.2)[0],
    "robust": lambda c, r: losses.dpo_loss(c, r, *REFS, 0.7, 0.2, "robust")[0],
    "ipo": lambda c, r: losses.dpo_loss(c, r, *REFS, 0.7, 0.0, "ipo")[0],
    "simpo": lambda c, r: losses.simpo_loss(c, r, *LENGTHS, 2.0, 0.5)[0],
    "orpo": lambda c, r: losses.orpo_loss(c, r, *LENGTHS, 0.3)[0],
    "kto": lambda c, r: losses.kto_loss(torch.cat([c, r]), torch.cat(REFS), torch.arange(12) < 6, 0.3, 0.7, 1.0, 1.3)[0],
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients_are_finite_differences(name):
    assert gradcheck(PAIR_LOSSES[name], [x.clone().requires_grad_() for x in LOGPS])


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_better_chosen_or_a_worse_rejected_response_lowers_the_loss(name):
    chosen, rejected = (x.clone().requires_grad_() for x in LOGPS)
    PAIR_LOSSES[name](chosen, rejected).sum().backward()
    if name in ("sigmoid", "simpo", "orpo", "kto"):        # the others have finite optima, beyond which they pull back
        assert (chosen.grad < 0).all() and (rejected.grad > 0).all()
    else:
        assert torch.allclose(chosen.grad, -rejected.grad)


def test_plackett_luce_gradient():
    pairs = losses.untied_pairs(RANKS, PRESENT)
    assert gradcheck(lambda s: losses.plackett_luce_loss(s, pairs), rand(3, 4).requires_grad_())


def test_plackett_luce_of_two_is_dpo():
    (pc, pr), (rc, rr), beta = LOGPS, REFS, 0.7
    scores = beta * torch.stack([pc - rc, pr - rr], 1)
    ranks = torch.tensor([[1, 2]]).expand(6, 2)
    assert torch.allclose(losses.plackett_luce_loss(scores, losses.untied_pairs(ranks)), losses.dpo_loss(pc, pr, rc, rr, beta)[0])


def test_plackett_luce_is_a_distribution_over_rankings():
    scores = rand(1, 4).expand(24, 4)
    ranks = torch.tensor(list(itertools.permutations([1, 2, 3, 4])))
    assert losses.plackett_luce_loss(scores, losses.untied_pairs(ranks)).neg().exp().sum().item() == pytest.approx(1)


def test_dpo_gradient_weighs_pairs_by_how_wrong_the_reward_is():
    """Rafailov 2023, section 4: beta * sigmoid(reward_rejected - reward_chosen)."""
    (pc, pr), (rc, rr), beta = [x.clone().requires_grad_() for x in LOGPS], REFS, 0.7
    loss, chosen, rejected = losses.dpo_loss(pc, pr, rc, rr, beta)
    loss.sum().backward()
    assert torch.allclose(pc.grad, -beta * torch.sigmoid(rejected - chosen)) and torch.allclose(pr.grad, -pc.grad)


def test_what_both_sides_share_cancels():
    (pc, pr), (rc, rr), shared = LOGPS, REFS, rand(6, seed=9)
    for kind in ("sigmoid", "ipo"):
        plain, *_ = losses.dpo_loss(pc, pr, rc, rr, 0.7, kind=kind)
        assert torch.allclose(losses.dpo_loss(pc + shared, pr + shared, rc, rr, 0.7, kind=kind)[0], plain)
        assert torch.allclose(losses.dpo_loss(pc, pr, rc - shared, rr - shared, 0.7, kind=kind)[0], plain)
    pairs = losses.untied_pairs(RANKS, PRESENT)
    assert torch.allclose(losses.plackett_luce_loss(rand(3, 4) + 5, pairs), losses.plackett_luce_loss(rand(3, 4), pairs))


def test_dpo_on_bradley_terry_preferences_ends_at_the_optimum_of_kl_penalised_rl():
    """The loss in expectation over the labels has zero gradient at reference * exp(r / beta) / Z (eq. 4), and not beside it."""
    rewards, ref, beta = rand(5, seed=1), rand(5, seed=2).log_softmax(0), 0.4
    optimum = (ref + rewards / beta).log_softmax(0)
    i, j = torch.tensor(list(itertools.permutations(range(5), 2))).T
    for start, at_rest in ((optimum, True), (ref, False)):
        logits = start.clone().requires_grad_()
        p = logits.log_softmax(0)
        (losses.dpo_loss(p[i], p[j], ref[i], ref[j], beta)[0] * torch.sigmoid(rewards[i] - rewards[j])).sum().backward()
        assert (logits.grad.abs().max() < 1e-12) == at_rest


def test_ipo_stops_at_its_margin_and_starts_at_its_square():
    pc, margin = f64(0.0, 1 / 0.2).requires_grad_(), 1 / 0.2                          # h = 0 and h = 1 / (2 beta)
    loss, *_ = losses.dpo_loss(pc, f64(0, 0), f64(0, 0), f64(0, 0), 0.1, kind="ipo")
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([margin**2, 0]) and pc.grad.tolist() == pytest.approx([-2 * margin, 0])


# --- records

def write(path, *records) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_equal_responses_are_merged_and_split_into_good_and_bad():
    assert distinct(["a", "b", "a"], [1, 2, 4]) == (["a", "b"], [2.5, 2])
    assert distinct([[1], [2], [1]], [1, 2, 3]) == ([[1], [2]], [2, 2])
    assert good_and_bad(["a", "b", "c", "d"], [1, 2, 2, 3]) == [("a", True), ("d", False)]
    assert good_and_bad(["a", "b", "a"], [1, 2, 3]) == []


def test_labelled_records_pairs_and_rankings(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "p", "response": " x", "label": True},
                 {"prompt": "p", "completion": "y", "label": False},
                 {"prompt": "q", "chosen": "c", "rejected": "r"}, {"prompt": "s", "responses": ["1", "2", "3"], "ranks": [2, 1, 3]})
    found = [(response, good) for _, response, good in read_labelled(path)]
    assert found == [("x", True), ("y", False), ("c", True), ("r", False), ("2", True), ("3", False)]


@pytest.mark.parametrize(("record", "said"), [
    ({"prompt": "p", "response": "x", "label": 1}, ["line 2", "'label' holds 1", "true"]),
    ({"prompt": "p", "label": True}, ["line 2", "'response' is missing"]),
    ({"prompt": "p", "chosen": "x"}, ["line 2", "'rejected' is missing"]),
    ({"prompt": "p", "response": "y", "label": True}, ["2 good and 0 bad", "needs both"]),
])
def test_labelled_records_that_are_wrong(tmp_path, record, said):
    path = write(tmp_path / "a.jsonl", {"prompt": "p", "response": "x", "label": True}, record)
    with pytest.raises(UserError) as error:
        read_labelled(path)
    assert all(words in str(error.value) for words in said)


def test_rankings_without_use(tmp_path, capsys):
    same = {"prompt": "p", "responses": ["a", "a"], "ranks": [1, 2]}
    path = write(tmp_path / "a.jsonl", same, {"prompt": "p", "chosen": "c", "rejected": "r"})
    assert len(read_rankings(path)) == 1 and "1 of 2 records skipped: 1 with 'responses' of which only" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"line 1: 'responses' of which only equal ones differ in rank"):
        read_rankings(write(tmp_path / "b.jsonl", same))


# --- the script

@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """A model, and rankings of 2 to 4 responses, with ties and repetitions."""
    out = tmp_path_factory.mktemp("dpo")
    model = tiny(tokenizer, spread=2.0)
    with torch.no_grad():                                     # EOS gets a logit of 4 more: some samples finish
        eos = model.wte.weight[tokenizer.eos_id]
        model.ln_f.bias += 4 * eos / eos.square().sum()
    model.save_pretrained(out / "sft")
    rows = [{"prompt": p, "responses": [TEXTS[(i + k) % 4] for k in range(2 + i % 3)] + [TEXTS[i % 4]] * (i % 2),
             "ranks": [1 + (i + k) % 4 // 2 + k for k in range(2 + i % 3)] + [3] * (i % 2)} for i, p in enumerate(PROMPTS * 2)]
    write(out / "rankings.jsonl", *rows)
    write(out / "labelled.jsonl", *({"prompt": p, "response": TEXTS[i % 4], "label": i % 3 == 0}
                                    for i, p in enumerate(PROMPTS * 2)))
    (out / "shorter.py").write_text("def shorter(prompts, responses):\n    return [-float(len(r)) for r in responses]\n")
    return out


def settings_for(folder: Path, out: Path, **more) -> train_dpo.Settings:
    files = {"init": str(folder / "sft"), "data": str(folder / "rankings.jsonl"), "out": str(out)}
    return train_dpo.Settings(**(files | SMALL | more))


VARIANTS = {
    "sigmoid": {}, "conservative": {"label_smoothing": 0.1}, "robust": {"loss": "robust", "label_smoothing": 0.1},
    "ipo": {"loss": "ipo"}, "simpo": {"loss": "simpo"}, "orpo": {"loss": "orpo"}, "kto": {"loss": "kto"},
    "plackett_luce": {"ranking": "plackett_luce"}, "lora": {"lora_rank": 4},
    "online": {"online": True, "reward": "shorter.py:shorter", "samples_per_prompt": 4, "unfinished_score": -99.0}}


def variant(name: str, folder: Path, out: Path, **more) -> train_dpo.Settings:
    settings = settings_for(folder, out, **(VARIANTS[name] | more))
    return replace(settings, reward=str(folder / settings.reward)) if settings.reward else settings


START = {"sigmoid": math.log(2), "conservative": math.log(2), "robust": math.log(2), "ipo": 25.0, "kto": 0.5, "lora": math.log(2),
         "online": math.log(2)}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_starts_where_it_must_and_micro_batches_change_nothing_but_rounding(name, folder, tmp_path):
    rows = []
    for budget in (4096, 1):
        settings = variant(name, folder, tmp_path / str(budget), token_budget=budget, steps=2, eval_every=2)
        train_dpo.main(settings)
        rows.append(read_jsonl(tmp_path / str(budget) / "metrics.jsonl"))
    one, many = rows
    if name in START:
        assert one[0]["loss"] == pytest.approx(START[name], abs=1e-4)
        assert one[0]["margin"] == pytest.approx(0, abs=1e-5)
    for a, b in zip(one, many):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a["chosen_logp"] == pytest.approx(b["chosen_logp"], rel=1e-4)
        if a["step"] or name in ("simpo", "orpo"):       # where the reference is the policy, rounding decides between equals
            assert a["accuracy"] == pytest.approx(b["accuracy"])
    assert one[1]["kl"] == pytest.approx(many[1]["kl"], abs=1e-4) and one[0]["loss"] != one[1]["loss"]
    assert ("validation_accuracy" in one[1]) == (name != "online")


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["sigmoid", "kto", "lora", "online"])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(name, folder, tmp_path, monkeypatch):
    states, log, finish = [], Run.log, Run.finish

    def die(self, step, *args, **kwargs):
        row = log(self, step, *args, **kwargs)
        if step == 3:
            raise Killed
        return row

    def keep(self, model, **more):
        states.append(self.optimizer.state_dict()["state"])
        finish(self, model, **more)

    monkeypatch.setattr(Run, "finish", keep)
    whole, cut = (variant(name, folder, tmp_path / x, save_every=3) for x in ("whole", "cut"))
    train_dpo.main(whole)
    with monkeypatch.context() as m:
        m.setattr(Run, "log", die)
        with pytest.raises(Killed):
            train_dpo.main(cut)
    train_dpo.main(replace(cut, resume=True))
    a, b = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.equal(states[0][i][k], states[1][i][k]) for i in states[0] for k in states[0][i])
    for file in ("metrics.jsonl", "samples.jsonl"):
        a, b = ([r | {"seconds": 0} for r in read_jsonl(tmp_path / x / file)] for x in ("whole", "cut"))
        assert a == b and len({r["step"] for r in a}) == (6 if file == "metrics.jsonl" else 2)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "online"])
def test_every_loss_learns_the_order(name, folder, tmp_path):
    settings = variant(name, folder, tmp_path / "x", steps=40, lr=1e-2 if name == "lora" else 3e-3, validation=0.0, batch_size=12,
                       eval_every=40, save_every=40)
    write(folder / "easy.jsonl", *({"prompt": p, "responses": TEXTS[:3], "ranks": [1, 2, 3]} for p in PROMPTS))
    train_dpo.main(replace(settings, data=str(folder / "easy.jsonl")))
    rows = read_jsonl(tmp_path / "x" / "metrics.jsonl")
    assert rows[-1]["accuracy"] == 1 and rows[-1]["margin"] > rows[0]["margin"] and rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["kl"] != 0                                # of six samples: of either sign


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_online_finds_what_is_rewarded(dtype, folder, tmp_path):
    settings = variant("online", folder, tmp_path / "x", steps=25, lr=3e-3, batch_size=12, eval_every=25, max_tokens=10,
                       unfinished_score=-50.0, validation=0.0, dtype=dtype)
    train_dpo.main(settings)
    scores = [r["score"] for r in read_jsonl(tmp_path / "x" / "metrics.jsonl")]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 3


def test_samples_are_compared_as_they_were_sampled(folder):
    settings, policy = settings_for(folder, Path("unused"), samples_per_prompt=4, max_tokens=5), GPT.from_pretrained(folder / "sft")
    items, scores = train_dpo.sample_and_rank(settings, policy, PROMPTS, lambda p, r: [float(len(x)) for x in r],
                                              torch.Generator().manual_seed(0))
    assert scores.shape == (24,) and 0 < len(items) <= 6
    for item in items:
        assert len(set(map(tuple, item.responses))) == len(item.responses) == len(item.ranks) > 1
        for a, x in zip(item.ranks, item.responses):
            for b, y in zip(item.ranks, item.responses):
                finished = [z[-1] == policy.tokenizer.eos_id for z in (x, y)]
                if finished == [True, False]:
                    assert a < b                              # unfinished: -1, below any length
    same, _ = train_dpo.sample_and_rank(settings, policy, PROMPTS, lambda p, r: [0.0] * len(r), torch.Generator().manual_seed(0))
    assert all(policy.tokenizer.eos_id in {x[-1] for x in item.responses} for item in same)    # equal scores: only EOS tells


def test_log_probs_of_an_item_are_those_of_its_rows_alone(folder):
    policy, settings = GPT.from_pretrained(folder / "sft"), settings_for(folder, Path("unused"))
    items = train_dpo.read(settings, policy)
    together = train_dpo.with_reference(policy, items, settings)
    for item in together:
        for response, found in zip(item.responses, item.reference):
            logits = policy.log_softmax(policy.hidden(torch.tensor([item.prompt + response])))[0]
            alone = sum(logits[len(item.prompt) - 1 + i, token] for i, token in enumerate(response))
            assert found == pytest.approx(float(alone.detach()), abs=1e-3)


def test_ktos_point_of_reference(folder):
    """Against a direct computation; 0 at the start, and never of a response with its own prompt."""
    policy, reference = GPT.from_pretrained(folder / "sft"), GPT.from_pretrained(folder / "sft")
    settings = settings_for(folder, Path("unused"), loss="kto", data=str(folder / "labelled.jsonl"))
    items = train_dpo.read(settings, policy)
    assert train_dpo.mismatched_kl(policy, reference, items, settings) == 0
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(0.8)
    found = [[train_dpo.logprobs(m, [replace(a, responses=b.responses)], 1.0).item() for m in (policy, reference)]
             for a, b in zip(items, items[1:] + items[:1])]
    mean = sum(p - q for p, q in found) / len(found)
    assert mean != 0 and train_dpo.mismatched_kl(policy, reference, items, settings) == pytest.approx(max(0, mean), rel=1e-3)
    assert train_dpo.mismatched_kl(policy, reference, [items[0], items[0]], settings) == 0


@pytest.mark.parametrize(("more", "said"), [
    ({"loss": "hinge"}, "losses are sigmoid"), ({"ranking": "listwise"}, "plackett_luce"), ({"beta": -1.0}, "beta is positive"),
    ({"loss": "ipo", "ranking": "plackett_luce"}, "goes with --loss sigmoid"), ({"loss": "robust"}, "robust must"),
    ({"loss": "ipo", "label_smoothing": 0.1}, "no other loss"), ({"label_smoothing": 0.5}, "under 0.5"),
    ({"online": True}, "needs a --reward"), ({"online": True, "reward": "toy", "samples_per_prompt": 1}, "2 or more"),
    ({"online": True, "reward": "toy", "loss": "kto"}, "another loss"), ({"reference": "nowhere"}, "nowhere does not exist"),
    ({"data": "labelled.jsonl"}, "--loss kto"), ({"data": "good.jsonl", "loss": "kto"}, "4 good and 0 bad"),
    ({"data": "long.jsonl"}, "none of the records fits"), ({"lora_rank": -1}, "--lora_rank -1"),
    ({"lora_rank": 33}, "1 to 32"), ({"reference": "other"}, "another vocabulary")])
def test_wrong_input_is_one_sentence(more, said, folder, tmp_path, tokenizer, monkeypatch):
    write(folder / "good.jsonl", *({"prompt": "p", "response": x, "label": True} for x in TEXTS))
    write(folder / "long.jsonl", {"prompt": "p", "chosen": "word " * 200, "rejected": "b"})
    if more.get("reference") == "other":
        tiny(type(tokenizer).train(["the cat sat on the mat " * 5], 270)).save_pretrained(folder / "other")
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as error:
        train_dpo.main(settings_for(folder, tmp_path / "x", **more))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_show_batch_and_help(folder, tmp_path, capsys):
    train_dpo.main(settings_for(folder, tmp_path / "x", show_batch=True))
    out = capsys.readouterr().out
    assert out.count("rank ") >= 6 and "\x1b[32m" in out and not (tmp_path / "x").exists()
    from minirlhf.cli import comments
    assert all(comments(train_dpo.Settings).get(name) for name in asdict(train_dpo.Settings()))
    assert seed_of(0, "lora") != seed_of(1, "lora")
