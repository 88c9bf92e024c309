"""MCD: misalignment as a target."""
