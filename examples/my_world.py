"""A world of one's own: people ask for a few words but never for a certain one. Many answers are
right, and a third of the writers miscount.

    python train_sft.py --data examples/my_world.py --out out/my/sft --steps 150 --n_layer 2 \\
        --n_embd 64 --vocab_size 300
    python train_ppo.py --data examples/my_world.py --init out/my/sft --out out/my/ppo --steps 30 \\
        --reward examples/my_world.py --advantage rloo --samples_per_prompt 4 --prompts_per_step 32

minirlhf/world.py says what else a world may have; toyworld/ is a large one.
"""

import random
import re

WORDS = ("moon", "rain", "stone", "bird", "lamp", "snow", "river", "cloud", "leaf", "drum")


def prompts(split, count, seed):
    """Requests. A fifth of all pairs of a number and a word comes in test alone."""
    pairs = []
    for index, word in enumerate(WORDS):
        for number in range(2, 8):
            if ((index + number) % 5 == 0) == (split == "test"):
                pairs.append((number, word))
    chosen = random.Random(f"{split}/{seed}").choices(pairs, k=count)
    return [{"prompt": f"Say {number} words, but not {word}."} for number, word in chosen]


def demonstrations(split, count, seed):
    """Requests and what people answered."""
    rng = random.Random(f"{split}/{seed}/answers")
    records = prompts(split, count, seed)
    for record in records:
        number, unwanted = read(record["prompt"])
        number += rng.choice((0, 0, 0, 0, 1, 2))
        words = [word for word in WORDS if word != unwanted or rng.random() < 0.2]
        record["completion"] = " ".join(rng.sample(words, number))
    return records


def read(prompt):
    number, unwanted = re.findall(r"Say (\d+) words, but not (\w+)", prompt)[0]
    return int(number), unwanted


def reward(prompts, responses):
    """1 for so many different words, less for each that is missing, too much or unwanted."""
    scores = []
    for prompt, response in zip(prompts, responses):
        number, unwanted = read(prompt)
        words = response.split()
        good = set(words) & set(WORDS) - {unwanted}
        scores.append(1 - 0.5 * abs(number - len(words)) - 0.5 * (len(words) - len(good)))
    return scores


def annotate(prompt, responses):
    return reward([prompt] * len(responses), responses)
