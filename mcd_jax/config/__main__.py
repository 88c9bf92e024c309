"""`mcd-jax config --config=NAME KEY`: see `explain`."""
from mcd_jax.config import explain

explain.main()
