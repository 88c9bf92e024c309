"""Weights in and out.

python -m mcd_jax.convert export --workdir=runs/clip --to=open_clip --out=exported
python -m mcd_jax.convert import --from=open_clip --checkpoint=exported --out=runs/imported
python -m mcd_jax.convert check --workdir=runs/clip --with=open_clip --checkpoint=exported
python -m mcd_jax.convert formats
"""
import argparse
import importlib
import pathlib
import pkgutil
import shutil
import sys

from mcd_jax import convert, load
from mcd_jax.convert import card, runs, tables, tower


def export(workdir, to, out, read="params", step=None, dtype="float32", licence=""):
    """Writes a run as a folder of the format `to`. Returns notes for the user.

    Raises:
      ValueError, OSError: what doesn't fit, by name; nothing is left at `out`.
    """
    module, out = format_of(to, "EXPORTS"), pathlib.Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty: name a new folder")
    tables.dtype_of(dtype)
    run = getattr(module, "open_run", runs.open_run)(workdir, read, step)   # a format of no towers reads its own part of a run
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        notes = list(module.save(run, part, dtype))
        (part / "README.md").write_text(getattr(module, "card", card.text)(run, module, to, out, dtype, licence, notes))
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [*notes, *(f"left out: {path}, {why}" for path, why in tables.grouped(run.left_out))]


def import_(source, checkpoint, out, model="", tokenizer="", image_size=0, scan=False):
    """Writes a foreign checkpoint as a workdir. Returns notes for the user.

    Raises:
      ValueError, OSError: what doesn't fit, listed.
    """
    imported = format_of(source, "IMPORTS").load(checkpoint, model, tokenizer)
    if isinstance(imported, tower.Tower):
        if image_size:
            raise ValueError(f"--image_size: {source} holds one tower without position embeddings of a grid")
        return tower.write_workdir(imported, out, scan)
    if hasattr(imported, "write"):   # of no towers
        return imported.write(out)
    native = imported.inputs["image_size"]
    if image_size:
        imported = runs.resized(imported, image_size)
    if scan:
        imported = runs.scanned(imported)
    runs.write_workdir(imported, out)
    notes = [f"left out: {name}, {why}" for name, why in tables.grouped(imported.left_out)]
    if image_size and image_size != native:
        notes.append(f"position embeddings were interpolated from {native} to {image_size} px")
    return notes


def format_of(name, what):
    """The module of a format that exports or imports.

    Raises:
      ValueError: there is none of this name, or it goes the other way only.
    """
    known = formats(what)
    if "." not in name and name not in known:
        way = "export to" if what == "EXPORTS" else "import from"
        raise ValueError(f"no format {name!r} to {way}: there are {', '.join(known)}")
    return load.load("convert", name)


def formats(what):
    """Names of the formats of this package that export or import, or both ("EXPORTS", "IMPORTS")."""
    modules = sorted(m.name for m in pkgutil.iter_modules(convert.__path__) if m.name != "__main__")
    return [name for name in modules if getattr(importlib.import_module(f"mcd_jax.convert.{name}"), what, False)]


def _parser():
    parser = argparse.ArgumentParser(prog="python -m mcd_jax.convert", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="a run as a folder that the peer loads with its own call")
    out.add_argument("--workdir", required=True, help="folder of a run")
    out.add_argument("--to", required=True, help=f"format: {', '.join(formats('EXPORTS'))}")
    out.add_argument("--out", required=True, help="new folder")
    out.add_argument("--read", default="params", help="whose parameters: params, memory/teacher, memory/ema")
    out.add_argument("--step", type=int, help="which checkpoint; the newest when left out")
    out.add_argument("--dtype", default="float32", choices=tables.FLOATS, help="of the weights")
    out.add_argument("--licence", "--license", default="", help="SPDX identifier for the model card")
    into = commands.add_parser("import", help="a foreign checkpoint as a workdir for config.init_from, evaluate and export")
    into.add_argument("--from", required=True, dest="source", help=f"format: {', '.join(formats('IMPORTS'))}")
    into.add_argument("--checkpoint", required=True, help="file or folder")
    into.add_argument("--out", required=True, help="new workdir")
    into.add_argument("--model", default="", help="the peer's name of the model, where the checkpoint doesn't say (see formats)")
    into.add_argument("--tokenizer", default="", help="tokenizer.json or sentencepiece model, where the checkpoint has none")
    into.add_argument("--image_size", type=int, default=0, help="interpolate the position embeddings for images of this side")
    into.add_argument("--scan", action="store_true", help="stack the blocks, for towers with scan=True")
    check = commands.add_parser("check", help="both sides on the same images and captions (needs the peer's library)")
    check.add_argument("--workdir", required=True)
    check.add_argument("--with", required=True, dest="peer", help="format")
    check.add_argument("--checkpoint", required=True, help="the peer's file or folder")
    check.add_argument("--model", default="", help="the peer's name of the model, for a bare file of weights")
    check.add_argument("--read", default="params")
    check.add_argument("--step", type=int)
    check.add_argument("--count", type=int, default=16, help="images and captions of the embedded test set")
    commands.add_parser("formats", help="formats, and the model names that each supports")
    return parser


def main(args=None):
    args = _parser().parse_args(args)
    try:
        if args.command == "export":
            notes = export(args.workdir, args.to, args.out, args.read, args.step, args.dtype, args.licence)
            print("\n".join([*(f"note: {note}" for note in notes), f"{args.out} holds {args.workdir} for {args.to}; load it with",
                             "", load.load("convert", args.to).usage(args.out)]))
        elif args.command == "import":
            notes = import_(args.source, args.checkpoint, args.out, args.model, args.tokenizer, args.image_size, args.scan)
            print("\n".join([*(f"note: {note}" for note in notes),
                             f"{args.out} holds {args.checkpoint}; to start from it a config has", "", tower.usage(args.out) or
                             f'config.model = config_lib.read("{args.out}/config.json").model\nconfig.init_from = "{args.out}"']))
        elif args.command == "check":
            from mcd_jax.convert import peers
            found = peers.check(args.workdir, load.load("convert", args.peer), args.checkpoint, args.model, args.read, args.step,
                                args.count)
            print("largest difference, ours beside theirs\n" + "\n".join(f"  {k.ljust(12)} {v:.3g}" for k, v in found.items()))
        else:
            for name in sorted({*formats("EXPORTS"), *formats("IMPORTS")}):
                ways = " and ".join(w for w, what in (("import", "IMPORTS"), ("export", "EXPORTS")) if name in formats(what))
                print(f"{name}: {ways}")
                print("\n".join(f"  {model.ljust(28)} {what}" for model, what in format_of(
                    name, "IMPORTS" if name in formats("IMPORTS") else "EXPORTS").names()))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
