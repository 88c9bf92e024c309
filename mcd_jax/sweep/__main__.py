"""Runs the sweep that a config defines: `mcd-jax sweep --config=mcd_emoji --workdir=runs/weights`.

Each `add(...)` of the file's `sweep(add)` is one `mcd-jax train` in a folder of its own below --workdir, named after its
overrides; --config.key=value reaches all of them. The same command again skips what is finished and goes on with the rest. It ends
with `sweep.csv` and `sweep.html`, best first. Exit status: 0 all is well, 1 a run failed, 75 it was interrupted: start it again.

A launcher gets the training command of each run, for example
  --launcher='srun --gpus=1 {command}'   or   --launcher='sbatch --job-name={name} "--wrap=exec {command}"'
Where it returns before its run has ended, the run counts as handed over; --only_table shows later how far it is.
"""
import shlex
import shutil
import sys

from absl import flags, logging

from mcd_jax import command, signals
from mcd_jax.config import overrides
from mcd_jax.run import lock, results
from mcd_jax.run import workdir as workdir_lib
from mcd_jax.run.preemption import PREEMPTED
from mcd_jax.sweep import plan, runs, tables

overrides.define("a config that defines sweep(add), with overrides as --config.key=value")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the sweep: a folder per run, sweep.csv and sweep.html")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "runs at a time", lower_bound=1)
_LAUNCHER = flags.DEFINE_string("launcher", "", "a command that starts a run: {command} {overrides} {workdir} {name}")
_RELAUNCH = flags.DEFINE_bool("relaunch", False, "start again what was handed to a launcher and isn't finished")
_METRIC = flags.DEFINE_string("metric", "retrieval/validation/text_to_image/MRR", "what the best run is the best in")
_MINIMIZE = flags.DEFINE_bool("minimize", False, "the lowest metric is the best, as for a loss")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands and do nothing")
_ONLY_TABLE = flags.DEFINE_bool("only_table", False, "write sweep.csv and sweep.html from what is there")


def sweep(path, workdir, shared):
    """Plans, runs and reports; returns the exit status.

    Raises:
      ValueError, OSError: something doesn't fit, before anything is run.
    """
    planned = plan.plan(path, workdir, plan.values(path, shared))
    plan.check_metric(_METRIC.value, planned)
    if _ONLY_TABLE.value:
        return finish(planned, {run.name: runs.status(run) for run in planned}, workdir)
    runs.refuse_others(planned)
    if _LAUNCHER.value:
        program = plan.launch(_LAUNCHER.value, planned[0])[0]
        if shutil.which(program) is None:
            raise ValueError(f"--launcher: there is no program {program!r} here")
    if _DRY_RUN.value:
        for run in planned:
            state, command = runs.status(run)[0], plan.launch(_LAUNCHER.value, run) if _LAUNCHER.value else run.command
            print(f"# {run.name} is finished" if state == "finished" else shlex.join(command))
        return 0
    print(f"{len(planned)} runs in {workdir}, {_PARALLEL.value} at a time", flush=True)
    with lock.held(workdir), runs.interruptible(say) as stop:
        states = runs.execute(planned, _PARALLEL.value, _LAUNCHER.value, _RELAUNCH.value, say, stop=stop)
        status = finish(planned, states, workdir)
        if stop:
            say(f"stopped by {signals.NAMES[stop[0]]}: start the same command to go on with the runs that aren't finished")
        return PREEMPTED if stop else status


def finish(planned, states, workdir):
    """Writes the tables and prints them; 1 where a run failed, or gave up after many preemptions, else 0."""
    rows = tables.write(planned, states, workdir, _METRIC.value, _MINIMIZE.value)
    width = max(len(row["name"]) for row in rows)
    print(f"{'run'.ljust(width)}  {'status':11}  {_METRIC.value}")
    for row in rows:
        print(f"{row['name'].ljust(width)}  {row['status']:11}  {results.number(_METRIC.value.rpartition('/')[2], row['metric'])}"
              + (f"  {row['error']}" if row["error"] else ""))
    figures = sorted({key for row in rows for key in row["evals"]})
    if figures and all(row["metric"] is None for row in rows):
        print(f"no run has the figure {_METRIC.value!r}; --only_table --metric=... orders by one of {', '.join(figures)}")
    for name in runs.names_left(workdir, planned):
        print(f"{workdir}/{name} is of an earlier sweep and is not shown")
    print(f"{workdir}/sweep.csv, {workdir}/sweep.html", flush=True)
    return int(any(state in ("failed", "preempted") for state, _ in states.values()))


def say(text):
    print(text, flush=True)


def main(_):
    logging.set_verbosity(logging.WARNING)
    with command.sentences(printed=False):   # sweep.csv is
        sys.exit(sweep(flags.FLAGS.config, workdir_lib.named(_WORKDIR.value), overrides.given()))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    overrides.run(main)
