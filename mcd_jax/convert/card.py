"""README.md of an exported folder: what the model was trained on, how long, how well it does, and under which licence."""
import math

from mcd_jax import config as config_lib
from mcd_jax.run import results

EMOJI = ("the embedded emoji set: drawings of Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0), Fluent Emoji (MIT) and OpenMoji "
         "(CC-BY-SA-4.0), texts of emojibase (MIT)")

_LIBRARIES = {"open_clip": "open_clip", "hf": "transformers"}   # whose loading code the model hub shows


def text(run, module, name, folder, dtype, licence, notes):
    """The card.

    Args:
      run: `runs.Run`. module: the format, name: what it is called here.
      folder: of the export, for the usage lines; dtype: of the weights.
      licence: an SPDX identifier, or "" for one to be filled in.
      notes: sentences of the export.
    """
    config = run.config
    source = config.data.source.to_dict()
    data = EMOJI if source["name"] == "emoji" else f"`{source}`"
    steps, batch = run.step, config.batch_size
    lines = ["---", f"license: {licence or 'unknown'}", "tags:", "- clip", "- zero-shot-image-classification",
             *([f"library_name: {_LIBRARIES[name]}"] if name in _LIBRARIES else []), "---", "",
             f"# {run.workdir.rstrip('/').rpartition('/')[2]}", "",
             f"An image and a text tower, exported by mcd_jax to {name} ({dtype} weights).", "",
             "| | |", "|---|---|",
             f"| method | {config_lib.title(config.objective)} |", f"| parameters read | {run.weights_from} |",
             f"| training data | {data} |",
             f"| steps | {steps:,} of {batch:,} examples ({steps * batch if run.seen is None else run.seen:,} seen) |",
             f"| images | {run.inputs['image_size']} px, {run.view.op}, {run.view.method}; transparent pixels were put on white |",
             f"| texts | tokenizer {run.tokens.name}, cleaned: {run.tokens.cleaning}, {run.inputs['context']} tokens, end of text "
             f"{run.inputs['eot']}, padding {run.tokens.pad} |",
             f"| mean, std | {run.model.get('mean', 0.5)}, {run.model.get('std', 0.5)} |",
             f"| licence | {licence or 'not stated: the data and their licences above decide what it can be'} |", "",
             "## Use", "", "```python", module.usage(folder).strip(), "```", ""]
    if notes:
        lines += ["## What differs", "", *(f"* {note}." for note in notes), ""]
    table = results.table({k: v for k, v in run.figures.items() if v is None or math.isfinite(v)})
    at = run.figures.get("step")
    if table:
        other = "" if at == run.step else f", while these weights are of step {run.step:,}"
        lines += ["## Evaluation", "", f"By mcd_jax, of the run at step {at:,}{other}, with the parameters its config names.", "",
                  "```", table, "```", ""]
    else:
        lines += ["## Evaluation", "", "None: the run has no evals.json.", ""]
    if run.left_out:
        lines += ["## Left out", "", *(f"* `{path}`: {why}" for path, why in run.left_out), ""]
    return "\n".join(lines)
