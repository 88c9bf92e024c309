"""Stored embeddings as a source: the array_record files that `python -m mcd_jax.embed` writes.

A row has image_embedding and text_embedding (lists of float, not normalised; either may be missing), text (the caption that was
embedded), key, index (the row of the source that was embedded) and that source's columns of numbers. The pipe
column('image_embedding') makes a batch of them, float32 (B, D); config.model.image = dict(name="stored", width=D, proj="none")
reads it.
"""
from mcd_jax.data.sources import ArrayRecords

KEYS = ("name", "path", "cache_mib", "cache")


def make(spec):
    """The source of `spec`: path (a file, url or pattern, or a list of them), and what array_record takes beside it.

    Raises:
      FileNotFoundError: no file fits a path. ValueError: an unknown key, or files without embeddings.
    """
    for key in spec:
        if key not in KEYS:
            raise ValueError(f"data.source has no key {key!r} for the embeddings source; it has {', '.join(KEYS)}")
    source = ArrayRecords({**spec, "columns": {"image": None, "text": None, "key": "key"}})
    if len(source) and not source[0].keys() & {"image_embedding", "text_embedding"}:
        raise ValueError(f"data.source.path={spec['path']!r} holds no stored embeddings but {', '.join(sorted(source[0]))}: "
                         "python -m mcd_jax.embed writes them")
    return source
