"""`python -m mcd_jax COMMAND ...` is `mcd-jax COMMAND ...`."""
from mcd_jax.cli import main

main()
