"""Python programs in processes of their own that find torch imported: each takes five seconds less than a fresh one.

They are forked from a server (multiprocessing's) that has imported torch, and nothing that reads the environment while
it is imported: transformers, huggingface_hub and this package every program imports itself. Environment, folder,
arguments and output are the program's own. What a test claims of a fresh process needs a fresh process still.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory


ROOT = str(Path(__file__).parents[1])
# Without this checkout: neither the tests nor the package are found by it. Taken before any test runs: loading remote
# code adds transformers' cache of it to this process's path, and a server that begins later would hand that down.
INSTALLED = [path for path in sys.path if path not in ("", ROOT)]
# What `import transformers` takes from others, most of its time.
PRELOADED = ["torch", "torch._dynamo", "torch._dynamo.aot_compile", "torch._inductor.decomposition", "torch.export"]
PRELOADED += ["torch.distributed.tensor", "torchao.quantization", "PIL.Image", "numpy", "safetensors.torch", "jinja2"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


def run_program(words: list[str], environment: dict[str, str], folder: str, installed: list[str], output: str) -> None:
    """In the new process: what `python WORDS` does (`-c CODE`, `-m MODULE` or a file, then arguments)."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    here = [folder] if words[0] in ("-c", "-m") else []
    sys.path[:] = [*here, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    assert not {"transformers", "huggingface_hub", "modeling_rsmoe"} & {*sys.modules}, "the server imports too much"
    sys.modules["torch"].set_num_threads(1)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


class Forked:
    """As `subprocess.Popen`, as far as the tests need it; what it writes goes to files."""

    def __init__(
        self, words: Sequence[object], environment: Mapping[str, str] | None = None, folder: str | Path = "."
    ):
        self.words = ["python", *map(str, words)]
        self._output = TemporaryDirectory()
        settings = (self.words[1:], dict(environment or os.environ), os.path.abspath(folder), INSTALLED)
        self._process = CONTEXT.Process(target=run_program, args=(*settings, self._output.name))
        self._process.start()

    def read(self, name: str = "stderr") -> str:
        """What it has written until now."""
        file = Path(self._output.name, name)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def poll(self) -> int | None:
        """The exit status, or None while it runs; -9 of one that was killed."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Its exit status and all that it wrote."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.words, timeout)
        return subprocess.CompletedProcess(self.words, status, self.read("stdout"), self.read("stderr"))


def run_forked(
    words: Sequence[object], environment: Mapping[str, str] | None = None, folder: str | Path = "."
) -> subprocess.CompletedProcess:
    """Run `python WORDS` and wait; the environment is this process's by default."""
    return Forked(words, environment, folder).wait()
