"""What the experiments share.

    laboratory.py   settings, arms that are computed once, the three files that are written
    workers.py      several arms at a time
    arms.py         arms that many experiments use; responses to prompts
    intervals.py    statistics over seeds
    figures.py      one style of figure
    training.py     methods with equal rewards and episodes
    attainable.py   what can be had for how much KL
    pairs.py, groups.py, beliefs.py, harm.py, forgetting.py, ensembles.py, principles.py,
    sources.py, by_hand.py, hh.py
                    what one or two experiments plant in labels and texts, and measure

An experiment:

    from lab import arms, figures, start
    from lab.intervals import estimate

    def arm(L, folder, *, labels, seed):       # trains below `folder`, returns what JSON can hold
        data = L.arm(arms.rankings, count=labels, seed=seed)["data"]  # arms may use other arms
        return arms.reward_model(L, folder, data=data, seed=seed)

    def main(L):
        sizes = L.pick(quick=(50, 200), default=(50, 200, 800))
        rows = L.run(arm, [{"labels": n} for n in sizes])  # for each seed: key and result in a row
        fig, [ax] = figures.new(("Accuracy", "comparisons", "accuracy on held-out pairs"))
        figures.curve(ax, rows, "labels", "validation_accuracy", "reward model")
        L.finish(fig, rows, expected="...", found=["..."], agrees=True)

    if __name__ == "__main__":
        start(main)

An arm is one thing that is trained or measured: a function (L, folder, *, settings, seed) -> dict.
L.arm and L.run keep its dict in folder/arm.json, the folder named after the key (values, SFT model,
--data). What is there is not computed again, so an experiment that was killed goes on; training
inside takes `resume=True`. Called directly, as `arms.reward_model` above, it is computed each time.
After changing an arm's code delete its files. What training prints goes to the arm's log.txt.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root scripts and minirlhf

from lab.laboratory import Lab, Settings, start

__all__ = ["Lab", "Settings", "start"]
