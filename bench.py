"""How fast it is: beside the machine's own ceilings, and beside transformers and TRL where requirements-bench.txt is installed.

Ours: the scripts' own loops, from one line of the log to the next; TRL (peers.py): from one on_step_end to the next. The two
alternate in one process with the same weights, inputs and threads; a ratio is that of medians. Ours keeps the allocator's pages,
as our scripts do; the peers have it as it comes. The ceiling is the rate of one large matrix product. "fixed": responses run to
the limit; "varied": they end with EOS anywhere, at half the limit on average. Writes out/bench/bench.json and growth.png.

    python bench.py                          # several minutes, fewer with --no-peers; --preset gpt2 on a GPU
    python bench.py --only rloo,ppo          # rows that begin so; --race: also the time until a reward of .95 is learned
"""
import importlib.metadata
import io
import math
import platform
import random
import statistics
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import minirlhf.model
import peers
import train_dpo
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, rollout, run
from minirlhf.cli import start
from minirlhf.json_text import to_json, to_json_lines
from minirlhf.model import GPT, Config, ScalarGPT
from peers import Words, now, seconds, with_memory

SHAPES = {"tiny": Config(2048, 256, 128, 4, 4), "small": Config(4096, 256, 256, 4, 4), "gpt2": Config()}
LOW = 2048                        # the group methods' reward counts tokens below half of small's vocabulary


@dataclass
class Settings:
    preset: str = "small"         # tiny (run_rlhf.py's), small (4 layers, width 256, vocabulary 4096), gpt2
    out: str = "out/bench"        # folder of bench.json and growth.png
    turns: int = 2                # how often ours and the peer's alternate
    only: str = ""                # rows to measure, by how their names begin, comma-separated; empty: all, and growth
    peers: bool = True            # compare with transformers and TRL, if they are installed
    race: bool = False            # time until the mean reward is .95, where it counts tokens below half the vocabulary
    threads: int = 0              # of the CPU; 0: as many as torch takes by itself
    device: str = "auto"          # auto, cuda, mps, cpu
    seed: int = 0                 # of weights and inputs


def low(prompts: list[str], responses: list[str] | None = None, completions: list[str] | None = None, **_) -> list[float]:
    """Share of words below LOW. TRL calls responses completions."""
    return [statistics.mean([int(w) < LOW for w in text.split()] or [0]) for text in responses or completions]


def ours(script, **settings) -> tuple[list[float], list[dict]]:
    """A script's main -> seconds of its steps but the first (warming up) and the last (final checks), and their log."""
    stamps, rows, log = [], [], run.Run.log

    def stamped(self, *args, **metrics):
        rows.append(log(self, *args, **metrics))
        stamps.append(now())
        return rows[-1]

    run.Run.log = stamped
    try:
        with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
            script.main(script.Settings(**settings, out=out + "/run", template="raw", save_every=10**6))
    finally:
        run.Run.log = log
    return [b - a for a, b in pairwise(stamps[:-1])], rows[1:-1]


def make_models(folder: Path, config: Config, seed: int, eos_rate: float) -> str:
    """folder/lm and folder/rm: fresh weights, EOS about as frequent as eos_rate (by the final LayerNorm's bias)."""
    torch.manual_seed(seed)
    for name, cls in (("lm", GPT), ("rm", ScalarGPT)):
        net = cls(config, Words(config.vocab_size))
        with torch.no_grad():
            eos = net.wte.weight[-1]
            net.ln_f.bias.copy_(eos / eos.square().sum() * math.log(config.vocab_size * eos_rate))
            if name == "rm":
                net.score.weight.normal_(std=0.02)
        net.save_pretrained(folder / name)
    return str(folder)


class Table:
    """Measures and prints; `rows` goes into bench.json."""
    def __init__(self, settings: Settings, config: Config, flops: float, with_peers: bool):
        self.settings, self.config, self.flops, self.with_peers, self.rows = settings, config, flops, with_peers, []
        print(f"{'':24}{'ours':>10}{'':>13}{'of ceiling':>11}{'MiB':>7}{'peer':>10}{'MiB':>7}{'ratio':>8}")

    def forward(self, tokens: float, read: float = 0) -> float:
        """FLOP of a row's tokens, `read` of which meet the vocabulary: linear layers, causal attention, head."""
        L, D = self.config.n_layer, self.config.n_embd
        return L * (24 * tokens * D * D + 2 * tokens * tokens * D) + 2 * read * self.config.vocab_size * D

    def group(self, prompt: float, response: float, K: int, head: bool = True) -> float:
        """The same for a prompt, computed once, and K responses."""
        return K * self.forward(prompt + response, response * head) - (K - 1) * self.forward(prompt)

    def row(self, name: str, unit: str, units: float, work: float, mine, peer=None) -> None:
        """mine, peer: () -> (seconds each for `units` units, log); `work`: the FLOP that these take at least."""
        if self.settings.only and not name.startswith(tuple(self.settings.only.split(","))):
            return
        times, peaks, log = ([], []), ([], []), []
        for side, function in [(0, mine), (1, peer)] * self.settings.turns:
            if function and (side == 0 or self.with_peers):
                run.keep_pages(side == 0)
                (spent, rows), peak = with_memory(function)
                times[side].extend(spent)
                peaks[side].append(peak)
                log += rows * (side == 0)
        t, p = (statistics.median(x or [math.nan]) for x in times)
        mib, peer_mib = (min(x, default=math.nan) for x in peaks)             # the least: a first turn also warms up
        parts = {k: statistics.median(r[k] for r in log) for k in (log or [{}])[0] if k.startswith("seconds_")}
        self.rows.append({"name": name, "unit": unit, "ours": units / t, "share": work / t / self.flops, "mib": mib,
                          "peer": units / p, "peer_mib": peer_mib, "ratio": p / t, "seconds": times} | parts)
        print(f"{name:24}{units / t:>10.1f} {unit:12}{work / t / self.flops:>11.0%}{mib:>7.0f}{units / p:>10.1f}{peer_mib:>7.0f}"
              f"{p / t:>8.2f}  " + " ".join(f"{k[8:]} {s:.2f}s" for k, s in parts.items()), flush=True)


def main(settings: Settings) -> None:
    # 1. the machine, the models
    if settings.preset not in SHAPES:
        raise UserError(f"--preset {settings.preset}: unknown; take {', '.join(SHAPES)}")
    config, dice, device = SHAPES[settings.preset], random.Random(settings.seed), run.pick_device(settings.device)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    minirlhf.model.Tokenizer = Words
    big, dtype = settings.preset == "gpt2", torch.bfloat16 if device.type == "cuda" else torch.float32
    installed = {d.name: d.version for d in importlib.metadata.distributions() if d.name in ("torch", "transformers", "trl")}
    a, x = (torch.randn(n, n, device=device, dtype=dtype) for n in (4096 if big else 2048, 8192))
    flops, copied = 2 * len(a) ** 3 / min(seconds(lambda: a @ a, 5)), x.nbytes / min(seconds(lambda: x[:4096].copy_(x[4096:]), 5))
    print(f"{installed}, {platform.processor() or platform.machine()}, {device}, {torch.get_num_threads()} threads, "
          f"{settings.preset}: matrix product {flops / 1e9:.0f} GFLOP/s, copy {copied / 1e9:.1f} GB/s\n")
    table, V, folder = Table(settings, config, flops, settings.peers and peers.load()), config.vocab_size, tempfile.mkdtemp()
    folder, P, R = Path(folder), *((128, 128) if big else (16, 32))                     # prompt and response of section 4
    fixed, half, varied = (make_models(folder / name, config, settings.seed, rate)      # half of 64 tokens, of R
                           for name, rate in (("fixed", 1e-20), ("half", 1.6 / 64), ("varied", 1.6 / R)))

    def text(n: int) -> str:
        return " ".join(str(dice.randrange(V - 1)) for _ in range(n))

    def file(rows: list[dict]) -> str:
        path = folder / f"{len([*folder.iterdir()])}.jsonl"
        path.write_text(to_json_lines(rows))
        return str(path)

    # 2. sampling and scoring
    generator = torch.Generator(device).manual_seed(settings.seed)
    short, long = [Words(V).encode(text(32)) for _ in range(64)], [Words(V).encode(text(128)) for _ in range(16)]
    for name, where, ids, K, new in (("sample fixed", fixed, short, 1, 64), ("sample varied", half, short, 1, 64),
                                     ("sample 4 a prompt", fixed, long, 4, 32)):
        net = GPT.from_pretrained(where + "/lm").to(device).requires_grad_(False)
        net.autocast_dtype = run.pick_autocast("auto", device)

        def mine(net=net, ids=ids, K=K, new=new):
            return rollout.generate(net, ids, new, generator, samples_per_prompt=K)[0]

        made = sum(len(r) for _ in range(4) for r in mine()) / 4
        table.row(name, "tokens/s", made, len(ids) * table.group(len(ids[0]), made / len(ids) / K, K),
                  lambda f=mine: (seconds(f), []),
                  lambda where=where, ids=ids, K=K, new=new: (peers.generate(where + "/lm", ids, device, dtype, max_new_tokens=new,
                                                                             num_return_sequences=K), []))
    lengths = (torch.full((64,), n, device=device) for n in (32, 64))
    batch = rollout.Rollout([""] * 64, [""] * 64, torch.randint(V, (64, 64), device=device), *lengths, torch.ones(64))
    table.row("score", "tokens/s", 64 * 64, 64 * table.forward(64, 32),
              lambda: (seconds(lambda: rollout.in_parts(rollout.logprobs, net, batch)), []))

    # 3. SFT: full rows, ragged ones; reward models; DPO
    common, T = {"device": settings.device, "seed": settings.seed}, 1024 if big else 256
    full = [{"text": text(T - 1)} for _ in range(96)]
    sizes = [(min(120, int(dice.lognormvariate(3, 0.8)) + 3), min(130, int(dice.lognormvariate(3.6, 0.9)) + 2)) for _ in range(64)]
    ragged, wanted = [{"prompt": text(p), "completion": " " + text(r)} for p, r in sizes], sum(r + 1 for _, r in sizes)
    for name, unit, data, n, units, work in (("sft full", "tokens/s", full, 16, 16 * T, 16 * table.forward(T, T)), (
            "sft ragged", "supervised/s", ragged, 64, wanted, sum(table.forward(p + r, r + 1) for p, r in sizes))):
        table.row(name, unit, units, 3 * work,
                  lambda data=data, n=n: ours(train_sft, **common, init=fixed + "/lm", data=file(data), steps=5, batch_size=n,
                                              validation=0, token_budget=max(4096, 16 * T)),
                  lambda data=data, n=n: peers.train("SFT", fixed + "/lm", None, data, 4, n, max_length=T))

    def rankings(n: int, K: int) -> list[dict]:
        return [{"prompt": text(64), "responses": [" " + text(63) for _ in range(K)], "ranks": [*range(K)]} for _ in range(n)]

    def pairs(rankings: list[dict]) -> list[dict]:
        return [{"prompt": r["prompt"], "chosen": chosen, "rejected": x} for r in rankings
                for i, chosen in enumerate(r["responses"]) for x in r["responses"][i + 1 :]]

    two, six = rankings(64, 2), rankings(16, 6)
    for name, data, n, K in (("reward pairs", two, 16, 2), ("reward rankings of 6", six, 2, 6)):
        table.row(name, "pairs/s", n * K * (K - 1) / 2, n * 3 * table.group(64, 64, K, head=False),
                  lambda data=data, n=n: ours(train_rm, **common, init=fixed + "/rm", data=file(data), steps=5, batch_size=n,
                                              normalize_samples=0),
                  lambda data=data, n=n, K=K: peers.train("Reward", fixed + "/lm", fixed + "/rm", pairs(data), 3,
                                                          n * K * (K - 1) // 2))
    table.row("dpo", "pairs/s", 16, 16 * 3 * table.group(64, 64, 2),
              lambda: ours(train_dpo, **common, init=fixed + "/lm", data=file(two), steps=5, batch_size=16, validation=0,
                           temperature=1),
              lambda: peers.train("DPO", fixed + "/lm", None, pairs(two), 4, 16, precompute_ref_log_probs=True))

    # 4. reinforcement learning: 64 episodes; one pass (GRPO, RLOO, 4 samples a prompt) or four (PPO)
    questions = [{"prompt": text(P)} for _ in range(256)]
    online = common | {"temperature": 1.0, "max_tokens": R, "data": file(questions), "stop_update_kl": 1e9, "lr": 1e-4}
    online |= {"token_budget": 64 * (P + R), "minibatches": 1, "prompts_per_step": 64}
    four = online | {"prompts_per_step": 16, "samples_per_prompt": 4, "epochs": 1, "reward": __file__ + ":low"}
    group = {"num_generations": 4, "max_completion_length": R, "temperature": 1.0, "top_k": 0, "learning_rate": 1e-4, "beta": 0.05}
    for kind, where, r in (("fixed", fixed, R), ("varied", varied, R / 2)):
        for name in ("grpo", "rloo"):                # sampled, by the reference, forward and backward
            table.row(f"{name} {kind}", "episodes/s", 64, 16 * 5 * table.group(P, r, 4),
                      lambda name=name, where=where: ours(train_ppo, **four, advantage=name, init=where + "/lm", steps=5),
                      lambda name=name, where=where: peers.train(name.upper(), where + "/lm", low, questions, 4, 64, **group))
        table.row(f"ppo {kind}", "episodes/s", 64, 64 * (14 * table.forward(P + r, r) + 13 * table.forward(P + r)),
                  lambda where=where: ours(train_ppo, **online, init=where + "/lm", reward=where + "/rm", steps=4, epochs=4),
                  lambda where=where: peers.train("PPO", where + "/lm", where + "/rm", questions, 2, 64, response_length=R,
                                                  temperature=1.0, num_ppo_epochs=4, learning_rate=1e-4))
    if settings.race:
        race(table, fixed, online, questions, group)

    # 5. the file and the figure
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    found = {} if settings.only else growth(out, config, net, folder, online)
    result = {"settings": vars(settings), "installed": installed, "flops": flops, "copy": copied, "growth": found}
    (out / "bench.json").write_text(to_json(result | {"rows": table.rows}, indent=1))
    print(f"\nwrote {out / 'bench.json'}")


def race(table: Table, where: str, online: dict, questions: list[dict], group: dict) -> None:
    """Seconds until an iteration's mean reward is .95, each with its own best settings; no response needs to finish. TRL's are
    in capitals."""
    sample = rollout.sample
    rollout.sample = lambda *a, **k: replace(b := sample(*a, **k), finished=torch.ones_like(b.finished))
    online |= {"kl_coef": 0.0, "warmup": 1, "init": where + "/lm", "reward": __file__ + ":low"}
    for name, lr, steps, epochs, K in (("rloo", 1e-2, 16, 1, 4), ("grpo", 1e-2, 16, 1, 4), ("gae", 3e-3, 30, 4, 1),
                                       ("RLOO", 3e-2, 14, 1, 4), ("GRPO", 3e-2, 14, 1, 4))[: 5 if table.with_peers else 3]:
        run.keep_pages(name.islower())
        if name.islower():
            times, log = ours(train_ppo, **online | {"lr": lr, "prompts_per_step": 64 // K}, advantage=name, steps=steps,
                              epochs=epochs, samples_per_prompt=K)
        else:
            times, log = peers.train(name, where + "/lm", low, questions, steps, 64, **group | {"learning_rate": lr, "beta": 0.0})
        means = [row.get("score", row.get("reward")) for row in log if "score" in row or "reward" in row]
        at = next((i for i, mean in enumerate(means) if mean >= 0.95), None)
        table.rows.append({"name": f"race {name}", "means": means, "seconds": at and statistics.median(times) * (at + 1)})
        print(f"race {name:19}{table.rows[-1]['seconds']} s to .95 (iteration {at}; last mean {means[-1]:.2f})", flush=True)
    rollout.sample = sample


def growth(out: Path, config: Config, net: GPT, folder: Path, online: dict) -> dict:
    """growth.png: time per sampled token against rows and length, peak memory of a PPO iteration against model size."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    generator, found = torch.Generator(net.device), {"rows": {}, "tokens": {}, "million parameters": {}}
    for axis, points in (("rows", (1, 4, 16, 64, 256)), ("tokens", (16, 32, 64, 128, 240))):
        for n in points:
            B, new = (n, 16) if axis == "rows" else (32, n)
            spent = min(seconds(lambda B=B, new=new: rollout.generate(net, [[1] * 16] * B, new, generator), 2))
            found[axis][n] = spent / B / new * 1e6
    run.keep_pages(False)                                # memory as it is needed, not as it is held
    for c in (replace(config, n_embd=D, n_head=4) for D in (64, 128, 256)):
        where, size = make_models(folder / f"w{c.n_embd}", c, 0, 1e-20), sum(p.numel() for p in GPT(c).parameters()) / 1e6
        found["million parameters"][size] = with_memory(lambda where=where: ours(
            train_ppo, **online | {"init": where + "/lm", "reward": where + "/rm"}, epochs=4, steps=2))[1]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3))
    for ax, (name, points), label in zip(axes, found.items(), ("us a sampled token",) * 2 + ("MiB of a PPO iteration",)):
        (x, y), rows = np.array([*points.items()]).T, name == "rows"
        slope, level = np.polyfit(1 / x if rows else x, y, 1, w=1 / y)
        law = f"{slope:.3g} / {name} + {level:.3g}" if rows else f"{level:.3g} + {slope:.2g} {name}"
        print(f"{label}: about {law}")
        ax.plot(x, slope / x + level if rows else slope * x + level, color="grey", linewidth=1)
        ax.plot(x, y, "o")
        ax.set(title=law, xlabel=name, ylabel=label, **({"xscale": "log", "yscale": "log"} if rows else {"ylim": (0, None)}))
    figure.tight_layout()
    figure.savefig(out / "growth.png", dpi=120)
    return found


if __name__ == "__main__":
    start(main, Settings)
