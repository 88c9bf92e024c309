"""Searches a folder of images with a trained run.

    python -m mcd_jax.search --workdir=runs/mcd_emoji --images=DIR --text="a red fruit" [--image=FILE] [--count=10]
    python -m mcd_jax.search --workdir=runs/mcd_emoji --images=DIR --serve [--port=8080]

The folder's embeddings are kept in <workdir>/search (or --index=FILE); files that are new or have changed are embedded when it is
called again. A text and an image together ask with the sum of both. The page is served to this machine only (127.0.0.1).

A run with sparse codes also says which concepts each hit shares with the question; `python -m mcd_jax.analyze concepts` names them
first. A run with hash codes can find by them (--bits).
"""
import argparse
import pathlib
import sys

from mcd_jax.search import engine as engine_lib
from mcd_jax.search import folder as folder_lib
from mcd_jax.search import page, server


def arguments():
    parser = argparse.ArgumentParser(prog="python -m mcd_jax.search", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="folder of a run with a checkpoint")
    parser.add_argument("--images", required=True, help="folder of images, at any depth")
    parser.add_argument("--text", default="", help="what the picture should show")
    parser.add_argument("--image", default="", help="file of a picture to look for")
    parser.add_argument("--count", type=int, default=10, help="how many images to show")
    parser.add_argument("--bits", action="store_true", help="find images by their hash codes, then order the nearest by cosine")
    parser.add_argument("--serve", action="store_true", help="a web page instead of one answer")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; another than 127.0.0.1 lets others in")
    parser.add_argument("--port", type=int, default=8080, help="port to serve on; 0: a free one")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest when left out")
    parser.add_argument("--read", default="params", help="whose parameters, such as memory/mcd/teacher")
    parser.add_argument("--index", default="", help="file of the stored embeddings")
    return parser


def main(args=None):
    args = arguments().parse_args(args)
    try:
        run(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def run(args):
    """
    Raises:
      ValueError, OSError: nothing to do, or a run, folder, question or port that can't be used.
    """
    if not (args.serve or args.text or args.image):
        raise ValueError("say what to look for: --text=..., --image=FILE, or --serve for a web page")
    if args.count < 1:
        raise ValueError(f"--count={args.count} must be at least 1")
    if args.serve and args.host in ("", "0.0.0.0", "::"):
        raise ValueError(f"--host={args.host!r} names no address: give the one by which others ask for the page")
    folder = folder_lib.Folder(args.images)
    engine = engine_lib.Engine(args.workdir, folder, args.step, args.read, args.index or None, bits=args.bits)
    bad = len(folder) - int(engine.index.good.sum())
    notes = [f"{len(folder):,} images", f"{engine.embedded:,} embedded now"]
    notes += [f"{bad:,} can't be read"] * bool(bad) + [f"{folder.outside:,} links lead out of the folder"] * bool(folder.outside)
    print(", ".join(notes), file=sys.stderr)
    if args.serve:
        with server.Server(engine, args.host, args.port, title=f"Search: {pathlib.Path(args.workdir).name}") as service:
            print(f"{service.url} (Ctrl-C ends it)", flush=True)
            try:
                service.serve_forever()
            except KeyboardInterrupt:
                return
        return
    questions = [engine.text(args.text)] if args.text else []
    questions += [engine.image(pathlib.Path(args.image).read_bytes())] if args.image else []
    for hit in engine.nearest(questions, args.count):
        print(f"{hit.score:.3f}  {page.shown(folder.files[hit.row].name)}" + (f"  [{'; '.join(hit.words)}]" if hit.words else ""))


if __name__ == "__main__":
    main()
