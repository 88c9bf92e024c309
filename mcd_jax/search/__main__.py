"""Searches a folder of images with a trained run.

    mcd-jax search --workdir=runs/mcd_emoji --images=DIR --text="a red fruit" [--image=FILE] [--count=10]
    mcd-jax search --workdir=runs/mcd_emoji --images=DIR --serve [--port=8080]

The folder's embeddings are kept in <workdir>/search (or --index=FILE; of a run in a bucket in ~/.cache/mcd_jax); files that are new
or have changed are embedded when it is called again. A text and an image together ask with the sum of both. The page is served
to this machine only (127.0.0.1).

A run with sparse codes also says which concepts each hit shares with the question; `mcd-jax analyze concepts` names them
first. A run with hash codes can find by them (--bits).
"""
import pathlib
import sys

from mcd_jax import command
from mcd_jax.search import engine as engine_lib
from mcd_jax.search import folder as folder_lib
from mcd_jax.search import server


def arguments():
    parser = command.Parser(prog="mcd-jax search", description=command.summary(__doc__))
    parser.add_argument("--workdir", type=command.path, required=True, help="folder of a run with a checkpoint")
    parser.add_argument("--images", type=command.path, required=True, help="folder of images, at any depth")
    parser.add_argument("--text", default="", help="what the picture should show")
    parser.add_argument("--image", default="", help="file of a picture to look for")
    parser.add_argument("--count", type=command.whole(1), default=10, help="how many images to show")
    parser.add_argument("--bits", action="store_true", help="find images by their hash codes, then order the nearest by cosine")
    parser.add_argument("--serve", action="store_true", help="a web page instead of one answer")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; another than 127.0.0.1 lets others in")
    parser.add_argument("--port", type=command.whole(0, 65535), default=8080, help="port to serve on; 0: a free one")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--weights_from", "--read", default="params", help="whose parameters, such as memory/mcd/teacher")
    parser.add_argument("--index", default="", help="file of the stored embeddings")
    return parser


def main(args=None):
    args = arguments().parse_args(args)
    with command.sentences():
        run(args)


def run(args):
    """
    Raises:
      ValueError, OSError: nothing to do, or a run, folder, question or port that can't be used.
    """
    if not (args.serve or args.text or args.image):
        raise ValueError("say what to look for: --text=..., --image=FILE, or --serve for a web page")
    if args.serve and args.host in ("", "0.0.0.0", "::"):
        raise ValueError(f"--host={args.host!r} names no address: give the one by which others ask for the page")
    folder = folder_lib.Folder(args.images)
    engine = engine_lib.Engine(args.workdir, folder, args.step, args.weights_from, args.index or None, bits=args.bits)
    bad = len(folder) - int(engine.index.good.sum())
    notes = [f"{len(folder):,} images", f"{engine.embedded:,} embedded now"]
    notes += [f"{bad:,} can't be read"] * bool(bad) + [f"{folder.outside:,} links lead out of the folder"] * bool(folder.outside)
    print(", ".join(notes), file=sys.stderr)
    if args.serve:
        try:
            service = server.Server(engine, args.host, args.port, title=f"Search: {pathlib.Path(args.workdir).name}")
        except OSError as error:
            raise ValueError(f"--host={args.host} and --port={args.port} can't be served on ({error.strerror}): take another port, "
                             "or --port=0 for a free one") from error
        with service:
            print(f"{service.url} (Ctrl-C ends it)", flush=True)
            service.serve_forever()
        return
    text = args.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")   # of a terminal whose locale isn't UTF-8
    questions = [engine.text(text)] if text else []
    questions += [engine.image(pathlib.Path(args.image).read_bytes())] if args.image else []
    for hit in engine.nearest(questions, args.count):
        shared = f"  [{command.printable('; '.join(hit.words))}]" if hit.words else ""
        print(f"{hit.score:.3f}  {command.printable(folder.files[hit.row].name)}{shared}")


if __name__ == "__main__":
    main()
