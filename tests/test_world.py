"""A user's module is imported with care: the answer is a module, or one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from minirlhf import UserError, world

GOOD = "def reward(prompts, responses):\n    return [0.0] * len(prompts)\n"
BROKEN = {
    "raises": ("x = 1\nx.y\n", "AttributeError"),
    "exits": ("import sys\nsys.exit()\n", "SystemExit"),
    "is_no_python": ("def reward(:\n", "SyntaxError"),
    "needs_another": ("import a_module_that_nobody_has\n", "ModuleNotFoundError"),
    "is_binary": ("\0\0", "null bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_module_is_one_sentence_with_its_place(tmp_path, monkeypatch, name):
    content, kind = BROKEN[name]
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for spec in (f"{name}.py", name):
        with pytest.raises(UserError, match=kind) as caught:
            world.find(spec)
        message = str(caught.value)
        assert name in message and "\n" not in message
        if name in ("raises", "exits", "is_no_python"):
            assert f"{name}.py, line {1 if name == 'is_no_python' else 2}" in message
        assert name not in sys.modules


def test_what_a_module_prints_is_no_result(tmp_path, monkeypatch, capsys):
    (tmp_path / "prints.py").write_text("print('loading')\n" + GOOD)
    module = world.import_file(str(tmp_path / "prints.py"))
    assert module.reward(["a"], ["b"]) == [0.0]
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "loading\n")


def test_only_modules_here_are_found_by_name(tmp_path, monkeypatch):
    """A name of Python's own is not imported: it might open a window, or a browser."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("antigravity", "this", "idlelib.idle", "out", "out.nothing", "torch", "..x", "."):
        assert world.find(name) is None
    assert "antigravity" not in sys.modules
    with pytest.raises(UserError, match="--reward antigravity"):
        world.load("antigravity", "--reward")


def test_ctrl_c_ends_a_slow_import(tmp_path):
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt\n" + GOOD)
    code = "from minirlhf import world; world.import_file('slow.py')"
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({root!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "KeyboardInterrupt" in done.stderr and "UserError" not in done.stderr
