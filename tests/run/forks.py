"""A process that has imported what the commands import, and forks one for each command: it starts in a tenth of a second.

It reads a line of JSON for each: {"argv", "env", "cwd", "out", "patch"}, and answers with the process id; or {"pid"}, and answers
with the exit status, or null while it runs. No backend of JAX runs in it, so that forking it is safe.
"""
import importlib
import json
import os
import sys


def main():
    for name in ("mcd_jax.job", "mcd_jax.evals.retrieval", "mcd_jax.run.checkpoint", "mcd_jax.run.metrics", "mcd_jax.trained",
                 "mcd_jax.run.preemption", "mcd_jax.data.detect.detect", "mcd_jax.objectives.two_tower", "mcd_jax.methods.clip",
                 "mcd_jax.models.resnet", "mcd_jax.models.text", "array_record.python.array_record_module"):
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        if "pid" in asked:
            pid, status = os.waitpid(asked["pid"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _run(**asked)
        print(pid, flush=True)


def _run(argv, env, cwd, out, patch):
    """The command, in a session of its own."""
    try:
        os.setsid()
        os.environ.update(env)
        os.chdir(cwd)
        with open(out, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if patch:
            module, _, name = patch.partition(":")
            getattr(importlib.import_module(module), name)()
        from mcd_jax import cli
        cli.main(argv)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
