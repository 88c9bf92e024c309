"""Pipe strings -> what is done to an example. "decode|crop(64,0.5)|flip" is read as Python, never evaluated."""
import ast
import importlib
import inspect
import zlib

import numpy as np

from mcd_jax import plugins
from mcd_jax.data import decode
from mcd_jax.data.ops import image_ops, style_ops, text_ops
from mcd_jax.data.ops.augmented import misalignment, true_misalignment

_MODULES = (image_ops, style_ops, text_ops)   # and what methods have


class Views:
    """The views of a config, compiled once.

    Attributes:
      specs: {view name: pipe string}.
      columns: sorted list of the example's columns that are read.
      keys: set of the batch keys that are emitted.
      tokens: {view name: (tokenizer, context)} of the text views.
      sources: {view name: the column that it begins with}.
      images: list of the image views.
    """

    def __init__(self, specs):
        if not specs:
            raise ValueError("data.views is empty: name at least one view, such as image='decode|resize(64)'")
        self.specs = dict(specs)
        self._pipes = {name: _compile(name, spec) for name, spec in self.specs.items()}
        self.columns = sorted({column for pipe in self._pipes.values() for op in pipe for column in _columns(op)})
        self.tokens = {name: op.tokens for name, pipe in self._pipes.items() for op in pipe if op.tokens}
        self.sources = {name: pipe[0].column for name, pipe in self._pipes.items()}
        self.images = [name for name, pipe in self._pipes.items() if pipe[-1].gives == "image"]
        self._pictures = {}  # {column that decode reads: [(view, the op behind decode)]}
        for name, (first, *others) in self._pipes.items():
            if first.resolution_needed:
                op = next((op for op in others if op.draws or op.resolution_needed or not op.stream), first)
                self._pictures.setdefault(first.column, []).append((name, op))
        self.keys = {"index", "bad", *self._pipes}
        self.keys |= {f"{name}/{extra}" for name in self.images for extra in ("params", "misalignment")}
        self._streams = {name: next((op.stream for op in reversed(pipe) if op.stream), f"view {name}")
                         for name, pipe in self._pipes.items()}
        self._widths = {name: -(-sum(op.draws for op in pipe) // 4) * 4 for name, pipe in self._pipes.items()}

    def check(self, columns):
        """Refuses views that read a column which the source does not have (`columns` is what it has)."""
        for name, pipe in self._pipes.items():
            for column in (column for op in pipe for column in _columns(op)):
                if column not in columns:
                    raise ValueError(f"view {name!r} ({self.specs[name]}) reads column {column!r}; "
                                     f"the source has {', '.join(sorted(columns))}")

    def true(self, name):
        """Whether an image view's misalignment is the true one: it begins with decode(content=...)."""
        return bool(self._pipes[name][0].beside)

    def draws(self, seed, positions):
        """The uniforms of all rows at once: {view: list of lists}; row j depends on (seed, positions[j]) alone.

        Philox is a function of a key and a counter: the key is (seed, stream), and a position owns a fixed range of the
        counter, so neighbours in the batch, hosts and workers make no difference.
        """
        positions = np.asarray(positions, np.int64)
        starts = np.flatnonzero(np.diff(positions, prepend=positions[:1] - 2) != 1)
        ends = [*starts[1:], len(positions)]
        result = {}
        for name, width in self._widths.items():
            key = np.array([seed % 2 ** 64, zlib.crc32(self._streams[name].encode())], np.uint64)
            rows = []
            for start, end in zip(starts, ends):
                counter = int(positions[start]) * width // 4
                random = np.random.Generator(np.random.Philox(key=key, counter=counter))
                rows += random.random((end - start, width)).tolist()
            result[name] = rows
        return result

    def __call__(self, example, draws, whole=False):
        """{view: Look or array} of one example; `draws` is {view: list of uniforms}.

        An image is decoded once, to no more pixels than its views of this row need; with `whole` to all of them, so that
        it can be kept for rows with other draws.

        Raises:
          image.Bad: the example can't be used.
        """
        for column, cuts in self._pictures.items():
            def resolution_needed(height, width):
                return max(op.resolution_needed(height, width, draws[name][:op.draws]) if op.resolution_needed else 1.0 for name,
                           op in cuts)
            decode.load(example, column, None if whole else resolution_needed)
        result = {}
        for name, pipe in self._pipes.items():
            value, numbers, used = example, draws[name], 0
            for op in pipe:
                value = op.run(value, numbers[used:used + op.draws])
                used += op.draws
            result[name] = value
        return result

    def texts(self, example, draws):
        """{text view: the str (or list of str) that its tokenizer is given}, of one example; arguments as for a call."""
        result = {}
        for name in self.tokens:
            value, numbers, used = example, draws[name], 0
            for op in self._pipes[name]:
                if op.tokens:
                    break
                value = op.run(value, numbers[used:used + op.draws])
                used += op.draws
            result[name] = value
        return result

    def collate(self, rows):
        """A list of b results -> the batch: arrays with a leading b, `params` and `misalignment` beside image views.

        Raises:
          ValueError: rows of one view differ in shape.
        """
        batch = {}
        for name in self._pipes:
            values = [row[name] for row in rows]
            if name in self.images:
                batch[f"{name}/params"] = np.array([augmented.params() for augmented in values], np.float32)
                batch[f"{name}/misalignment"] = misalignment(batch[f"{name}/params"])
                for j, augmented in enumerate(values):
                    if augmented.content is not None:
                        params = batch[f"{name}/params"][j]
                        batch[f"{name}/misalignment"][j] = true_misalignment(augmented.content, params, augmented.hidden)
                values = [augmented.drawn() for augmented in values]
            batch[name] = np.empty((len(values), *values[0].shape), values[0].dtype)
            for j, value in enumerate(values):
                if value.shape != values[0].shape:
                    raise ValueError(f"view {name!r} ({self.specs[name]}): rows differ in shape, {values[0].shape} and "
                                     f"{value.shape}; an image view needs crop, center or resize to one size")
                batch[name][j] = value
        return batch


def _columns(op):
    """The columns of the example that an op reads."""
    return (*((op.column,) if op.column else ()), *op.beside)


def _compile(view, spec):
    if not isinstance(spec, str):
        raise ValueError(f"view {view!r} must be a pipe string such as 'decode|crop(64,0.5)', not {spec!r}")
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"view {view!r}: {spec!r} is not a pipe of operations such as 'decode|crop(64,0.5)' "
                         f"({error.msg})") from error
    nodes = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        nodes.append(node.right)
        node = node.left
    pipe = [_op(view, spec, part) for part in reversed([*nodes, node])]
    if pipe[0].takes == "text":
        pipe.insert(0, text_ops.caption())
    tokenizer = next((op.tokenizer for op in pipe if op.tokenizer), None)   # a caption that it makes nothing of is none
    pipe = [op.with_tokenizer(tokenizer) if tokenizer and op.with_tokenizer else op for op in pipe]
    has = "example"
    for part, op in zip([None] * (len(pipe) - len(nodes) - 1) + [node, *reversed(nodes)], pipe):
        if op.takes != has:
            raise ValueError(f"view {view!r}: {ast.unparse(part)!r} in {spec!r} works on {_a(op.takes)}, but gets "
                             f"{_a(has)}; image views start with decode, text views with caption")
        has = op.gives
    if has not in ("image", "array"):
        raise ValueError(f"view {view!r}: {spec!r} ends with {_a(has)}, which no batch can carry; add tokenize(...)")
    return pipe


def _a(kind):
    return ("an " if kind[0] in "aei" else "a ") + kind


def _op(view, spec, node):
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name = ast.unparse(call.func)
    make = _find(view, name)
    try:
        args = [ast.literal_eval(arg) for arg in call.args]
        kwargs = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except ValueError as error:
        raise ValueError(f"view {view!r}: the arguments of {ast.unparse(node)!r} must be plain numbers, strings or "
                         "tuples") from error
    try:
        inspect.signature(make).bind(*args, **kwargs)
        made = make(*args, **kwargs)
        for column in _columns(made):
            if not isinstance(column, str):
                raise ValueError(f"{column!r} is no name of a column")
        return made
    except (TypeError, ValueError) as error:
        raise ValueError(f"view {view!r}: {ast.unparse(node)!r} in {spec!r}: {error}; it is "
                         f"{name}{inspect.signature(make)}") from error


def _find(view, name):
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"view {view!r}: {name!r} can't be imported: {error}") from error
    known = {key: value for module in _MODULES for key, value in vars(module).items()
             if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")}
    if name in known:
        return known[name]
    if module := plugins.find("op", name):
        return getattr(module, name)
    raise ValueError(f"view {view!r}: no operation {name!r}; there are {', '.join(sorted({*known, *plugins.names('op')}))}, and "
                     "functions of your own by dotted path")
