"""Weights in and out.

mcd-jax convert export --workdir=runs/clip --to=open_clip --out=exported
mcd-jax convert import --from=open_clip --checkpoint=exported --out=runs/imported
mcd-jax convert check --workdir=runs/clip [--with=open_clip --checkpoint=exported]
mcd-jax convert formats
"""
import json
import os
import pathlib
import shutil
import sys

import numpy as np

from mcd_jax import command, plugins
from mcd_jax.convert import card, formats, runs, tables, tower
from mcd_jax.run import atomic, lock
from mcd_jax.run import workdir as workdir_lib

LEFT = ("config.json", "tokenizer.json", "checkpoints", lock.NAME)   # of an import that was cut off: another may replace them


def export(workdir, to, out, weights_from="params", step=None, dtype="float32", licence=""):
    """Writes a run as a folder of the format `to`. Returns notes for the user.

    Raises:
      ValueError, OSError: what doesn't fit, by name; nothing is left at `out`.
    """
    module, out = formats.named(to, "EXPORTS"), pathlib.Path(out)
    _check_new(out)
    tables.dtype_of(dtype)
    run = getattr(module, "open_run", runs.open_run)(workdir, weights_from, step)   # a format of no towers reads its own part of a
                                                                                    # run
    place = pathlib.Path(os.path.realpath(out))   # a link stays one, and "." has a name
    part = place.with_name(f".{place.name}.{os.getpid()}.part")   # its own: two exports at once would mix their files
    shutil.rmtree(part, ignore_errors=True)
    with workdir_lib.nothing_left(part):
        try:
            part.mkdir(parents=True)
        except OSError as error:
            error.filename = str(out) if error.filename == str(part) else error.filename   # the name that the user knows
            raise
        return _filled(part, place, module, run, to, out, dtype, licence)


def _filled(part, place, module, run, to, out, dtype, licence):
    try:
        with atomic.room_for(out):
            notes = list(module.save(run, part, dtype))
        atomic.write_text(part / "README.md", getattr(module, "card", card.text)(run, module, to, out, dtype, licence, notes))
        _check_new(out)   # another export may have been faster
        if place.exists():   # it may be the current folder
            for path in part.iterdir():
                path.rename(place / path.name)
        else:
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [*notes, *(f"left out: {path}, {why}" for path, why in tables.grouped(run.left_out))]


def import_(source, checkpoint, out, model="", tokenizer="", image_size=0, scan=False):
    """Writes a foreign checkpoint as a workdir. Returns notes for the user.

    Raises:
      ValueError, OSError: what doesn't fit, listed.
    """
    module = formats.named(source, "IMPORTS")
    _there(checkpoint)
    _check_new(out, LEFT)
    imported = module.load(checkpoint, model, tokenizer)
    with lock.held(out, flag="--out"):
        return _written(imported, source, out, image_size, scan)


def _written(imported, source, out, image_size, scan):
    if isinstance(imported, tower.Tower):
        if image_size:
            raise ValueError(f"--image_size: {source} holds one tower without position embeddings of a grid")
        return tower.write_workdir(imported, out, scan)
    if hasattr(imported, "write"):   # of no towers
        return imported.write(out)
    if image_size:
        imported = runs.resized(imported, image_size)
    if scan:
        imported = runs.scanned(imported)
    runs.write_workdir(imported, out)
    return [*(f"left out: {name}, {why}" for name, why in tables.grouped(imported.left_out)), *imported.notes,
            *([] if runs.keeps_scale(imported.params) else [
                f"its logit scale is {np.exp(float(imported.params['logit_scale'])):.4g}, outside of the 1 to 100 in which the "
                "default of config.optimizer.max_logit_scale puts it at the first update: the workdir's config has None, and so "
                "must the config of a run that starts from it"])]


def _check_new(out, but=()):
    """Raises a ValueError where a folder holds something else than files of the names `but`."""
    out = pathlib.Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file: name a new folder")
    if found := sorted(path.name for path in out.iterdir() if path.name not in but) if out.exists() else []:
        raise ValueError(f"--out={out} is not empty, it holds {', '.join(found[:3])}{', ...' * (len(found) > 3)}: "
                         "name a new folder")


def _there(checkpoint):
    """Raises FileNotFoundError where a checkpoint, a file or folder of this machine, isn't there."""
    if "://" not in str(checkpoint) and not pathlib.Path(checkpoint).exists():
        raise FileNotFoundError(f"--checkpoint={checkpoint} does not exist: name the file or folder of the weights")


def _parser():
    parser = command.Parser(prog="mcd-jax convert", description=command.summary(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="a run as a folder that the peer loads with its own call")
    out.add_argument("--workdir", type=command.path, required=True, help="folder of a run")
    out.add_argument("--to", required=True, help=f"format: {', '.join(formats.names('EXPORTS'))}")
    out.add_argument("--out", type=command.local_path, required=True, help="new folder")
    out.add_argument("--weights_from", "--read", default="params", help="whose parameters: params, memory/teacher, memory/ema")
    out.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    out.add_argument("--dtype", default="float32", choices=tables.FLOATS, help="of the weights")
    out.add_argument("--licence", "--license", default="", help="SPDX identifier for the model card")
    into = commands.add_parser("import", help="a foreign checkpoint as a workdir for config.init_from, evaluate and export")
    into.add_argument("--from", required=True, dest="source", help=f"format: {', '.join(formats.names('IMPORTS'))}")
    into.add_argument("--checkpoint", type=command.path, required=True, help="file or folder")
    into.add_argument("--out", type=command.local_path, required=True, help="new workdir")
    into.add_argument("--model", default="", help="the peer's name of the model, where the checkpoint doesn't say (see formats)")
    into.add_argument("--tokenizer", default="", help="tokenizer.json or sentencepiece model, where the checkpoint has none")
    into.add_argument("--image_size", type=command.whole(0), default=0,
                      help="interpolate the position embeddings for images of this side")
    into.add_argument("--scan", action="store_true", help="stack the blocks, for towers with scan=True")
    check = commands.add_parser("check", help="a verdict for each kind of image file; status 1 where both sides differ")
    check.add_argument("--workdir", type=command.path, required=True)
    check.add_argument("--with", action="append", default=[], dest="peer",
                       help="library, also several times; open_clip, hf and onnx when left out")
    check.add_argument("--checkpoint", type=command.path, help="its file or folder; left out: a new export")
    check.add_argument("--model", default="", help="the peer's name of the model, for a bare file of weights")
    check.add_argument("--weights_from", "--read", default="params")
    check.add_argument("--step", type=command.whole(0))
    check.add_argument("--count", type=command.whole(1), default=16, help="images and captions of the embedded test set")
    check.add_argument("--json", action="store_true", help="the verdicts as JSON")
    commands.add_parser("formats", help="formats, and the model names that each supports")
    return parser


def main(args=None):
    args = _parser().parse_args(args)
    with command.sentences():
        if args.command == "export":
            notes = export(args.workdir, args.to, args.out, args.weights_from, args.step, args.dtype, args.licence)
            print("\n".join([*(f"note: {note}" for note in notes), f"{args.out} holds {args.workdir} for {args.to}; load it with",
                             "", plugins.load("format", args.to).usage(args.out)]))
        elif args.command == "import":
            notes = import_(args.source, args.checkpoint, args.out, args.model, args.tokenizer, args.image_size, args.scan)
            print("\n".join([*(f"note: {note}" for note in notes),
                             f"{args.out} holds {args.checkpoint}; to start from it a config has", "",
                             tower.usage(args.out) or runs.usage(args.out)]))
        elif args.command == "check":
            from mcd_jax.convert import verdicts
            if args.checkpoint is not None:
                _there(args.checkpoint)
            found = verdicts.check(args.workdir, args.peer, args.checkpoint, args.model, args.weights_from, args.step, args.count)
            print(json.dumps([v._asdict() for v in found], indent=2) if args.json else verdicts.table(found))
            if status := verdicts.status(found):
                sys.exit(status)
        else:
            for name in sorted({*formats.names("EXPORTS"), *formats.names("IMPORTS")}):
                ways = " and ".join(w for w, what in (("import", "IMPORTS"), ("export", "EXPORTS")) if name in formats.names(what))
                print(f"{name}: {ways}")
                print("\n".join(f"  {model.ljust(28)} {what}" for model, what in formats.named(
                    name, "IMPORTS" if name in formats.names("IMPORTS") else "EXPORTS").names()))


if __name__ == "__main__":
    main()
