"""Commands in fresh processes that lack one module each: `python -m tests.cli.blocked CASES`.

CASES is JSON: `{module: [args]}`.

The processes are forks of one that has loaded what every command needs, so that only the first costs seconds. Prints
JSON: `{module: [exit code, stdout, stderr]}`.
"""

import json
import os
import sys
import tempfile


def run_without(module: str, arguments: list[str]) -> list:
    """One command in a fork in which `module` cannot be imported."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            for stream, number in ((out, 1), (err, 2)):
                os.dup2(stream.fileno(), number)
            for name in [name for name in sys.modules if name.split(".")[0] == module]:
                del sys.modules[name]
            sys.modules[module] = None  # type: ignore[assignment]  # importing it raises ModuleNotFoundError
            sys.argv = ["rsmoe", *arguments]
            from modeling_rsmoe.cli import main

            code = 70
            try:
                main()
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 71
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return [code, *texts]


if __name__ == "__main__":
    import datasets  # noqa: F401
    import transformers  # noqa: F401  # what many commands need sooner or later

    import modeling_rsmoe.modeling_rsmoe  # noqa: F401

    print(
        json.dumps({module: run_without(module, arguments) for module, arguments in json.loads(sys.argv[1]).items()})
    )
