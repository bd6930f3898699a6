"""Lives of a script: each runs in a fork of one process that has imported everything.

A job is a dict: the script's "argv", its folder or file "out", and what happens to it:

    seconds       it is killed after so long
    die, by       the number of its file operation before which it gets the signal `by`
    log           counts only the openings to add to the file of this name
    half          the share of a tensor file that is there at the operation in its middle
    file, memory  bytes beyond which no file and no memory grows
    before, after shell commands around its life
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Operations:
    """Counts file operations in a job's folder, and ends the process at the one that is due."""

    def __init__(self, job: dict):
        self.job = job
        self.count = 0

    def hook(self, event: str, args: tuple) -> None:
        if event in ("open", "os.rename", "os.remove"):
            adds_lines = event == "open" and "a" in str(args[1])
            self.happens(str(args[0]), adds_lines)

    def happens(self, path: str, adds_lines: bool = False) -> None:
        if not path.startswith(self.job["out"]):
            return
        if "log" in self.job and not (adds_lines and path.endswith(self.job["log"])):
            return
        self.count += 1
        if self.count == self.job.get("die"):
            os.kill(os.getpid(), self.job.get("by", signal.SIGKILL))


def live(job: dict) -> int:
    """Run a job in this process; its exit code."""
    import safetensors.torch

    from minirlhf import checkpoint, cli

    operations = Operations(job)

    def save_by_halves(tensors, path, **options) -> None:
        safetensors.torch.save_file(tensors, path, **options)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: int(len(content) * job.get("half", 0.5))])
        operations.happens(str(path))
        Path(path).write_bytes(content)

    if "file" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file"], job["file"]))
    else:
        checkpoint.save_file = save_by_halves
    if "memory" in job:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + job["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(operations.hook)
    sys.argv = job["argv"]
    script = sys.modules[Path(job["argv"][0]).stem]
    code = 0
    try:
        cli.start(script.main, script.Settings)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    print(f"{operations.count} operations")
    sys.stdout.flush()
    return code


def serve() -> None:
    """Read jobs, a line each, and print the exit code of each; negative for a signal."""
    import torch

    import run_rlhf  # noqa: F401
    import train_dpo  # noqa: F401
    import train_ppo  # noqa: F401
    import train_rm  # noqa: F401
    import train_sft  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        subprocess.run(job.get("before", "true"), shell=True, check=True)
        child = os.fork()
        if child == 0:
            with open(job["console"], "w") as console:
                os.dup2(console.fileno(), 1)
                os.dup2(console.fileno(), 2)
            sys.stdin = None  # the jobs are not for the script
            os._exit(live(job))
        end = time.monotonic() + job.get("seconds", 300)
        pid, status = 0, 0
        while pid == 0:
            if time.monotonic() > end:
                os.kill(child, job.get("by", signal.SIGKILL))
                end = float("inf")
            pid, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.001)
        subprocess.run(job.get("after", "true"), shell=True, check=True)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Lives:
    """lives(argv, **job) -> (exit code, negative for a signal; what was printed)."""

    def __init__(self, folder: Path):
        self.console = folder / "console.txt"
        unshare = ["unshare", "-rm"]  # mounts of its own, for full and read-only disks
        self.can_mount = bool(shutil.which("unshare"))
        if self.can_mount:
            self.can_mount = subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
        command = [sys.executable, __file__]
        if self.can_mount:
            command = unshare + command
        self.server = subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def __call__(self, argv: list[str], **job) -> tuple[int, str]:
        out = next(flag for flag in ("--out", "--candidates_out") if flag in argv)
        job |= {"argv": argv, "out": argv[argv.index(out) + 1], "console": str(self.console)}
        print(json.dumps(job), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        return code, self.console.read_text()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()


if __name__ == "__main__":
    serve()
