"""Search in a folder of images by text or image, from the command line and from a local page: `mcd-jax search`."""
