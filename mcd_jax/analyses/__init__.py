"""What `python -m mcd_jax.analyze <name>` can do, one module each.

A module has `arguments(parser)`, which adds to an argparse parser, and `run(args)`. One that writes
`<workdir>/analysis/<name>.json`, by `analyze.write`, has a `report/<name>.py` with TITLE and section(result), which draws the file.
"""
