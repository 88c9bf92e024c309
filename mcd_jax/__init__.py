"""Language-image pretraining in JAX."""
