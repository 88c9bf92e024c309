"""`mcd-jax report`."""
from mcd_jax.report import main

main()
