"""How time and memory grow with the length of texts, the batch and the model: numbers, a figure.

    python bench/growth.py           # some ten minutes on two CPU cores
    python bench/growth.py --quick

Time per token should not depend on the batch, and should grow with the length only by attention's
share. The memory of a PPO iteration should be proportional to the model's parameters. Each
measurement has a process of its own.
"""

import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # minirlhf and the scripts

from bench import ours
from bench.measure import seconds, with_memory
from bench.shapes import Row, Task, make_models
from minirlhf import rollout
from minirlhf.cli import start
from minirlhf.device import pick_autocast, pick_device, place
from minirlhf.files import write_json
from minirlhf.model import GPT, Config
from minirlhf.supervised import add_gradient
from minirlhf.tokenizer import Tokenizer

WIDTH = 256  # of the model whose time is measured
PROMPT = 8
AT_ONCE = 64  # tokens by which a long response is timed
LENGTHS = (64, 256, 1024, 2048, 4096)
ROWS = 4  # of the batch whose length grows
BATCHES = (1, 4, 16, 64, 256, 512)
WIDTHS = (128, 256, 512, 768)


@dataclass
class Settings:
    quick: bool = False  # the smallest measurements, to see that it runs
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: str = "float32"  # of matrix products
    out: str = "out/growth"  # gets growth.json and growth.png


def config_of(width: int, length: int) -> Config:
    return Config(vocab_size=4096, n_positions=length, n_embd=width, n_layer=4, n_head=width // 32)


def make(settings: Settings, length: int, trained: bool = False) -> GPT:
    torch.manual_seed(0)
    model = GPT(config_of(WIDTH, length), Tokenizer.train(["the fox ran home"], 260))
    device = pick_device(settings.device)
    return place(model, device, pick_autocast(settings.dtype, device), trained=trained)


def sampling(settings: Settings, rows: int, length: int) -> float:
    """Microseconds for each token of so many rows, at the end of a text of that length."""
    model = make(settings, length)
    model.tokenizer.stop_ids = (-1,)  # nothing ends
    prompts = [[7] * (length - AT_ONCE)] * rows if length > AT_ONCE else [[7] * PROMPT] * rows
    count = min(AT_ONCE, length - len(prompts[0]))

    def step(tokens: int) -> Callable[[], None]:
        dice = torch.Generator(model.device).manual_seed(0)
        return lambda: rollout.generate(model, prompts, tokens, dice)

    with model.cast_once():
        whole = median(seconds(step(count), count=3))
        begin = median(seconds(step(1), count=3))  # the prompt, and a first token
    return 1e6 * (whole - begin) / ((count - 1) * rows)


def training(settings: Settings, rows: int, length: int) -> float:
    """Microseconds of an SFT step for each token."""
    model = make(settings, length, trained=True)
    batch = [([7] * length, [True] * length)] * rows

    def step() -> None:
        add_gradient(model, batch, token_budget=4096)
        model.zero_grad()

    return 1e6 * median(seconds(step, count=3)) / (rows * length)


def memory(settings: Settings, width: int) -> tuple[float, float]:
    """Millions of parameters of the policy, and MiB by which three PPO iterations raise the peak.

    Four models: policy, reference, reward model, value model.
    """
    config = config_of(width, 256)
    row = Row("ppo", "ppo", "episodes", 32, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(row, config, pick_device(settings.device).type, settings.dtype, Path(folder))
        make_models(task.folder, config, eos_rate=0.0)
        parameters = sum(p.numel() for p in GPT.from_pretrained(task.folder / "lm").parameters())
        _, mib = with_memory(ours.ppo, task)
    return parameters / 1e6, mib


def measure(function: Callable, *arguments):
    """In a process of its own: what one measurement leaves in memory is not another's."""
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as process:
        result = process.submit(function, *arguments).result()
    print(f"{function.__name__}{arguments[1:]}: {result}", flush=True)
    return result


def draw(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (length, batch, memory_of) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    for name in ("sampling", "training"):
        length.plot(*zip(*results[f"{name} by length"]), "o-", label=name)
        batch.plot(*zip(*results[f"{name} by batch"]), "o-", label=name)
    memory_of.plot(*zip(*results["memory"]), "o-")
    for axes, x, y in (
        (length, "length of a text, tokens", "microseconds a token"),
        (batch, "rows of a batch, 64 tokens each", "microseconds a token"),
        (memory_of, "parameters, millions", "MiB of a PPO iteration"),
    ):
        axes.set(xlabel=x, ylabel=y)
        axes.spines[["top", "right"]].set_visible(False)
    length.legend(frameon=False)
    batch.set(xscale="log", yscale="log")
    length.set(ylim=(0, None))
    memory_of.set(xlim=(0, None), ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(settings: Settings) -> None:
    lengths, batches, widths = LENGTHS, BATCHES, WIDTHS
    if settings.quick:
        lengths, batches, widths = LENGTHS[:2], BATCHES[:2], WIDTHS[:2]
    results = {"settings": asdict(settings), "memory": []}
    for function in (sampling, training):
        by_length = [[x, measure(function, settings, ROWS, x)] for x in lengths]
        by_batch = [[x, measure(function, settings, x, 64)] for x in batches]
        results |= {f"{function.__name__} by length": by_length}
        results |= {f"{function.__name__} by batch": by_batch}
    for width in widths:
        results["memory"].append(measure(memory, settings, width))
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "growth.json", results)
    draw(results, out / "growth.png")
    print(f"wrote {out / 'growth.json'} and growth.png")


if __name__ == "__main__":
    start(main, Settings)
