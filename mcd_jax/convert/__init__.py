"""Weights in and out: foreign checkpoints as runs of ours, runs of ours as folders that the peer's own library loads.

`mcd-jax convert export | import | check | formats`. A format is a module of this folder (or a dotted path) with

  EXPORTS, IMPORTS  whether it writes, and reads
  names()           [(name, what it is)] of the models that it knows, for people
  load(checkpoint, name, tokenizer) -> runs.Imported
                    a file or folder of the peer at its own image size; `name` and `tokenizer` as given on the command line, or ""
  save(run, folder, dtype) -> [str]
                    writes a `runs.Run` into an empty folder, all but README.md; the notes are what a user must know
  usage(folder)     lines of Python that load the folder with the peer's own call, for README.md
  peer(checkpoint, name)
                    the `peers.Peer` of such a folder or file, for `check`; imports the peer's library

A name or option that a format doesn't have is refused with a ValueError before anything is written.
"""
