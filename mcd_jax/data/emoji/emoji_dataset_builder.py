"""TFDS builder of the embedded data set. TensorFlow is not needed: images are yielded as encoded files.

Two configs: "drawings" (one record per image, refers to its concept by key) and "concepts" (one record per concept
with its text in every language). Build both with `python -m mcd_jax.data.emoji.build --npm=.../node_modules`.
"""

import io
import os
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mcd_jax.data.emoji import drawing, names, npm_text


class Builder(tfds.core.GeneratorBasedBuilder):
    """emoji: 1,852 concepts drawn by four vendors, with labels and tags in 28 languages.

    The npm packages are found at `download_config.manual_dir`, else at $MCD_JAX_EMOJI_NPM.
    """

    VERSION = tfds.core.Version(names.VERSION)
    RELEASE_NOTES: ClassVar = {names.VERSION: "64x64 WebP on white; emoji-datasource 16.0.0, openmoji 17.0.0, "
                                              "fluent-emoji-3d 1.1.0, emojibase-data 17.0.0."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give the node_modules folder that holds the npm packages named in README.md."
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="drawings", description="One record per drawing."),
        tfds.core.BuilderConfig(name="concepts", description="One record per concept: its text and its split."),
    ]

    def _info(self):
        if self.builder_config.name == "drawings":
            features = {
                "image": tfds.features.Image(shape=(drawing.SIZE, drawing.SIZE, 3)),
                "vendor": tfds.features.ClassLabel(names=names.VENDORS),
                "concept": tfds.features.Text(),
            }
        else:
            features = {
                "concept": tfds.features.Text(),
                "concept_id": tfds.features.Scalar(np.int32),
                "family": tfds.features.Text(),
                "group": tfds.features.ClassLabel(names=names.GROUPS),
                "subgroup": tfds.features.ClassLabel(names=names.SUBGROUPS),
                "flag": tfds.features.Scalar(np.bool_),
                "split": tfds.features.Text(),
                "labels": {language: tfds.features.Text() for language in names.LANGUAGES},
                "tags": {language: tfds.features.Sequence(tfds.features.Text()) for language in names.LANGUAGES},
            }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), homepage="https://unicode.org/emoji/",
            disable_shuffling=True)

    def _split_generators(self, dl_manager):
        try:
            npm = os.fspath(dl_manager.manual_dir)
        except AssertionError:  # none was given
            npm = os.environ.get("MCD_JAX_EMOJI_NPM")
            if not npm:
                raise
        records = npm_text.concepts(npm)
        if self.builder_config.name == "concepts":
            return {split: [(row["concept_id"], row) for row in records if row["split"] == split]
                    for split in names.CONCEPT_SPLITS}
        generators = {}
        for split in names.CONCEPT_SPLITS:
            rows = [row for row in records if row["split"] == split]
            generators[split] = self._generate_examples(npm, rows, names.TRAINING_VENDORS)
            generators[f"{names.HELD_OUT_VENDOR}_{split}"] = self._generate_examples(
                npm, rows, (names.HELD_OUT_VENDOR,))
        return generators

    def _generate_examples(self, npm, rows, vendors):
        files = {vendor: drawing.files(npm, vendor) for vendor in vendors}
        for row in rows:
            for number, vendor in enumerate(vendors):
                image = drawing.encode(drawing.draw(files[vendor][row["concept"]]))
                yield row["concept_id"] * len(vendors) + number, {
                    "image": io.BytesIO(image), "vendor": vendor, "concept": row["concept"]}
