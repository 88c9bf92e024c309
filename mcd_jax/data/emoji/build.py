"""Builds the prepared shards and the tokenizer from the npm packages (see README.md for the exact versions):

    python -m mcd_jax.data.emoji.build --npm=.../node_modules [--out=mcd_jax/data/emoji/prepared]

Needs the extra "build-data" (resvg-py). About two minutes on one core. Every run gives the same records
(their bytes differ in the order of fields only).
"""

import os

from mcd_jax import command
from mcd_jax.data.emoji import names, train_tokenizer


def prepare(npm, out):
    """Writes the configs "concepts" and "drawings" below the folder `out`."""
    import tensorflow_datasets as tfds

    from mcd_jax.data.emoji.emoji_dataset_builder import Builder

    for config in ("concepts", "drawings"):
        builder = Builder(data_dir=out, config=config, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(
            manual_dir=npm, compute_stats=tfds.download.ComputeStatsMode.SKIP))


def main():
    parser = command.Parser(description=__doc__)
    parser.add_argument("--npm", default=os.environ.get("MCD_JAX_EMOJI_NPM"),
                        help="the node_modules folder with the npm packages (or set MCD_JAX_EMOJI_NPM)")
    parser.add_argument("--out", default=names.PREPARED)
    arguments = parser.parse_args()
    if not arguments.npm or not os.path.isdir(arguments.npm):
        parser.error(f"--npm must be the node_modules folder with the npm packages, not {arguments.npm!r}")
    if os.path.exists(os.path.join(arguments.out, "emoji")):
        parser.error(f"{arguments.out} already holds a build; remove it first, or give another --out")
    prepare(os.path.abspath(arguments.npm), arguments.out)
    if arguments.out == names.PREPARED:
        train_tokenizer.main()


if __name__ == "__main__":
    main()
