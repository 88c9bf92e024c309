"""The views that the input benchmarks make of an image, name -> pipe string with the size left open."""

_STRONG = "decode|crop({pixels},0.08)|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)|flip"
ONE = {"image": "decode|crop({pixels},0.9)"}
TWO = {"image": "decode|crop({pixels},0.5)", "augmented": _STRONG}
THREE = {"image": "decode|crop({pixels},0.5)", "view1": _STRONG, "view2": _STRONG}


def views_at(pixels: int, recipe: dict[str, str]) -> dict[str, str]:
    """The pipe strings of a recipe at a size."""
    return {name: spec.format(pixels=pixels) for name, spec in recipe.items()}
