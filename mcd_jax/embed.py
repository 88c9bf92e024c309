"""The command `mcd-jax embed`: a trained run's embeddings of any source, as a file that heads train on.

    mcd-jax embed --workdir=runs/clip_emoji --source split=train --out=runs/clip_emoji/train.array_record
    config.data.source = dict(name="embeddings", path="runs/clip_emoji/train.array_record")

Without further words the run's own training source is embedded, through the views that its evaluations have (`--view` takes
others), one caption per row. A row of the file holds what `data/sources/embeddings.py` says: the embeddings before
normalisation, the caption, the key, the row number, and the source's columns of numbers and words. FILE.json beside it says where
all came from. The same run, source and views give the same bytes. Rows that can't be read are left out and counted.
"""
import contextlib
import json
import numbers
import pathlib

import jax
import numpy as np

from mcd_jax import command, trained
from mcd_jax.data import sources
from mcd_jax.data.tools import pack
from mcd_jax.evals import building, rows
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.run import atomic, console, small_files

CHUNK = 4096   # rows of embeddings that are held in memory
KEPT = ("image", "text")


def store(workdir, out, source=None, views=None, weights_from="params", step=None, n=None, batch_size=256):
    """Embeds a source by a run and writes `out` and `out`.json.

    Args:
      workdir: folder of a run. source: changes of its config.data.source, or a whole spec if it has a "name" of its own.
      views: {"image": pipe, "text": pipe}, in place of the evaluations'; a pipe of "" leaves that modality out.
      weights_from: whose parameters, as evaluations take it. step: which checkpoint. n: at most so many rows, evenly spaced.

    Returns:
      what FILE.json holds, a dict.

    Raises:
      ValueError: a source, view or `weights_from` that isn't there, or no row can be used. FileExistsError: `out` exists.
    """
    out = pathlib.Path(out)
    if out.exists():
        raise FileExistsError(f"--out={out} exists: name a new file")
    run, state = trained.open_run(workdir, step)
    lead = jax.process_index() == 0
    with jax.set_mesh(run.mesh), (atomic.writing(out) if lead else contextlib.nullcontext()) as part:
        about = _store(run, state, workdir, part, source or {}, views or {}, weights_from, n, batch_size)
    if lead:
        atomic.write_text(f"{out}.json", json.dumps(about, indent=1, default=str) + "\n")
    return about


def _store(run, state, workdir, part, source, views, weights_from, n, batch_size):
    spec = dict(source) if "name" in source else {**run.config.data.source.to_dict(), **source}
    pipes = {key: pipe for key, pipe in {**building.default_views(run.config), **views}.items() if pipe}
    if not pipes or pipes.keys() - {*KEPT}:
        raise ValueError(f"--view names {', '.join(pipes) or 'nothing'}: embeddings are of image, text or both")
    opened = sources.open(spec)
    if not len(opened):
        raise ValueError(f"the source has no rows to embed: {spec}")
    compiled = {key: rows.pick(pipes, [key], "embed") for key in pipes}
    size = embedder_lib.batch_rows(batch_size, run.mesh)
    embed = embedder_lib.on_mesh(run, weights_from, size)
    chosen = rows.sample(opened, {}, n, "embed")
    about = {"workdir": str(workdir), "step": int(state.step), "weights_from": weights_from, "source": spec, "views": pipes,
             "rows": 0, "bad": 0,
             "width": {}, "columns": []}
    writer, progress = None, console.Progress(len(chosen), "rows written", keep=True)
    try:
        for start in range(0, len(chosen), CHUNK):
            some = chosen[start:start + CHUNK]
            found, good = {}, np.ones(len(some), bool)
            for key, own in compiled.items():
                values, usable = rows.encode(embed, state, opened, own, [key], size, indices=some)
                found[f"{key}_embedding"] = values[f"{key}_raw"]
                good &= usable
            about["bad"] += int(np.sum(~good))
            about["rows"] += int(np.sum(good))
            about["width"] = {key: int(value.shape[1]) for key, value in found.items()}
            if part and good.any():
                writer = writer or _writer(part)
                for place in np.flatnonzero(good):
                    columns = _columns(opened, int(some[place]), compiled.get("text"))
                    about["columns"] = sorted({*about["columns"], *columns})
                    writer.write(_record({**columns, **{key: value[place] for key, value in found.items()}}))
            progress.step(len(some))
    finally:
        progress.close()
        if writer is not None:
            writer.close()
    if not about["rows"]:
        raise ValueError(f"no row of the source can be embedded: {about['bad']} are bad")
    return about


def _writer(path):
    from array_record.python import array_record_module

    path.parent.mkdir(parents=True, exist_ok=True)
    return array_record_module.ArrayRecordWriter(str(path), "group_size:1")


def _columns(source, index, view):
    """What goes beside the embeddings of a row: caption, key, row number, and the source's columns of single numbers."""
    row = source[index]
    kept = {name: value for name, value in row.items() if name not in (*KEPT, "key", "image_embedding", "text_embedding")
            and isinstance(value, (numbers.Number, np.generic, str))}
    texts = [] if view is None or not view.tokens else _texts(view, row, index)
    if not texts and isinstance(row.get("text"), (str, bytes)):
        texts = [row["text"]]
    return {**kept, "key": str(row["key"]), "index": index, **({"text": texts} if texts else {})}


def _texts(view, row, index):
    draws = {name: numbers[0] for name, numbers in view.draws(0, [index]).items()}
    text = next(iter(view.texts(dict(row), draws).values()))
    return [text] if isinstance(text, (str, bytes)) else list(text)


def _record(columns):
    """A serialised tf.train.Example: text as bytes, whole numbers and flags as int64, everything else as float32."""
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    for name, value in columns.items():
        values = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        values = values if isinstance(values, list) else [values]
        feature = message.features.feature[name]
        if isinstance(values[0], (str, bytes)):
            feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
        elif isinstance(values[0], numbers.Integral):
            feature.int64_list.value.extend(map(int, values))
        else:
            feature.float_list.value.extend(map(float, values))
    return message.SerializeToString(deterministic=True)


def origin(path):
    """(source, about) of the rows that were embedded into the file `path`, or (None, {}) where its FILE.json or source is gone."""
    beside = pathlib.Path(f"{path}.json")
    if not beside.is_file():
        return None, {}
    about = small_files.read_or(beside, {})
    try:
        return sources.open(about["source"]), about
    except (KeyError, ValueError, OSError):
        return None, about


def main(args=None):
    parser = command.Parser(prog="mcd-jax embed", description=__doc__)
    parser.add_argument("--workdir", type=command.path, required=True, help="folder of a run")
    parser.add_argument("--out", type=command.local_path, required=True,
                        help="the file to write, such as runs/x/train.array_record")
    parser.add_argument("--source", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                        help="changes of the run's config.data.source, such as split=validation; with name=... another source")
    parser.add_argument("--view", action="extend", nargs="+", default=[], metavar="KEY=PIPE",
                        help="a pipe of image or text in place of the evaluations'; KEY= leaves it out")
    parser.add_argument("--weights_from", "--read", default="params", help="whose parameters, such as memory/teacher")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--n", type=command.whole(1), help="at most so many rows, evenly spaced")
    parser.add_argument("--batch_size", type=command.whole(1), default=256)
    args = parser.parse_args(args)
    with command.sentences():
        about = store(args.workdir, args.out, pack.read_source(args.source) if args.source else None,
                      dict(word.partition("=")[::2] for word in args.view), args.weights_from, args.step, args.n, args.batch_size)
    print(f"{args.out}: {about['rows']:,} rows, {about['bad']} bad; {', '.join(f'{k} {v}' for k, v in about['width'].items())}; "
          f"beside them {', '.join(about['columns'])}\n"
          f"config.data.source = dict(name='embeddings', path='{args.out}')")


if __name__ == "__main__":
    main()
