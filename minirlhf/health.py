"""What is healthy: the one table that training, the report and the evaluation read.

`warnings(metrics)` judges a step's row of metrics.jsonl, or the means of a run's last steps. The
report shows `HEALTH` row by row. `PROBES` holds the limits of evaluate.py's probes.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """A metric of train_ppo.py, and the limits beyond which it is worth a warning."""

    metric: str
    what: str
    healthy: str
    low: float
    high: float
    if_low: str
    if_high: str
    warm_up: int = 0  # steps that are not judged


@dataclass(frozen=True)
class Probe:
    """A measurement by evaluate.py: healthy up to `limit`, and with `below` also down to -limit."""

    limit: float
    fine: str
    above: str
    below: str = ""


# fmt: off
HEALTH = (
    Health("first_ratio_off", "log of the ratio before an update, root mean square", "0", 0, 0.05,
           "", "sampling and training disagree: look for dropout or another temperature"),
    Health("has_score", "share of responses to which the reward gives a score", "near 1", 0.5, 1,
           "look at what the reward returns: most of it teaches nothing", ""),
    Health("kl", "KL to the reference, nats per response", "0 to 10", -1, 20,
           "sampling and scoring disagree",
           "far from the reference: raise --kl_coef or lower --lr"),
    Health("approx_kl", "approximate KL of one update, nats per token", "0.001 to 0.02", -1, 0.1,
           "", "lower --lr"),
    Health("clip_fraction", "share of tokens whose ratio is clipped", "0.005 to 0.2", 0, 0.3,
           "", "lower --lr"),
    Health("entropy", "entropy, nats per token", "falling slowly", 0.05, math.inf,
           "the policy has collapsed: raise --kl_coef or lower --lr", ""),
    Health("explained_variance", "explained variance of the value model", "above 0", 0, 1,
           "a constant would predict returns better", "", warm_up=10),
    Health("finished", "share of responses that end by themselves", "near 1", 0.8, 1,
           "raise --max_tokens, or the policy rambles for reward", ""),
    Health("distinct", "share of a batch's responses that are distinct", "steady", 0.5, 1,
           "the policy repeats itself: raise --kl_coef", ""),
    Health("length_correlation", "correlation of score and length", "below 0.6", -1, 0.6,
           "", "look at the samples for padding"),
    Health("no_spread", "share of prompts whose responses all score the same", "below 0.8", 0, 0.8,
           "", "most prompts teach nothing: use other prompts or a higher --temperature"),
    Health("score_std", "standard deviation of a step's scores", "above 0", 0.001, math.inf,
           "all responses score the same: there is nothing to learn from", ""),
)

PROBES = {
    "correlation of reward and length, less gold's": Probe(
        0.25, "length hardly moves the reward",
        "the reward prefers longer answers", "the reward prefers shorter answers"),
    "accuracy of counting words, less the reward's": Probe(
        -0.02, "the reward knows more than length", "counting words does as well"),
    "accuracy near the reference, less far from it": Probe(
        0.1, "accuracy holds up", "the further away, the worse it gets"),
    "claimed accuracy, less the real one": Probe(
        0.1, "the reward is as sure as it is right",
        "the reward is too sure", "the reward is too modest"),
    "garbled text liked better than whole, less gold's": Probe(
        0.2, "garbled text does not fool the reward", "garbled text fools the reward"),
    "right answers that a wrong belief flips": Probe(
        0.1, "the policy keeps to what it knows", "the policy goes along with wrong beliefs"),
    "gain in reward, less a held-out judge's": Probe(
        0.5, "the reward does not outrun a held-out judge",
        "the reward outruns a held-out judge"),
    "best gold at a smaller KL, less gold at the largest": Probe(
        0, "gold grows with KL", "the last nats of KL have cost gold"),
}
# fmt: on


def warnings(metrics: dict) -> list[str]:
    """A sentence for each metric beyond its limits; what is absent, None or NaN is not judged.

    metrics: name -> value. A "step" among them tells whether warm-up is over.
    """
    sentences = []
    for row in HEALTH:
        value = metrics.get(row.metric)
        if value is None or metrics.get("step", math.inf) < row.warm_up:
            continue
        advice = ""
        if value < row.low:
            advice = row.if_low
        if value > row.high:
            advice = row.if_high
        if advice:
            sentences.append(f"{row.what}: {value:.3g}, healthy is {row.healthy}; {advice}")
    return sentences
