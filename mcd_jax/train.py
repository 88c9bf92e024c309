"""Trains any config: `mcd-jax train --config=mcd_emoji --workdir=runs/mcd_emoji [--config.key=value ...]`.

--config names a config of the package or a file, with its arguments after a colon. `mcd-jax train` is the same command.

The same command again continues where the run stopped. Exit status: 0 the job finished, 75 it was stopped by a signal with its step
saved (start it again), anything else is a failure with a sentence on stderr.
"""
import contextlib
import time

from absl import flags, logging
import jax

from mcd_jax import command, signals
from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax.config import overrides
from mcd_jax.data import advice
from mcd_jax.evals import building
from mcd_jax.optim import optimizer
from mcd_jax.run import agreement, atomic, checkpoint, console, lock, metrics, results
from mcd_jax.run import history as history_lib
from mcd_jax.run import workdir as workdir_lib
from mcd_jax.run.preemption import PREEMPTED, Preemption
from mcd_jax.sharding import distributed
from mcd_jax.sharding import mesh as mesh_lib

overrides.define("a config's name or file, with overrides as --config.key=value")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything the run writes; one with a checkpoint is continued")
_RESUME = flags.DEFINE_enum("resume", history_lib.STRICT, [history_lib.STRICT, history_lib.ALLOW], "strict refuses to go on with a "
                            "batch size, seed or data that change the order of the data; allow goes on after the examples seen")
_VERBOSE = flags.DEFINE_bool("verbose", False, "print the table of parameters too, which is in parameters.txt in any case")


class Stop(RuntimeError):
    """The run can't go on; the message says why and what would help."""


def train(config, workdir, verbose=False, resume=history_lib.STRICT):
    """Runs `config` in `workdir` to its end. Returns the exit status: 0, or `PREEMPTED`.

    With `verbose` the table of parameters is printed. `resume`: see `history.History.check`.

    Raises:
      ValueError, OSError: something doesn't fit, before the first compile.
      Stop: too many non-finite updates in a row.
    """
    lead, workdir = jax.process_index() == 0, workdir_lib.named(workdir)
    agreement.agree("the same settings", agreement.command(config, workdir=workdir, resume=resume))
    workdir_lib.check_writable(workdir)
    workdir_lib.check_shared(workdir)
    with lock.held(workdir) if lead else contextlib.nullcontext():
        return _train(config, workdir, lead, verbose, resume)


def _train(config, workdir, lead, verbose, resume):

    # ============================================================================================================================
    # Workdir, data, objective, optimizer
    # ============================================================================================================================

    began = time.perf_counter()
    small = workdir_lib.Workdir(workdir, write=lead)
    folder = small.folder
    with console.waiting("opening the data"):
        job = job_lib.build(config, bad_examples=folder / "bad_examples.jsonl")
    config = job.config
    every = job.durations("checkpoint.every", config.checkpoint.every) or job.total_steps
    evals, compiled = building.build(config, job.objective, job.durations, job.abstract), {}
    saver = checkpoint.Checkpoints(workdir, every, config.checkpoint.keep, config.checkpoint.best or None)
    saver.check_room(job.abstract)
    profile = metrics.Profile(config.profile_steps, folder)
    history, newest = history_lib.History(folder, job), saver.latest()
    seen = history.seen(newest or 0)
    agreement.agree("the same data", agreement.data(job, newest, seen), timeout=3600)   # some hosts index their copy first
    changed = history.check(newest, resume)
    total_seen = seen + max(job.total_steps - (newest or 0), 0) * config.batch_size
    epochs = total_seen / job.pipeline.examples
    say(lead, f"training {config_lib.title(config.objective)} on {_data(config)}: {job.pipeline.examples:,} examples, "
              f"{job.total_steps:,} steps of {config.batch_size} ({epochs:.1f} epochs, {total_seen:,} "
              f"examples seen), {job.mesh.size} {jax.devices()[0].platform} device(s)"
              f"{f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''}, workdir {workdir}")
    say(lead, f"{job.summary}; each one's place is in {workdir}/parameters.txt")
    say(lead and verbose, job.placement)

    # ============================================================================================================================
    # State: resume > config.resume_from > config.init_from, config.init_locked (the locked towers) > scratch
    # ============================================================================================================================

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(job.mesh))
        stack.callback(small.close)
        stack.callback(saver.close)
        stack.callback(job.pipeline.close)
        key = jax.random.key(config.seed)
        if newest is not None:
            with console.waiting("restoring the newest checkpoint"), _advised(newest, workdir):
                state = saver.restore(job.abstract)
            say(lead, f"resuming at step {int(state.step):,} of {job.total_steps:,}")
            say(lead, changed if int(state.step) == newest else history.check(int(state.step), history_lib.ALLOW))
        elif config.resume_from:
            state = checkpoint.restore_from(config.resume_from, job.abstract)
            say(lead, f"continuing {config.resume_from} at step {int(state.step):,}")
        else:
            with console.waiting("making the initial parameters, usually 5-30 s"):
                params, locked = job_lib.initial(config, job.abstract)
                state = job.init(key, params, locked)
            for sentence in optimizer.clipped_by_first_update(config.optimizer, state.params):
                say(lead, f"note: {sentence}")
            if config.init_from:
                say(lead, f"starting from the parameters of {config.init_from}")
            for kind in locked:
                say(lead, f"the {kind} tower is locked, as {config.init_locked[kind] or config.init_from} has it")
        first = int(state.step)
        seen = history.seen(first)
        if lead:   # not before: a config that doesn't fit the checkpoint must not replace the one that does
            say(lead, "" if first else metrics.begin_anew(folder))
            history.begin(first)
            results.rewind(folder, first)
            atomic.write_text(folder / "parameters.txt", f"{job.placement}\n{job.summary}\n")

        # ========================================================================================================================
        # Training loop: dispatch step t, then read the metrics of step t - 1
        # ========================================================================================================================

        writer = stack.enter_context(contextlib.closing(metrics.Writer(
            folder, lead, job.total_steps, first, config.tensorboard, config.wandb, config.to_dict())))
        clock = metrics.Clock(config.batch_size, job.flops() / config.batch_size, metrics.peak_flops(), writer.spent, since=began)
        stack.enter_context(contextlib.closing(profile))
        preemption = stack.enter_context(Preemption(saver.latest))
        batches = job.pipeline.iterate(first, seen - first * config.batch_size)   # 0 unless earlier steps had another size
        late, done = metrics.Late(), first

        def log(reports):
            """Writes the metrics of updates that are done, and stops a run that no longer moves."""
            for step, values in reports:
                if values["skipped_in_row"] >= config.optimizer.max_skipped:
                    raise Stop(f"step {step}: the last {values['skipped_in_row']} updates were not finite and were skipped; the "
                               f"newest checkpoint is of step {saver.latest()}; lower config.optimizer.lr, or look at the "
                               "batches of these steps: the same seed gives them again")
                if step % config.log_every == 0 or step == job.total_steps:
                    writer.write(step, {**values, **clock.read(), **{name: f(step - 1) for name, f in job.schedules.items()},
                                        **job.pipeline.counts(), "memory_bytes": metrics.device_memory()})
                    small.push(soon=False)
                    if share := clock.stalling():
                        writer.say(f"waiting for input took {share:.0%} of the time. What would help: "
                                   f"{advice.for_pipeline(config.data, job.pipeline, jax.devices()[0].platform == 'cpu')}")

        def evaluated(due):
            """Runs the evaluations `due` on the current state and logs their figures."""
            log(late.flush())
            with clock.eval():
                figures = building.run(due, state, done, job, folder, preemption.reached, writer.say, compiled,
                                       preemption.unless_asked)
            writer.write(done, figures)

        def save():
            log(late.flush())
            scores = results.of_step(folder, done)
            with clock.checkpoint():
                distributed.barrier(f"the checkpoint of step {done}")
                saver.save(done, state, scores or None)
                writer.write(done, clock.seconds())   # a resumed run counts on from here
                small.push()

        def saved():
            """Saves, waits until all is on the disk, and returns where the seconds of the run went, as they are logged."""
            save()
            with clock.checkpoint(), console.waiting("saving the checkpoint"):
                saver.wait()
            spent = clock.seconds()
            writer.write(done, spent)
            return spent

        if done > job.total_steps:
            say(lead, f"config.steps={config.steps!r} is {job.total_steps:,} steps, of which none is left at step {done:,}")
        if done < job.total_steps:
            writer.say("compiling the training step, usually 20-60 s ...")

        while done < job.total_steps and not preemption.reached():
            profile.step(done, state)
            try:
                with clock.stall():
                    rows = preemption.unless_asked(next, batches)
                    if rows is None:
                        break
                    batch = mesh_lib.to_global(rows, job.mesh)
            except OSError as error:   # of the data, such as a disk that is away for a while
                if done > first and jax.process_count() == 1:   # of several, the others would not save at this step
                    saved()
                    error.add_note(f"step {done:,} of {job.total_steps:,} is saved: start the same command to go on")
                raise
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
            saved()
        if done >= job.total_steps:
            evaluated(evals)
        spent = saved()    # with its scores where the best checkpoint is kept; a step that is saved already is left alone
        if preemption.reached():
            say(lead, f"stopped by {preemption.reason}: step {done:,} of {job.total_steps:,} is saved in {workdir}; "
                      "start the same command to go on")
            return PREEMPTED
        digest = checkpoint.checksum(state.params)
        say(lead, results.table(results.latest(folder)))
        say(lead, f"finished {done:,} steps in {spent['seconds/train'] + spent['seconds/stall']:.0f} s of training, "
                  f"{sum(spent.values()):.0f} s in all; {seen + (done - first) * config.batch_size:,} examples seen"
                  + f"; results in {workdir}/evals.json" * bool(results.latest(folder)))
    print(f"params_checksum={digest}", flush=True)
    return 0


@contextlib.contextmanager
def _advised(newest, workdir):
    """Context of a restore: what to do with an imported model, which has a checkpoint of step 0."""
    try:
        yield
    except checkpoint.MismatchError as error:
        if newest == 0:
            error.add_note(f"to start from an imported model's parameters, give config.init_from={workdir} and a new --workdir")
        raise


def _data(config):
    """What the training reads, in words: the path or name of its source, "scenes of" those of the source inside it."""
    source, outer = config.data.source, ""
    while "path" not in source and "source" in source:
        outer += f"{source['name']} of " if source["name"] != "hold_out" else ""   # a part of it
        source = source["source"]
    own = command.printable(command.relative(source["path"])) if isinstance(source.get("path"), str) else source["name"]
    return outer + own


def say(lead, text):
    """One line for the person who watches, from the lead process only."""
    if lead and text:
        print(text, flush=True)


def main(_):
    if not flags.FLAGS["verbosity"].present:   # neither --verbosity nor -v
        logging.set_verbosity(logging.WARNING)
    with command.sentences(printed=False), distributed.joined(), workdir_lib.nothing_left(_WORKDIR.value):
        config = config_lib.of_command(flags.FLAGS.config, overrides.given())
        status = train(config, _WORKDIR.value, _VERBOSE.value, _RESUME.value)
        distributed.leave(status)
    signals.leave(status)   # without waiting for threads that still read


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    overrides.run(main)
