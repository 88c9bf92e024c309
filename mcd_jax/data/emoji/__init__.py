"""Emoji by four vendors: 1,852 concepts, 7,408 drawings, text in 28 languages, inside the package (see README.md).

`data/sources/emoji.py` reads it; what is here names it and builds it.
"""
