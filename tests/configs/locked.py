"""The toy run with a text tower that another toy run trained, locked. After the colon: that run's workdir, or nothing."""
import importlib.util
import pathlib


def get_config(workdir=""):
    found = importlib.util.spec_from_file_location("toy", pathlib.Path(__file__).parent / "toy.py")
    toy = importlib.util.module_from_spec(found)
    found.loader.exec_module(toy)
    config = toy.get_config()
    config.model.locked = ("text",)
    config.init_locked.text = workdir
    return config
