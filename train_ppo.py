"""Stage 3, PPO: the policy samples, the reward model scores, the policy moves towards what scored well, but not far.

Sample -> score -> KL penalty per token -> advantages by GAE -> a few clipped passes; a separate value model that starts
from the reward model. Ziegler et al. 2019, Stiennon et al. 2020, Schulman et al. 2017; details as Huang et al. 2024.
RLOO, GRPO and REINFORCE are the same loop without the value model: a response's reward is compared with other responses'.

    python train_ppo.py --init out/sft --reward out/rm --out out/ppo
    python train_ppo.py --init out/sft --reward my_rewards.py:brevity --data prompts.jsonl
    python train_ppo.py --advantage grpo --samples_per_prompt 8 --prompts_per_step 8 --reward out/rm1,out/rm2 --ensemble min
"""
import math
import time
from collections import defaultdict
from dataclasses import dataclass

import torch

from minirlhf import UserError, lora, losses, rewards, rollout
from minirlhf.cli import start
from minirlhf.data import batch_indices, fit, held_out, micro_batches, read_demonstrations, read_prompts
from minirlhf.model import GPT, ScalarGPT
from minirlhf.run import Run, Stopped, linear_decay, seed_of
from train_sft import loss_of, supervised, to_rows, validation_loss


@dataclass
class Settings:
    init: str = "out/sft"         # policy to start from
    reference: str = ""           # model that the KL is measured against; empty: --init
    reward: str = "out/rm"        # a reward model's folder, file.py:function, or toy (gold itself); a,b an ensemble; a*0.7+b a sum
    ensemble: str = "mean"        # of rewards divided by commas: mean, min, or uwo (mean - variance / 2; uwo=0.1 for a tenth)
    watch: str = ""               # rewards that are logged only, as watch_NAME, comma-separated: toy, other reward models
    data: str = "toy"             # prompts: toy, or JSONL files with a "prompt" field, comma-separated
    out: str = "out/ppo"          # the run's folder
    count: int = 8000             # how many prompts the toy world writes
    template: str = "chat"        # chat: a bare prompt is a human turn; raw: the response continues it as it is
    steps: int = 40               # PPO iterations
    prompts_per_step: int = 128   # prompts an iteration, each once
    samples_per_prompt: int = 1   # responses to each of them; rloo and grpo need 2 or more
    max_tokens: int = 64          # longest response
    temperature: float = 0.7      # of the policy that is sampled and trained (log-probs use the same)
    unfinished_score: float = -1.0  # score of a response that did not end with EOS, on the normalised scale
    kl_coef: float = 0.2          # reward lost per nat of log(policy/reference)
    kl_target: float = 0.0        # nats per response that an adaptive kl_coef steers towards; 0: kl_coef stays fixed
    kl_horizon: int = 10000       # episodes over which the adaptive kl_coef reacts
    kl_in: str = "paper"          # where the KL counts: reward, or loss (as k3); paper: loss for grpo, reward for the others
    advantage: str = "gae"        # gae: PPO, with a value model; against the prompt's samples: rloo, grpo; the step's: reinforce
    group_std: bool = True        # grpo: advantages over the prompt's standard deviation; Dr. GRPO: --no-group_std
    length_norm: str = "paper"    # mean over tokens: token (gae, DAPO); responses: response (grpo); sums: none (the others)
    gamma: float = 1.0            # gae: discount
    lam: float = 0.95             # gae: lambda
    clip: float = 0.2             # of the ratio
    clip_high: float = 0.0        # of the ratio above 1, where it differs (DAPO: 0.28); 0: as clip
    value_clip: float = 0.2       # gae: of the value's change
    whiten_rewards: bool = False  # gae: rewards per token to std 1, their mean kept
    ptx_data: str = ""            # text files or demonstrations whose language-model loss is logged on a held-out part (lm_loss)
    ptx_coef: float = 0.0         # weight of the loss on the other part in every update (PPO-ptx, InstructGPT's gamma)
    ptx_batch: int = 16           # rows of ptx_data in an update
    epochs: int = 1               # passes over the episodes of an iteration
    minibatches: int = 2          # optimiser steps a pass
    stop_update_kl: float = 0.1   # approximate KL of one update (nats per token) beyond which its remaining passes are left out
    lr: float = 1e-3              # decays linearly to 0
    warmup: int = 5               # iterations until the peak; 0: none
    lora_rank: int = 0            # train low-rank adapters of this rank, the value model's too; 0: train the weights
    lora_alpha: float = 16.0      # the adapters' scale is alpha / rank
    token_budget: int = 4096      # tokens in a micro-batch; lower it if memory runs out, results stay
    checkpointing: bool = False   # recompute activations in the backward pass: far less memory, a third more work
    compile: bool = False         # torch.compile the blocks: a minute at the start, faster steps on a GPU
    log_every: int = 5            # iterations between lines on the console
    save_every: int = 20          # iterations between checkpoints
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16
    resume: bool = False          # go on with the run in --out
    overwrite: bool = False       # replace the run in --out
    show_batch: bool = False      # print the first prompts with responses, sampled tokens coloured, and exit


PAPER = {      # advantage -> where the KL counts, how lengths are normalised
    "gae": ("reward", "token"), "rloo": ("reward", "none"), "grpo": ("loss", "response"), "reinforce": ("reward", "none")}


def options(settings: Settings) -> list[str]:
    """kl_in and length_norm, by the paper of the method unless said otherwise; UserError for what cannot be."""
    for name, known in (("advantage", PAPER), ("kl_in", ("paper", "reward", "loss")),
                        ("length_norm", ("paper", "token", "response", "none"))):
        if getattr(settings, name) not in known:
            raise UserError(f"--{name} {getattr(settings, name)}: unknown; take {', '.join(known)}")
    group = settings.samples_per_prompt * (settings.prompts_per_step if settings.advantage == "reinforce" else 1)
    if settings.advantage != "gae" and group < 2:
        raise UserError(f"--advantage {settings.advantage} compares responses: --samples_per_prompt must be 2 or more, e.g. 4 ("
                        "with --prompts_per_step a quarter, the episodes stay the same)")
    if settings.ptx_coef and not settings.ptx_data:
        raise UserError("--ptx_coef needs --ptx_data: text files or demonstrations to keep predicting")
    chosen = zip((settings.kl_in, settings.length_norm), PAPER[settings.advantage])
    return [paper if mine == "paper" else mine for mine, paper in chosen]


def value_model(settings: Settings) -> ScalarGPT:
    """Starts from the (first) reward model (Stiennon 2020); from the policy with a head of zeros if there is none of ours."""
    return ScalarGPT.from_pretrained([*rewards.folders(settings.reward), settings.init][0])


def check_ratio(deviation: float, precision: torch.dtype | None, step: int) -> None:
    """Before any update the policy that was scored is the policy that trains.

    deviation: root mean square over tokens of log(new/old).
    """
    limit = losses.FIRST_RATIO_OFF[precision or torch.float32]
    if deviation > limit:
        raise Stopped(
            f"step {step}: before the first update the ratio of new to old log-probs must be 1, and its log is "
            f"{deviation:.2g} where rounding explains {limit:g} (root mean squares): look for dropout, "
            "another temperature or precision in one of the two, or shifted tokens")


def in_plain_words(row: dict, settings: Settings) -> list[str]:
    """What is unhealthy in a step's numbers, and what it usually means."""
    said = []
    if row["kl"] < -1:
        said.append(f"KL to the reference is {row['kl']:.1f}: below 0 means that sampling and scoring disagree")
    if row["kl"] > 20:
        said.append(f"KL to the reference is {row['kl']:.0f} nats per response: far from home; raise --kl_coef or lower --lr")
    if row["approx_kl"] > settings.stop_update_kl:
        said.append(f"one update moved the policy by {row['approx_kl']:.2f} nats per token: lower --lr")
    if row["entropy"] < 0.05:
        said.append(f"entropy is {row['entropy']:.3f} nats per token: the policy has collapsed")
    if row["finished"] < 0.8:
        said.append(f"only {row['finished']:.0%} of responses finish: raise --max_tokens, or the policy rambles for reward")
    if row["distinct"] < 0.5:
        said.append(f"only {row['distinct']:.0%} of this step's responses differ from one another")
    if row["length_correlation"] > 0.6:
        said.append(f"reward goes with length (r = {row['length_correlation']:.2f}): look at the samples for padding")
    if row["score_std"] < 1e-3:
        said.append("all responses score the same: there is nothing to learn from")
    return said


def main(settings: Settings) -> None:
    # set-up: four models (three without GAE), one optimiser, a pool of prompts
    kl_in, length_norm = options(settings)
    policy = GPT.from_pretrained(settings.init)
    value = value_model(settings) if settings.advantage == "gae" else None
    prompts = read_prompts(settings.data, count=settings.count, seed=settings.seed, template=settings.template)
    shared = settings.lora_rank and settings.reference in ("", settings.init)      # the policy with its adapters off
    reference = policy if shared else GPT.from_pretrained(settings.reference or settings.init)
    for model, where, use in ((value, settings.reward, "value model"), (reference, settings.reference, "reference")):
        if model and model.tokenizer.vocab != policy.tokenizer.vocab:
            raise UserError(f"{where} has {model.tokenizer.vocab_size} tokens, {settings.init} {policy.tokenizer.vocab_size}, and "
                            f"they are not the same: the {use} reads the policy's tokens, so take a model of the same family"
                            + ", or another --advantage, which needs no value model" * (model is value))
    prompts = fit(prompts, policy.config.n_positions - settings.max_tokens, "prompts",
                  length=lambda p: len(policy.tokenizer.encode_prompt(p)))
    if settings.show_batch:
        batch = rollout.sample(policy, prompts[:8], settings.max_tokens, torch.Generator().manual_seed(settings.seed))
        for tokens, start_, end in zip(batch.tokens.tolist(), batch.prompt_lengths.tolist(), batch.lengths.tolist()):
            print(policy.tokenizer.show(tokens[:end], [i >= start_ for i in range(end)]), end="\n\n")
        return
    run = Run(settings, "train_ppo.py")
    if run.finished:
        return print(f"{run.folder} is finished already")
    trained = {"policy": policy} | ({"value": value} if value else {})
    for model in trained.values():
        lora.add(run.place(model), settings.lora_rank, settings.lora_alpha, seed_of(settings.seed, "lora"))
    reference = lora.base(policy) if shared else run.place(reference, frozen=True)
    reward_fn = rewards.load(settings.reward, run.place, settings.ensemble)
    watched = {f"watch_{name}": rewards.load(name, run.place) for name in settings.watch.split(",") if name}
    optimizer = run.adamw([*trained.values()], settings.lr, eps=1e-5)
    run.extra["kl_coef"] = settings.kl_coef
    ptx, ptx_held_out = [], []
    if settings.ptx_data:
        rows = to_rows(policy, read_demonstrations(settings.ptx_data))
        ptx, ptx_held_out = held_out(rows, key=lambda row: tuple(row[0]))
    run.track(optimizer, **trained)

    def lm_loss() -> float:
        return validation_loss(policy, ptx_held_out[:64], settings.token_budget)

    episodes = settings.prompts_per_step * settings.samples_per_prompt
    print(f"{len(prompts)} prompts, {episodes} episodes an iteration, on {run.device}")
    run.memory(min(4 * rollout.TOKENS_AT_ONCE, episodes * policy.config.n_positions))

    for step in run.steps(settings.steps):
        # 1. sample responses from the policy itself: temperature only
        clock = [time.time()]
        chosen = [prompts[i] for i in batch_indices(len(prompts), step, settings.prompts_per_step, settings.seed)]
        batch = rollout.sample(policy, chosen, settings.max_tokens, run.generator("sample", step),
                               temperature=settings.temperature, samples_per_prompt=settings.samples_per_prompt)
        mask = batch.mask                                                                  # (B, R)
        clock.append(time.time())

        # 2. score whole texts; a response that never finished gets the fixed penalty
        scores = torch.tensor(reward_fn(batch.prompts, batch.responses), device=run.device)     # (B,)
        scores = torch.where(batch.finished, scores, settings.unfinished_score)
        more = {name: torch.tensor(f(batch.prompts, batch.responses)) for name, f in watched.items()}     # (B,) each

        # 3. log-probs by the training forward, so that the first ratio is 1. Where the episodes are one micro-batch, the first
        #    pass takes this forward for its own, if the run's first iteration has shown that the ratio is 1 without that
        kept = step > 0 and settings.minibatches == 1 and int(batch.lengths.sum()) <= settings.token_budget
        first = rollout.compare(policy, reference, batch, settings.temperature, grad=kept)
        old, ref, exact_kl, entropy = first.detach()                                       # (B, R) each
        if ptx_held_out and step % settings.log_every == 0:
            more["lm_loss"] = lm_loss()

        # 4. reward per token: the KL penalty everywhere, the score on the last token (Ziegler 2019, equation 2)
        kl, _, k3 = losses.kl_estimates(old, ref)                                          # (B, R), nats
        kl_coef = run.extra["kl_coef"]
        token_rewards = losses.token_rewards(scores, kl, mask, kl_coef if kl_in == "reward" else 0.0)   # (B, R)
        if value:
            first_values = rollout.in_parts(rollout.values, value, batch, grad=kept)
            values = first_values.detach()                                                 # (B, R)
            if settings.whiten_rewards:
                token_rewards = losses.whiten(token_rewards, mask, shift_mean=False)
            advantages, returns = losses.gae(token_rewards, values, mask, settings.gamma, settings.lam)
            advantages = losses.whiten(advantages, mask)
        else:                                            # the whole response is one action: (P, G) -> (B, 1) -> (B, R)
            advantages = losses.group_advantages(token_rewards.sum(1).view(-1, settings.samples_per_prompt), settings.advantage,
                                                 settings.advantage == "grpo" and settings.group_std)
            advantages = advantages.reshape(-1, 1).expand(mask.shape)
        clock.append(time.time())

        # 5. a few clipped passes over the same episodes (Schulman 2017, equation 7)
        lr = settings.lr * linear_decay(step, settings.steps, settings.warmup)
        shuffled = [torch.randperm(len(mask), device=run.device, generator=run.generator("passes", step, epoch)).cpu()
                    for epoch in range(settings.epochs)]
        passes = [rows for order in shuffled for rows in order.tensor_split(min(settings.minibatches, len(mask)))]
        seen, updates = {}, 0
        for rows in passes:
            tokens, stats = max(1, int(mask[rows].sum())), defaultdict(float)
            total = losses.length_normaliser(length_norm, mask[rows], settings.max_tokens)          # 0-d or (rows, 1)
            whole = kept and updates == 0
            micro = [[*range(len(rows))]] if whole else batch.select(rows).parts(policy.config.n_embd, settings.token_budget)
            for part in micro:
                index, part_total = rows[part], total[part] if total.dim() else total
                part = batch.select(index)
                m = part.mask
                cut = (index, slice(0, m.shape[1]))
                new = first[0][cut] if whole else rollout.logprobs(policy, part, settings.temperature)    # (b, R)
                loss, p = losses.ppo_policy_loss(new, old[cut], advantages[cut], m, settings.clip, part_total,
                                                 settings.clip_high or None)
                parts, v = {"policy_loss": loss}, {}
                if value:
                    now = first_values[cut] if whole else rollout.values(value, part)               # (b, R)
                    parts["value_loss"], v = losses.value_loss(now, values[cut], returns[cut], m, settings.value_clip, total=tokens)
                if kl_in == "loss":                                            # Shao 2024, equations 3 and 4
                    parts["kl_loss"] = kl_coef * losses.masked_mean(losses.kl_estimates(new, ref[cut])[2], m, part_total)
                sum(parts.values()).backward()
                share = float(m.sum()) / tokens
                for name, x in (p | v).items():                                # means over the part's tokens
                    stats[name] += float(x) * share
                for name, x in parts.items():                                  # shares of a sum
                    stats[name] += float(x.detach())
            ratio_off = math.sqrt(stats.pop("log_ratio_square"))
            if updates == 0:
                check_ratio(ratio_off, run.autocast_dtype, step)
                seen["first_ratio_off"] = ratio_off
            seen |= stats
            if stats["approx_kl"] > settings.stop_update_kl:
                optimizer.zero_grad(set_to_none=True)
                break
            if settings.ptx_coef:                                              # Ouyang 2022, equation 2
                at = step * len(passes) + updates
                text = [ptx[i] for i in batch_indices(len(ptx), at, settings.ptx_batch, settings.seed)]
                for part in micro_batches([len(ids) for ids, _ in text], settings.token_budget):
                    loss = loss_of(policy, [text[i] for i in part], supervised(text))
                    (settings.ptx_coef * loss).backward()
                    seen["ptx_loss"] = stats["ptx_loss"] = stats["ptx_loss"] + float(loss.detach())
            total_loss = sum(stats[name] for name in stats if name.endswith("_loss"))
            seen["grad_norm"] = run.update(optimizer, [*trained.values()], lr, total_loss, step)
            updates += 1
        clock.append(time.time())

        # 6. look at it
        kl_sum, lengths = kl.sum(1), (batch.lengths - batch.prompt_lengths).float()        # (B,)
        row = run.log(
            step, ("score", "kl", "length", "entropy", "clip_fraction", "explained_variance", *more),
            score=scores, score_std=float(scores.std(correction=0)), reward=scores - kl_coef * kl_sum, kl=kl_sum, kl_coef=kl_coef,
            kl_exact=exact_kl.sum(1), kl_k3=k3.sum(1), entropy=losses.masked_mean(entropy, mask), length=lengths,
            finished=batch.finished, **({"explained_variance": losses.explained_variance(values, returns, mask)} if value else {}),
            distinct=len(set(batch.responses)) / len(batch.responses), length_correlation=losses.correlation(scores, lengths),
            within_prompt_std=scores.view(-1, settings.samples_per_prompt).std(1, correction=0), updates=updates, lr=lr, **seen,
            **more, seconds_rollout=clock[1] - clock[0], seconds_scoring=clock[2] - clock[1], seconds_update=clock[3] - clock[2],
            tokens_per_second=float(lengths.sum()) / (clock[3] - clock[0]), peak_gib=run.peak_memory())
        if step % settings.log_every == 0:
            for sentence in in_plain_words(row, settings):
                print(f"    warning: {sentence}")
            run.samples(step, [{"prompt": p, "response": r, "score": s} for p, r, s in
                               zip(batch.prompts[:8], batch.responses, scores.tolist())], show=1)
        if settings.kl_target:
            run.extra["kl_coef"] = losses.adapt_kl_coef(kl_coef, float(kl_sum.mean()), settings.kl_target, len(mask),
                                                        settings.kl_horizon)

    run.finish(lora.merge(policy), peak_gib=run.peak_memory(), **({"lm_loss": lm_loss()} if ptx_held_out else {}))


if __name__ == "__main__":
    start(main, Settings)
