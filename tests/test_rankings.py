"""The record of rankings: simulated annotators, candidates, torn files, agreement."""

import gzip
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

import label
from minirlhf import UserError
from minirlhf.data import Prompt, read_rankings
from minirlhf.feedback import annotators, rankings
from minirlhf.feedback.rankings import Candidate, append_ranking, rank_by
from minirlhf.files import read_jsonl, to_json, write_jsonl

WORLD = """
def annotate(prompt, responses):
    return [float(response.split()[0]) for response in responses]

def features(prompt, response):
    return {"length": len(response.split())}

def reward(prompts, responses):
    return [float(response.split()[0]) for response in responses]

def kind(prompt):
    return "number" if "number" in prompt else "other"
"""


def number_world():
    """Its annotator likes large numbers."""
    module = SimpleNamespace(__name__="numbers")
    exec(WORLD, module.__dict__)
    return module


def candidates(n: int = 20, K: int = 4) -> list[Candidate]:
    rows = []
    for i in range(n):
        rows.append(
            Candidate(f"c{i}", Prompt.of(f"A number, {i}?"), [f"{k} {i}" for k in range(K)])
        )
    return rows


def write_candidates(path, rows: list[Candidate]) -> str:
    write_jsonl(
        path, [{"id": c.id, "prompt": c.prompt.source, "responses": c.responses} for c in rows]
    )
    return str(path)


# ------------------------------------------------------------------------- simulated annotators


def test_without_noise_ranks_follow_utility_and_equal_utilities_tie():
    assert rank_by([0.1, 3.0, -1.0, 3.0]) == [2, 1, 3, 1]
    assert rank_by([5.0]) == [1]
    rng = random.Random(0)
    for _ in range(200):
        u = [rng.randint(0, 4) for _ in range(rng.randint(1, 7))]
        ranks = rank_by(u)
        for i, j in combinations(range(len(u)), 2):
            assert (u[i] > u[j]) == (ranks[i] < ranks[j])
            assert (u[i] == u[j]) == (ranks[i] == ranks[j])
        assert set(ranks) == set(range(1, max(ranks) + 1))


def test_noise_is_bradley_terrys():
    rng = random.Random(0)
    for gap in (0.3, 1.0):
        draws = [rank_by([0.0, gap, -9.0], 0.5, rng)[:2] for _ in range(20000)]
        assert draws.count([1, 2]) / 20000 == pytest.approx(
            1 / (1 + math.exp(gap / 0.5)), abs=0.012
        )


def test_an_annotator_depends_on_seed_and_prompt_only():
    rows = candidates(30)
    annotate = rankings.simulated_annotator(number_world(), noise=2.0, seed=1)
    other = rankings.simulated_annotator(number_world(), noise=2.0, seed=2)
    forwards = [annotate(c.prompt.source, c.responses) for c in rows]
    backwards = [annotate(c.prompt.source, c.responses) for c in reversed(rows)]
    assert forwards == backwards[::-1]
    assert forwards != [other(c.prompt.source, c.responses) for c in rows]


@pytest.mark.parametrize(
    "code, named",
    [
        ("return [float('nan')] * len(responses)", "gave nan for the response '1'"),
        ("return [1.0, 2.0, 3.0, 4.0]", "for 3 responses"),
        ("return [1.0]", "for 3 responses"),
        ("return None", "for 3 responses"),
        ("return [None, 1.0, 2.0]", "gave None"),
        ("return ['a', 'b', 'c']", "gave 'a' for the response '1'"),
        ("raise KeyError('oops')", "raised KeyError"),
        ("raise SystemExit", "raised SystemExit"),
    ],
)
def test_an_annotator_that_misbehaves_is_named(code, named):
    module = number_world()
    exec(f"def annotate(prompt, responses):\n    {code}", module.__dict__)
    annotate = rankings.simulated_annotator(module, noise=0.0)
    with pytest.raises(UserError, match=rf"numbers\.annotate .*{named}"):
        annotate("A number?", ["1", "2", "3"])


def test_a_bias_adds_weighted_features():
    texts = ["1 a b c", "2"]
    assert rankings.simulated_annotator(number_world(), noise=0)("p", texts) == [2, 1]
    assert rankings.simulated_annotator(number_world(), noise=0, bias="length=1")("p", texts) == [
        1,
        2,
    ]
    for wrong in ("charm=1", "length", "length=much", "length=nan"):
        with pytest.raises(UserError, match="--bias"):
            rankings.simulated_annotator(number_world(), bias=wrong)


def test_an_annotator_ties_equal_texts_whatever_the_noise():
    annotate = rankings.simulated_annotator(number_world(), noise=5.0)
    for prompt in range(20):
        ranks = annotate(str(prompt), ["1", "2", "1", "3", "1"])
        assert ranks[0] == ranks[2] == ranks[4]
        assert sorted({ranks[0], ranks[1], ranks[3]}) == [1, 2, 3]


def test_simulated_annotators_take_turns_and_the_reliable_agree_more(tmp_path):
    rows = candidates(200)
    (tmp_path / "numbers_world.py").write_text(WORLD)
    settings = label.Settings(
        candidates=write_candidates(tmp_path / "c.jsonl", rows),
        out=str(tmp_path / "r.jsonl"),
        annotator=str(tmp_path / "numbers_world.py"),
        name="toy",
        noise="0.01,0.02,5",
    )
    for wrong in ("much", "nan", "-1", "0.1,inf"):
        with pytest.raises(UserError, match="--noise"):
            label.main(replace(settings, noise=wrong))
    label.main(settings)
    before = (tmp_path / "r.jsonl").read_bytes()
    label.main(settings)
    assert (tmp_path / "r.jsonl").read_bytes() == before  # nothing is asked twice
    by_annotator = {}
    for ranking in read_jsonl(tmp_path / "r.jsonl"):
        by_annotator.setdefault(ranking["annotator"], {})[ranking["id"]] = ranking
    assert set(by_annotator) == {"toy1", "toy2", "toy3"}
    shared = set.intersection(*map(set, by_annotator.values()))
    assert len(shared) == 20
    pairs = {name: annotators.comparisons(rows.values()) for name, rows in by_annotator.items()}
    close, _, count = annotators.agreement(pairs["toy1"], pairs["toy2"])
    far, _, _ = annotators.agreement(pairs["toy1"], pairs["toy3"])
    assert count == 20 * 6 and close > far + 0.1


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "record, field",
    [
        ({"prompt": "p", "responses": ["x"]}, "responses"),
        ({"prompt": "p", "responses": ["x", 1]}, "responses"),
        ({"prompt": "p"}, "responses"),
        ({"prompt": 1, "responses": ["x", "y"]}, "prompt"),
        ({"id": "a", "prompt": "p", "responses": ["x", "y"]}, "id"),
        ({"id": [1], "prompt": "p", "responses": ["x", "y"]}, "id"),
    ],
)
def test_wrong_candidates_are_named_by_line_and_field(record, field, tmp_path):
    good = {"id": "a", "prompt": "p", "responses": ["x", "y"]}
    write_jsonl(tmp_path / "c.jsonl", [good, record])
    with pytest.raises(UserError, match=rf"line 2.*'{field}'"):
        rankings.read_candidates(str(tmp_path / "c.jsonl"))


def test_a_candidate_is_a_conversation_and_its_record_keeps_the_source(tmp_path):
    talk = [{"role": "user", "content": "hi\n\nAssistant: no turn"}]
    write_jsonl(tmp_path / "c.jsonl", [{"prompt": talk, "responses": ["x", "y"]}])
    (candidate,) = rankings.read_candidates(str(tmp_path / "c.jsonl"))
    assert candidate.prompt.turns == (("user", "hi\n\nAssistant: no turn"),)
    append_ranking(tmp_path / "r.jsonl", candidate, [2, 1], "me", loss=math.nan)
    (ranking,) = read_jsonl(tmp_path / "r.jsonl")
    assert ranking["prompt"] == talk and ranking["loss"] is None
    assert read_rankings(str(tmp_path / "r.jsonl"))[0].prompt == candidate.prompt


def test_a_torn_last_line_is_put_aside_and_a_whole_one_is_kept(tmp_path):
    rows, out, aside = candidates(3), tmp_path / "r.jsonl", tmp_path / "r.jsonl.torn"
    append_ranking(out, rows[0], [1, 2, 3, 4], "me")
    append_ranking(out, rows[1], [4, 3, 2, 1], "me")
    whole = out.read_bytes()
    for cut in (1, 2, 40, 150, len(whole.splitlines()[1]) - 3):
        out.write_bytes(whole[:-cut])
        aside.unlink(missing_ok=True)
        kept = rankings.open_rankings(out, rows)
        assert len(kept) == (2 if cut == 1 else 1)
        if cut > 1:
            assert out.read_bytes() + aside.read_bytes() == whole[:-cut] + b"\n"
        append_ranking(out, rows[2], [1, 2, 3, 4], "me")
        assert len(rankings.open_rankings(out, rows)) == len(kept) + 1
    odd = Candidate("odd", Prompt.of("p"), ["\ufffd", "\u2028\r\n\x00"])
    append_ranking(out, odd, [1, 2], "me")
    assert rankings.open_rankings(out, [*rows, odd])[-1]["responses"] == odd.responses


def record_line(number: int) -> bytes:
    ranking = {"id": number, "prompt": f"q{number}", "responses": ["a", "b"], "ranks": [1, 2]}
    return to_json(ranking | {"annotator": "me", "time": "t"}).encode()


NOT_OURS = {  # content -> the line that is named
    "plain text": (b"first note\nlast note", 1),
    "one line of text": (b"a note", 1),
    "a list": (b'[\n {"id": 0},\n {"id": 1}\n]', 1),
    "a list on one line": (b"[" + record_line(0) + b"]", 1),
    "UTF-16": (record_line(0).decode().encode("utf-16"), 1),
    "UTF-16 without a mark": (record_line(0).decode().encode("utf-16-le"), 1),
    "gzip": (gzip.compress(record_line(0)), 1),
    "lines that end in \\r": (record_line(0) + b"\r" + record_line(1) + b"\r", 1),
    "\\r, and torn": (record_line(0) + b"\r" + record_line(1)[:-9], 1),
    "a comma too much": (record_line(0) + b"\n" + record_line(1)[:-1] + b",}", 2),
    "a comma behind": (record_line(0) + b"\n" + record_line(1) + b",", 2),
    "another record's beginning": (record_line(0) + b'\n{"prompt": "q', 2),
    "a torn line below an odd one": (b"odd\n" + record_line(1)[:-9], 1),
    "a torn line below another record": (b'{"text": "odd"}\n' + record_line(1)[:-9], 1),
    "a torn line below other candidates": (record_line(9) + b"\n" + record_line(1)[:-9], 1),
    "a number": (record_line(0) + b"\n7", 2),
}


@pytest.mark.parametrize(("content", "line"), NOT_OURS.values(), ids=NOT_OURS)
def test_a_file_of_another_kind_is_refused_and_untouched(content, line, tmp_path):
    rows = [Candidate(i, Prompt.of(f"q{i}"), ["a", "b"]) for i in range(3)]
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"r.jsonl, line {line}:"):
        rankings.open_rankings(path, rows)
    rankings.close_rankings(path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["r.jsonl"]
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="no regular file"):
        rankings.open_rankings(tmp_path / "pipe.jsonl", rows)


def test_a_field_that_a_table_has_left_empty_is_missing(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(record_line(0)[:-1] + b', "seconds": null, "asked": null}\n')
    row = Candidate(0, Prompt.of("q0"), ["a", "b"])
    assert rankings.open_rankings(path, [row])[0].keys().isdisjoint({"seconds", "asked"})


def test_an_answer_that_was_taken_back_does_not_count(tmp_path):
    (row,) = candidates(1)
    path = tmp_path / "r.jsonl"
    append_ranking(path, row, [1, 2, 3, 4], "me")
    append_ranking(path, row, [1, 2, 3, 4], "you")
    append_ranking(path, row, [4, 3, 2, 1], "me", repeat=True)
    append_ranking(path, row, [2, 1, 3, 4], "me", replaces=True)
    append_ranking(path, row, [3, 2, 1, 4], "me", replaces=True)
    found = [(r["annotator"], r["ranks"]) for r in rankings.open_rankings(path, [row])]
    assert found == [("you", [1, 2, 3, 4]), ("me", [4, 3, 2, 1]), ("me", [3, 2, 1, 4])]
    assert [ranking.ranks for ranking in read_rankings(str(path))] == [[1, 2, 3, 4], [3, 2, 1, 4]]
    assert "me: 2 rankings" in annotators.summarize(str(path))  # one of them a repeat
    append_ranking(path, row, [1, 1, 1, 1], "me", replaces=True, skipped=True)
    assert [ranking.annotator for ranking in read_rankings(str(path))] == ["you"]


def test_rankings_of_other_candidates_are_refused(tmp_path):
    append_ranking(tmp_path / "r.jsonl", candidates()[8], [1, 2, 3, 4], "me")
    with pytest.raises(UserError, match=r"r.jsonl, line 1"):
        rankings.open_rankings(tmp_path / "r.jsonl", candidates(3))
    with pytest.raises(UserError, match=r"\.jsonl"):
        rankings.open_rankings(tmp_path / "r.txt", candidates(3))


# ------------------------------------------------------------------------- agreement


def test_agreement_has_an_interval_over_prompts():
    a = {(p, i, 0): 1 for p in range(40) for i in (1, 2)} | {("only a", 1, 0): 1}
    b = {(p, i, 0): 1 if p % 4 else -1 for p in range(40) for i in (1, 2)} | {("only b", 1, 0): 1}
    share, half, pairs = annotators.agreement(a, b)
    assert (share, pairs) == (0.75, 80)
    assert half == pytest.approx(1.96 * (0.75 * 0.25 / 39) ** 0.5)  # 40 units, not 80
    assert annotators.agreement(a, {})[2] == 0


def test_full_agreement_on_few_prompts_is_not_certain():
    a = {(prompt, 0, 1): 1 for prompt in range(10)}
    assert annotators.agreement(a, a) == (1.0, pytest.approx(0.3), 10)  # 3 / n
    opposite = dict.fromkeys(a, -1)
    assert annotators.agreement(a, opposite) == (0.0, pytest.approx(0.3), 10)


def test_position_bias_of_an_ai():
    always_a = [{"asked": [[0, 1, 1.0, 1.0], [0, 2, 1.0, 1.0]]}]
    assert annotators.position_bias(always_a) == {"flips": 1.0, "first": 0.5, "pairs": 2}
    fair = [{"asked": [[0, 1, 0.9, 0.1], [0, 2, 0.2, None]]}]
    assert annotators.position_bias(fair) == {"flips": 0, "first": pytest.approx(0), "pairs": 1}
    assert annotators.position_bias([])["pairs"] == 0


def test_a_summary_counts_and_compares(tmp_path):
    rows, out = candidates(20, K=3), tmp_path / "r.jsonl"
    for i, row in enumerate(rows):
        append_ranking(out, row, [1, 2, 3], "anna", seconds=6.0)
        append_ranking(out, row, [3, 2, 1] if i < 5 else [1, 2, 3], "ben", seconds=12.0)
    append_ranking(out, rows[0], [1, 2, 2], "anna", seconds=6.0, repeat=True, harmful=[2])
    append_ranking(out, rows[0], [1, 1, 1], "carl", seconds=6.0, skipped=True)
    summary = annotators.summarize(str(out))
    assert "anna: 21 rankings, 0 skipped, 0% of pairs tied" in summary
    assert "10.0 labels/min" in summary and "carl: 0 rankings, 1 skipped" in summary
    assert "themselves: 0.83" in summary
    assert "anna and ben agree: 0.75 ±0.19 on 60 pairs" in summary


@pytest.mark.parametrize("count", [2, 9])
def test_names_in_a_strangers_file_do_not_steer_the_terminal(count, tmp_path, capsys):
    rows, out = candidates(3), tmp_path / "r.jsonl"
    for number in range(count):
        name = f"{number}\x1b]0;pwned\a\x1b[2J\u202e\nben: 100 rankings"
        for row in rows:
            append_ranking(out, row, [1, 2, 3, 4], name, policies=[name, "b", "c", "d"])
    label.main(label.Settings(summary=True, out=str(out)))
    summary = capsys.readouterr().out
    assert summary.replace("\n", "").isprintable() and "\\x1b]0;pwned" in summary
    assert "wins 100" in summary and "agree: 1.00" in summary
    assert not any(line.startswith("ben") for line in summary.splitlines())


def test_a_summary_compares_with_files_and_with_a_worlds_reward(tmp_path, capsys):
    rows, ai, anna = candidates(30), tmp_path / "ai.jsonl", tmp_path / "anna.jsonl"
    for row in rows:
        asked = [[i, j, 0.9, 0.6] for i, j in combinations(range(4), 2)]  # A, whichever it is
        append_ranking(ai, row, [1, 2, 3, 3], "ai", asked=asked)
        append_ranking(anna, row, [2, 1, 3, 4], "anna")
    label.main(label.Settings(summary=True, out=str(ai), compare=str(anna)))
    summary = capsys.readouterr().out
    assert f"ai and anna agree: {4.5 / 6:.2f} ±0.00 on 180 pairs" in summary
    assert "100.0% of 180 pairs" in summary and "+0.250" in summary
    (tmp_path / "summary_world.py").write_text(WORLD)
    world = str(tmp_path / "summary_world.py")
    label.main(label.Settings(summary=True, out=str(anna), compare=world))
    assert f"agree: {1 / 6:.2f} ±0.00 on 180 pairs" in capsys.readouterr().out
    stranger = Candidate("s", Prompt.of("Say x."), ["1", "2"])
    append_ranking(tmp_path / "o.jsonl", stranger, [1, 2], "ben")
    with pytest.raises(UserError, match="Say x"):
        annotators.summarize(str(tmp_path / "o.jsonl"), world)


def test_a_summary_refuses_what_does_not_belong_together(tmp_path):
    row, path = candidates(1)[0], tmp_path / "r.jsonl"
    append_ranking(path, row, [1, 2, 3, 4], "ai")
    append_ranking(path, row, [2, 1, 3, 4], "ai")
    with pytest.raises(UserError, match=r"line 2.*--name"):
        annotators.summarize(str(path))
    path.unlink()
    append_ranking(path, row, [1, 2, 3, 4], "ai")
    append_ranking(path, Candidate("c0", row.prompt, ["x", "y"]), [1, 2], "ben")
    with pytest.raises(UserError, match=r"line 2.*c0"):
        annotators.summarize(str(path))


ODD = (
    {"id": ["c0"]},
    {"id": None},
    {"id": 1.5},
    {"annotator": ["me"]},
    {"annotator": 3},
    {"prompt": 3},
    {"ranks": "1234"},
    {"ranks": [1, 2, 3]},
    {"ranks": [1, 2, 3, "4"]},
    {"ranks": [1, 2, 3, [4]]},
    {"ranks": [1, 2, 3, 10**400]},
    {"responses": {"a": 1}},
    {"responses": ["a", "b", "c", 4]},
    {"seconds": "6"},
    {"seconds": 10**400},
    {"asked": 3},
    {"asked": [3]},
    {"asked": [[0, 1, 0.5]]},
    {"asked": [[0, 1, "A", 0.5]]},
)


@pytest.mark.parametrize("fields", ODD)
def test_a_summary_names_the_line_of_an_odd_ranking(fields, tmp_path):
    path = tmp_path / "r.jsonl"
    row = candidates(1)[0]
    append_ranking(path, row, [1, 2, 3, 4], "me")
    append_ranking(path, row, **{"ranks": [1, 2, 3, 4], "annotator": "you"} | fields)
    with pytest.raises(UserError, match="line 2: this is no ranking"):
        annotators.summarize(str(path))


def test_of_many_annotators_each_is_compared_with_the_others(tmp_path):
    rows, out = candidates(30, K=2), tmp_path / "r.jsonl"
    for number in range(300):
        for row in rows[number % 3 :: 3]:
            ranks = [2, 1] if number == 0 else [1, 2]
            append_ranking(out, row, ranks, f"a{number}", sync=False)
    lines = annotators.summarize(str(out)).splitlines()
    assert len(lines) == 600
    assert "a0 and the others agree: 0.00 ±0.30 on 10 pairs" in lines
    assert "a1 and the others agree: 1.00 ±0.30 on 10 pairs" in lines
    assert "a3 and the others agree: 0.99 ±0.00 on 10 pairs" in lines


def test_one_process_writes_a_file_of_rankings(tmp_path):
    rows = candidates(2)
    path = write_candidates(tmp_path / "c.jsonl", rows)
    rankings.open_rankings(tmp_path / "r.jsonl", rows)
    (tmp_path / "link.jsonl").symlink_to("r.jsonl")
    command = [sys.executable, "label.py", "--candidates", path, "--annotator", "toyworld"]
    for name in ("r.jsonl", "link.jsonl"):
        argv = [*command, "--out", str(tmp_path / name)]
        done = subprocess.run(argv, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert done.returncode == 2 and f"written by process {os.getpid()}:" in done.stderr
    assert not (tmp_path / "r.jsonl").exists()
    rankings.close_rankings(tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl.lock").exists()
