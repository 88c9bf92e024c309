"""Geometry of two clouds of unit rows, images and texts: pure numpy, float64, no network and no config."""
