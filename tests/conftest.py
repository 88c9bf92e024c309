"""Test session: four fake CPU devices, a compile cache, and strict ranks (broadcasting must be spelled out)."""
import importlib.util
import os
import pathlib
import signal

for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):   # under nohup, or behind "&" in a script, some are ignored, and
    if signal.getsignal(_number) == signal.SIG_IGN:              # what is ignored stays ignored in the commands that tests start
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"  # compiles in half the time
_CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

collect_ignore = [] if importlib.util.find_spec("torch") else ["peers"]   # those run by `make test-peers`, beside PyTorch

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_cpu_enable_async_dispatch", False)  # four fake devices on two cores: keep collectives in step

_LONG = ("test_train", "test_scale", "test_objectives", "test_distributed", "test_locked", "test_sweep_runs", "test_m2mix_run")


def pytest_collection_modifyitems(items):
    """The files that take longest come first: else one of two processes would end with one of them, alone."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))
