"""A trained model without its training: `mcd_jax.load(path)` gives embeddings of images and texts on any machine.

    model = mcd_jax.load("runs/mcd_emoji")
    image, text = model.embed_images(["cat.jpg", "dog.jpg"]), model.embed_texts(["a cat", "a dog"])
    model.similarity(image, text)

docs/use_a_model.md has the rest.
"""
from collections.abc import Iterable, Mapping, Sequence, Set
import functools
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from mcd_jax import job as job_lib
from mcd_jax import step as step_lib
from mcd_jax import trained
from mcd_jax.convert import foreign, runs
from mcd_jax.data import inputs
from mcd_jax.evals import building, rows, zeroshot
from mcd_jax.evals import embedder as embedder
from mcd_jax.run import console
from mcd_jax.run import workdir as workdir_lib

SCALE = 100.0   # of probabilities, where a model has learned no temperature: CLIP's largest
ROUNDED = 1e-3  # how far from 1 the length of a unit row may be, as of one that was stored in 16 bits
FEW = 1         # so many images are embedded without filling up a whole batch


def load(path: str | os.PathLike, weights_from: str = "params", step: int | None = None, *, batch_size: int = 64, format: str = "",
         name: str = "", tokenizer: str = "") -> "Model":
    """A trained model, on all devices of this machine.

    Args:
      path: workdir of a run (a folder or gs://...), or a folder or file that open_clip, Hugging Face's CLIPModel and SiglipModel,
        OpenAI's CLIP or big_vision read, such as `mcd-jax convert export` writes.
      weights_from: "params", or "memory/<path>" such as "memory/teacher" or "memory/ema"; "init": untrained.
      step: which checkpoint of a run; None: the newest.
      batch_size: images or texts that go through the network at a time.
      format, name, tokenizer: of a foreign checkpoint that doesn't say them itself, as `mcd-jax convert import` takes
        them (--from, --model, --tokenizer).

    Raises:
      FileNotFoundError: nothing there, or a run without a checkpoint. ValueError: another step or `weights_from`, or a folder that
        holds no model of ours or theirs.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1")
    path = os.path.expanduser(path)
    if not format and (workdir_lib.is_remote(path) or foreign.is_workdir(path)):
        run, state = trained.open_run(path, step)
    else:
        if step is not None:
            raise ValueError(f"step={step}: {path} is a foreign checkpoint, which has no steps")
        run, state = _foreign(str(path), foreign.read(path, format, name, tokenizer))
    return Model(run, state, weights_from, batch_size)


class Model:
    """What `load` gives. D: numbers of an embedding (config.model.embed_dim). Embeddings are unit rows, float32 numpy arrays.

    Attributes:
      config: the resolved ConfigDict. params: the tree of parameters on `mesh`, locked towers in their places. step: int.
      views: {"image": pipe, "text": pipe}, how images and texts become rows: as the run's evaluations have them.
    """

    def __init__(self, run: trained.Trained, state: step_lib.State, weights_from: str = "params", batch_size: int = 64):
        """
        Raises:
          ValueError: no such `weights_from`.
        """
        self.config, self.mesh, self.views, self.step = run.config, run.mesh, building.default_views(run.config), int(state.step)
        self._run, self._weights_from = run, weights_from
        with jax.set_mesh(run.mesh):
            if weights_from == "init":
                state = run.init(jax.random.key(run.config.seed), None, state.memory.get("locked"))
            self.params = embedder.parameters(state, weights_from)
        self._state = state
        self._size = embedder.batch_rows(batch_size, run.mesh)
        sizes = {embedder.batch_rows(FEW, run.mesh), self._size}
        self._embeds = {size: embedder.on_mesh(run, weights_from, size) for size in sizes}
        self._compiled = {kind: rows.pick({kind: pipe}, [kind], "load") for kind, pipe in self.views.items()}

    def __repr__(self) -> str:
        count = sum(x.size for x in jax.tree.leaves(self.params))
        return f"Model({self._run.workdir!r}, {count:,} parameters, step {self.step:,}, {self._weights_from})"

    # ---- embeddings --------------------------------------------------------------------------------------------------------------

    def embed_images(self, images: Any, progress: bool | None = None) -> np.ndarray:
        """Unit embeddings (n, D) of images.

        Args:
          images: a list of paths, files' bytes, PIL images or uint8 arrays (height, width, 3), in any mixture; or one array
            (n, height, width, 3); or a single image.
          progress: whether a bar is shown (on a terminal; elsewhere a line now and then); None: where there is more than a batch.

        Raises:
          TypeError, ValueError, FileNotFoundError: an empty list, or an image that can't be used; the message says which.
        """
        return self._embed("image", images, progress)

    def embed_texts(self, texts: Any, progress: bool | None = None) -> np.ndarray:
        """Unit embeddings (n, D) of a list of str, or of a single one; arguments and errors as `embed_images`."""
        return self._embed("text", texts, progress)

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """Cosines (n, m) of n images and m texts, each what `embed_images` and `embed_texts` take, or rows (n, D) of
        embeddings, such as the arrays that they gave; of rows of another length than 1 the direction counts."""
        return self._unit("image", images) @ self._unit("text", texts).T

    def zero_shot(self, images: Any, class_names: Sequence, templates: Sequence[str] = ("{}",)) -> np.ndarray:
        """Probabilities (n, C) of classes that are named by words, as zero-shot evaluations rank them; a row adds up to 1.

        Args:
          images: what `embed_images` takes, or the array that it gave.
          class_names: C names, each a str or a list of synonyms.
          templates: "{}" stands for the name; a class is the mean of all its prompts.

        Raises:
          ValueError: a template without "{}", or a class without a name.
        """
        image = self._unit("image", images)
        return self.probabilities(image @ self.class_embeddings(class_names, templates).T)

    def class_embeddings(self, class_names: Sequence, templates: Sequence[str] = ("{}",)) -> np.ndarray:
        """Unit rows (C, D) of classes; see `zero_shot`."""
        class_names, templates = _words(class_names, "class_names", synonyms=True), _words(templates, "templates")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"templates: {template!r} has no '{{}}' where the name goes")
        prompts = [(i, template.replace("{}", word)) for i, names in enumerate(class_names)
                   for word in ([names] if isinstance(names, str) else names) for template in templates]
        owner = np.array([i for i, _ in prompts])
        if lacking := sorted({*range(len(class_names))} - {*owner.tolist()}):
            raise ValueError(f"class_names[{lacking[0]}] is an empty list: a class has at least one name")
        return zeroshot.class_embeddings(self.embed_texts([text for _, text in prompts]), owner, len(class_names))

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """Softmax over the last axis, at the temperature that the model learned."""
        cosines = np.asarray(cosines)
        logits = self.scale * (cosines - cosines.max(axis=-1, keepdims=True))
        return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)

    @property
    def scale(self) -> np.float32:
        """1 / temperature; `SCALE` where the model has learned none."""
        if "logit_scale" in self.params:
            return np.exp(np.float32(self.params["logit_scale"]))
        return 1 / np.float32(self.params["temperature"]) if "temperature" in self.params else np.float32(SCALE)

    # ---- for those who jit and shard themselves ----------------------------------------------------------------------------------

    def apply(self, params: Mapping, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """A pure function of `params` (as `.params`): {"image": pixels uint8 (B, S, S, 3)} and/or {"text": tokens int32 (B, L)} ->
        "image", "text" float32 (B, D) unit rows, "image_raw" and "text_raw" before normalisation, and more by the method."""
        memory = {key: value for key, value in self._state.memory.items() if key != "locked"}
        return self._pure.heads["embed"](params, memory, batch)

    @functools.cached_property
    def _pure(self):
        config = self.config.to_dict()
        config["model"].pop("locked", None)   # `params` has all towers in their places
        with jax.ensure_compile_time_eval():   # it may be asked for inside a trace, and keeps arrays
            return job_lib.objective_of(ConfigDict(config))

    def pixels(self, images: Any) -> np.ndarray:
        """Images as the tower reads them, uint8 (n, S, S, 3)."""
        return self._rows("image", images)

    def tokens(self, texts: Any) -> np.ndarray:
        """Texts as the tower reads them, int32 (n, L)."""
        return self._rows("text", texts)

    # ---- inside ------------------------------------------------------------------------------------------------------------------

    def _list(self, kind, given):
        if kind not in self._compiled:
            raise ValueError(f"this model has no {kind} view: config.data.views has {', '.join(self.config.data.views)}")
        tower = self.config.model.get(kind) or {}
        return inputs.listed(given, f"{kind}s", tower.get("name") == "stored")

    def _rows(self, kind, given):
        items = self._list(kind, given)
        return np.concatenate(list(inputs.batches(self._compiled[kind], kind, items, f"{kind}s", self._size)))

    def _embed(self, kind, given, progress=None):
        items = self._list(kind, given)
        size = self._size if len(items) > FEW else min(self._embeds)
        shown, parts = len(items) > size if progress is None else progress, []
        with jax.set_mesh(self.mesh), console.Progress(len(items), "embedding", kind, show=shown) as bar:
            for part in inputs.batches(self._compiled[kind], kind, items, f"{kind}s", size):
                parts.append(self._embeds[size](self._state, {kind: part})[kind])
                bar.step(len(part))
        return np.concatenate(parts)

    def _unit(self, kind, given):
        """Embeddings, made unit rows where they aren't; everything else embedded."""
        dim = self.config.model.embed_dim
        if getattr(given, "ndim", 0) in (1, 2) and given.dtype.kind == "f" and given.shape[-1] == dim:
            found = np.atleast_2d(np.asarray(given, np.float32))
            lengths = np.linalg.norm(found, axis=1, keepdims=True)
            return found if np.all(np.abs(lengths - 1) < ROUNDED) else found / np.maximum(lengths, np.finfo(np.float32).tiny)
        return self._embed(kind, given)


def _words(given, what, synonyms=False):
    """`given` as a list of str, or where there may be `synonyms` of str and lists of str.

    Raises:
      TypeError: it is or holds something else. ValueError: it is empty.
    """
    kind = "a str" + " or a list of them" * synonyms
    if given is None or isinstance(given, (bytes, Mapping, Set)) or not isinstance(given, Iterable):
        raise TypeError(f"{what} is of type {type(given).__name__}: it must be a list, of which each is {kind}")
    items = [given] if isinstance(given, str) else list(given)
    if not items:
        raise ValueError(f"{what} is an empty list: give at least one")
    for number, item in enumerate(items):
        inside = item if synonyms and isinstance(item, (list, tuple, np.ndarray)) else [item]
        if wrong := [type(word).__name__ for word in inside if not isinstance(word, str)]:
            raise TypeError(f"{what}[{number}] is or holds something of type {wrong[0]}: it must be {kind}")
    return items


def _foreign(path, imported):
    """(Trained, State) of a foreign checkpoint."""
    config = runs.config_of(imported)
    config.model.inputs = dict(imported.inputs)
    config = ConfigDict(config.to_dict())
    mesh, objective = trained.mesh_of(config), job_lib.objective_of(config)
    shapes, _ = trained.on_mesh(config, mesh, imported.params, {})
    params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), imported.params, shapes)
    run = trained.Trained(path, config, mesh, objective, trained.untrained(config, objective, mesh))
    return run, step_lib.State(np.int32(0), params, {}, {}, None)
