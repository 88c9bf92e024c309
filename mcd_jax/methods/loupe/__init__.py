"""LOUPE: regions and phrases aligned by their interactions in a game."""
