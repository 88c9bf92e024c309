"""Trains any config: `python -m mcd_jax.train --config=configs/mcd_emoji.py --workdir=runs/mcd_emoji [--config.key=value ...]`.

The same command again continues where the run stopped. Exit status: 0 the job finished, 75 it was preempted with its step saved
(start it again), anything else is a failure with a sentence on stderr.
"""
import contextlib
import sys
import time
import traceback

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from mcd_jax import checkpoint, distributed, evaluate, metrics
from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax import mesh as mesh_lib
from mcd_jax import workdir as workdir_lib
from mcd_jax.preemption import PREEMPTED, Preemption

_CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/, with overrides as --config.key=value")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything the run writes; one with a checkpoint is continued")


class Stop(Exception):
    """The run can't go on; the message says why and what would help."""


def train(config, workdir):
    """Runs `config` in `workdir` to its end. Returns the exit status: 0, or `PREEMPTED`.

    Raises:
      ValueError, OSError: something doesn't fit, before the first compile.
      Stop: too many non-finite updates in a row.
    """

    # ============================================================================================================================
    # Workdir, data, objective, optimizer
    # ============================================================================================================================

    lead = jax.process_index() == 0
    checkpoint.check_writable(workdir)
    workdir_lib.check_shared(workdir)
    small = workdir_lib.Workdir(workdir, write=lead)
    folder = small.folder
    job = job_lib.build(config, bad_examples=folder / "bad_examples.jsonl")
    config = job.config
    every = job.durations("checkpoint.every", config.checkpoint.every) or job.total_steps
    evals, compiled = evaluate.build(config, job.objective, job.durations, job.abstract), {}
    epochs = job.total_steps * config.batch_size / job.pipeline.examples
    say(lead, f"training {config_lib.title(config.objective)} on {config.data.source.name}: {job.pipeline.examples:,} examples, "
              f"{job.total_steps:,} steps of {config.batch_size} ({epochs:.1f} epochs, {job.total_steps * config.batch_size:,} "
              f"examples seen), {job.mesh.size} {jax.devices()[0].platform} device(s)"
              f"{f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''}, workdir {workdir}")
    say(lead, job.placement)

    # ============================================================================================================================
    # State: resume > config.resume_from > config.init_from, config.init_locked (the locked towers) > scratch
    # ============================================================================================================================

    saver = checkpoint.Checkpoints(workdir, every, config.checkpoint.keep, config.checkpoint.best or None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(job.mesh))
        stack.callback(small.close)
        stack.callback(saver.close)
        stack.callback(job.pipeline.close)
        key = jax.random.key(config.seed)
        if saver.latest() is not None:
            state = saver.restore(job.abstract)
            say(lead, f"resuming at step {int(state.step):,} of {job.total_steps:,}")
        elif config.resume_from:
            state = checkpoint.restore_from(config.resume_from, job.abstract)
            say(lead, f"continuing {config.resume_from} at step {int(state.step):,}")
        else:
            params, locked = job_lib.initial(config, job.abstract)
            state = job.init(key, params, locked)
            if config.init_from:
                say(lead, f"starting from the parameters of {config.init_from}")
            for kind in locked:
                say(lead, f"the {kind} tower is locked, as {config.init_locked[kind] or config.init_from} has it")
        first = int(state.step)
        if lead:   # not before: a config that doesn't fit the checkpoint must not replace the one that does
            config_lib.save(config, folder / "config.json")

        # ========================================================================================================================
        # Training loop: dispatch step t, then read the metrics of step t - 1
        # ========================================================================================================================

        writer = stack.enter_context(contextlib.closing(metrics.Writer(
            folder, lead, job.total_steps, first, config.tensorboard, config.wandb, config.to_dict())))
        clock = metrics.Clock(config.batch_size, job.flops() / config.batch_size, metrics.peak_flops(), writer.last)
        profile = stack.enter_context(contextlib.closing(metrics.Profile(config.profile_steps, folder)))
        preemption = stack.enter_context(Preemption())
        batches = job.pipeline.iterate(first)
        late, done = metrics.Late(), first

        def log(reports):
            """Writes the metrics of updates that are done, and stops a run that no longer moves."""
            for step, values in reports:
                if values["skipped_in_row"] >= config.optimizer.max_skipped:
                    raise Stop(f"step {step}: the last {values['skipped_in_row']} updates were not finite and were skipped; the "
                               f"newest checkpoint is of step {saver.latest()}. Lower config.optimizer.lr, or look at the "
                               "batches of these steps: the same seed gives them again")
                if step % config.log_every == 0 or step == job.total_steps:
                    writer.write(step, {**values, **clock.read(), **{name: f(step - 1) for name, f in job.schedules.items()},
                                        **job.pipeline.counts(), "memory_bytes": metrics.device_memory()})
                    small.push(soon=False)

        def evaluated(due):
            """Runs the evaluations `due` on the current state and logs their figures."""
            log(late.flush())
            with clock.eval():
                figures = evaluate.run(due, state, done, job, folder, preemption.reached, writer.say, compiled)
            writer.write(done, figures)

        def save():
            log(late.flush())
            scores = evaluate.latest(folder)
            with clock.checkpoint():
                distributed.barrier(f"the checkpoint of step {done}")
                saver.save(done, state, scores if scores.get("step") == done else None)
                small.push()

        while done < job.total_steps and not preemption.reached():
            profile.step(done, state)
            with clock.stall():
                batch = mesh_lib.to_global(next(batches), job.mesh)
            with clock.train():
                state, report = job.step(state, batch)
                done += 1
                log(late.push(done, report))
            writer.advance(done)
            saver.check()
            if done == job.total_steps:
                break
            due = [e for e in evals if e.every and done % e.every == 0]
            if due:
                evaluated(due)
            if saver.due(done):
                save()

        # ========================================================================================================================
        # Finish: save, evaluate, checksum
        # ========================================================================================================================

        if not config.checkpoint.best:
            save()
            saver.wait()
        if done == job.total_steps:
            evaluated(evals)
        save()    # with its scores where the best checkpoint is kept; a step that is saved already is left alone
        saver.wait()
        if preemption.reached():
            say(lead, f"preempted: step {done:,} of {job.total_steps:,} is saved in {workdir}; start the same command to go on")
            return PREEMPTED
        digest = checkpoint.checksum(state.params)
        say(lead, evaluate.table(evaluate.latest(folder)))
        say(lead, f"finished {done:,} steps in {clock.total():.0f} s of training; results in {workdir}/evals.json")
    print(f"params_checksum={digest}", flush=True)
    return 0


def say(lead, text):
    """One line for the person who watches, from the lead process only."""
    if lead and text:
        print(text, flush=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: flags begin with --")
    if not any(argument.lstrip("-").startswith("v") for argument in sys.argv[1:]):   # neither --verbosity nor -v
        logging.set_verbosity(logging.WARNING)
    start = time.time()
    try:
        distributed.join()
        status = train(_CONFIG.value, _WORKDIR.value)
    except (ValueError, OSError, Stop) as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()) if "\n" not in note)   # which example it was
        print(f"error after {time.time() - start:.0f} s: {error}{notes}", file=sys.stderr)
        if flags.FLAGS.verbosity > 0:
            traceback.print_exc()
        status = 1
    except Exception:
        if jax.distributed.is_initialized():   # or the others would wait for this process until a time-out
            traceback.print_exc()
            distributed.leave(1)
        raise
    distributed.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
