"""What moves in a terminal; a log has clean lines."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

WAIT = """
import time
from minirlhf.console import waiting
with waiting("sampling", 4, "responses") as bar:
    for _ in range(4):
        time.sleep({seconds})
        bar.update()
with waiting("reading"):
    time.sleep(4 * {seconds})
print("done")
"""

ASKING = """
import time
from minirlhf.console import waiting
from minirlhf.feedback.judge import Endpoint, Tally
def answers():
    for answer in (1.0, None, 0.0, 1.0):
        time.sleep(0.7)
        yield answer
with waiting("asking", 4, "answers") as bar:
    tally = Tally(Endpoint("http://localhost/v1", "model"), bar)
    assert list(tally.count(answers())) == [1.0, None, 0.0, 1.0]
"""


def in_terminal(code: str) -> str:
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=its, stderr=its)
    os.close(its)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 1000)
        except OSError:  # it has ended
            break
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def test_a_wait_moves_and_is_gone_at_its_end():
    shown = in_terminal(WAIT.format(seconds=1.0))
    assert "sampling  50 %" in shown and "2/4 responses in 00:02, 00:02 left" in shown
    assert shown.count("reading: 00:0") >= 1
    assert shown.endswith("\rdone\r\n")


def test_unusable_answers_are_seen_while_a_model_is_asked():
    shown = in_terminal(ASKING)
    assert "asking, 1 unusable  75 %" in shown and "3/4 answers" in shown


def test_a_short_wait_shows_nothing():
    assert in_terminal(WAIT.format(seconds=0.01)).strip() == "done"


def test_a_log_has_clean_lines():
    done = subprocess.run(
        [sys.executable, "-c", WAIT.format(seconds=0.5)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
