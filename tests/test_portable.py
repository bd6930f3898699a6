"""Nothing on the main path needs Linux: no module, function or file name that Windows lacks."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEASURE_ON_LINUX = {"bench/run.py", "peers.py"}
PATTERNS = ("*.py", "minirlhf/**/*.py", "toyworld/*.py", "examples/*.py")
FILES = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
MODULES = {
    "fcntl",
    "termios",
    "tty",
    "pty",
    "pwd",
    "grp",
    "resource",
    "posix",
    "readline",
    "curses",
}
FUNCTIONS = {"fork", "kill", "killpg", "getuid", "geteuid", "chown", "mkfifo", "sysconf", "setsid"}
SIGNALS = {"SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "alarm", "setitimer", "pause"}


def problem(node: ast.AST) -> str:
    if isinstance(node, ast.Import):
        return ", ".join(MODULES & {alias.name for alias in node.names})
    if isinstance(node, ast.ImportFrom):
        return ", ".join(MODULES & {node.module})
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        lacking = {"os": FUNCTIONS, "signal": SIGNALS}.get(node.value.id, ())
        return node.attr if node.attr in lacking else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        names = {keyword.arg for keyword in node.keywords}
        if node.func.attr in ("read_text", "write_text") and "encoding" not in names:
            return f"{node.func.attr} without an encoding"
    return ""


def is_guard(node: ast.AST) -> bool:
    """try, with suppress(...), and a function that looks at os.name."""
    if isinstance(node, ast.FunctionDef):
        return "os.name ==" in ast.unparse(node)
    if isinstance(node, ast.With):
        return "suppress(" in ast.unparse(node.items[0])
    return isinstance(node, ast.Try)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_that_only_posix_has(path):
    if path.name in MEASURE_ON_LINUX:
        pytest.skip("measures memory as Linux tells it")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if is_guard(node)]
    guarded = {id(inner) for node in guards for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) not in guarded and problem(node):
            pytest.fail(f"{path.name}, line {node.lineno}: {problem(node)}")
