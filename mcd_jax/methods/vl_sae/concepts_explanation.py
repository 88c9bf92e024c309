"""Why an image answers a question: the concepts that both fire, in the words of the captions that fire them most."""
import numpy as np

from mcd_jax.methods.vl_sae import concepts_eval
from mcd_jax.run import small_files

WORDS = 2   # captions that name a concept


class Concepts:
    """What `mcd-jax analyze concepts` found in a run, as names of units."""

    def __init__(self, path):
        """path: pathlib.Path of its analysis/concepts.json.

        Raises:
          ValueError: the file isn't there, or isn't one of that command's.
        """
        try:
            found = small_files.read(path)
            captions, units = found["captions"], found["units"]
            self._names = {int(unit["unit"]): " / ".join(dict.fromkeys(captions[str(row)] for row, _ in unit["texts"][:WORDS]))
                           for unit in units}
            self._mean = {int(unit["unit"]): float(unit["mean"]) for unit in units}
        except FileNotFoundError:
            raise ValueError(f"{path} is not there: mcd-jax analyze concepts --workdir={path.parent.parent} names the "
                             "concepts of this run") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not what mcd-jax analyze concepts writes: make it again ({error!r})") from error

    def words(self, question, image, count=3):
        """Names of the concepts that a question's codes (H,) and an image's (H,) share, the most telling first."""
        mean = np.array([self._mean.get(unit, 0.0) for unit in range(len(image))])
        best = concepts_eval.explain(image, question, mean, len(image))
        return [name for name in dict.fromkeys(self._names[unit] for unit, _ in best) if name][:count]


def make(workdir):
    """The `Concepts` of the run in the folder `workdir`, a pathlib.Path."""
    return Concepts(workdir / "analysis/concepts.json")
