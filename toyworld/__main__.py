"""Show the toy world: prompts of each kind, demonstrations and their gold scores."""

import argparse
import textwrap

from minirlhf.cli import exit_codes
from toyworld import KINDS, demonstrations, gold_parts, kind
from toyworld.world import transcript


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toyworld", description=__doc__)
    parser.add_argument("--count", type=int, default=2, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    records = demonstrations("test", settings.count * len(KINDS), settings.seed)
    for record in sorted(records, key=lambda record: KINDS.index(kind(record["prompt"]))):
        show(record["prompt"], record["completion"])


def show(prompt, completion: str) -> None:
    scores = gold_parts(prompt, completion)
    columns = [f"{part} {score:5.2f}" for part, score in scores.items()]
    print(f"{kind(prompt):<10}" + "  ".join(columns))
    text = f"{transcript(prompt)} {completion}"
    for line in text.splitlines():
        print(textwrap.fill(line, 96, initial_indent="  ", subsequent_indent=" " * 13))
    print()


if __name__ == "__main__":
    with exit_codes():
        main()
