"""Runs the evaluations of a config: `mcd-jax evaluate --workdir=runs/mcd_emoji [--step=N]` on a finished or running job.

`--evals=zeroshot:sets=cifar10,food101` (as often as wanted) runs those of a file in place of the config's own: one of the package
by its name (`configs/evals`), one of your own by its path. Its `get_evals(arguments)` returns a mapping like `config.evals` (see
`evals/building.py`). Neither the training data nor its devices are needed. Several processes evaluate together, as they train: see
`train`.

Figures are named <module>/<instance>/<figure>; the latest of each is in `evals.json`, those of an earlier step than it has go to
`evals-<step>.json`.
"""
import json

import jax

from mcd_jax import command, trained
from mcd_jax import config as config_lib
from mcd_jax.evals import building
from mcd_jax.run import agreement, checkpoint
from mcd_jax.run import results as results_lib
from mcd_jax.run import workdir as workdir_lib
from mcd_jax.sharding import distributed


def evaluate(workdir, step=None, evals=()):
    """Evaluates a run's newest checkpoint, or that of `step`; see the module. Returns the figures.

    Raises:
      OSError: the run's folder can't be written; the figures have been printed then.
    """
    lead = jax.process_index() == 0

    def say(line):
        if lead:
            print(line, flush=True)

    chosen = building.read_evals(evals) if evals else None
    if jax.process_count() > 1:
        step = _agreed(workdir, step, chosen)
    run, state = trained.open_run(workdir, step)
    built = building.build(run.config, run.objective, None, state, chosen)
    say(f"evaluating step {int(state.step):,} of {workdir}")
    with jax.set_mesh(run.mesh):
        results = building.run(built, state, int(state.step), run, None, say=say)
    say(results_lib.table(results) or "config.evals is empty: nothing to evaluate")
    if lead and results:   # after the table, which a run that can't be written has too
        try:
            with workdir_lib.opened(workdir) as small:
                path, newest = results_lib.write(small.folder, results, int(state.step)), results_lib.latest(small.folder)["step"]
        except OSError as error:
            raise OSError(f"the figures above could not be stored in {workdir}/evals.json: {command.sentence(error)}") from error
        if int(state.step) < newest:
            say(f"evals.json is of step {newest:,} and stays; these figures are in {workdir}/{path.name}")
    return results


def _agreed(workdir, step, chosen):
    """The step that all processes evaluate, once they agree about the rest: a run that goes on may save another right now."""
    with workdir_lib.opened(workdir, write=False) as small:
        config = config_lib.read(small.folder / "config.json")
    said = agreement.command(config, workdir=workdir, step=step, evals=agreement.flat(chosen or {}))
    agreement.agree("the same evaluations", said)
    newest = step if step is not None else checkpoint.Checkpoints(workdir, read_only=True).latest()
    return json.loads(distributed.together(json.dumps(newest), "the step to evaluate"))


def main(args=None):
    parser = command.Parser(prog="mcd-jax evaluate", description=command.summary(__doc__))
    parser.add_argument("--workdir", type=command.path, required=True, help="folder of a run")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--evals", action="append", default=[], help="name or file, with :arguments, in place of the config's own")
    args = parser.parse_args(args)
    with command.sentences(), distributed.joined():
        evaluate(args.workdir, args.step, args.evals)
        distributed.leave(0)


if __name__ == "__main__":
    main()
