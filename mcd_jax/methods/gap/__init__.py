"""The modality gap: moving along it, the loss around it, cones."""

FORMER_NAMES = {"analysis": {"amend": "rotate_towers"}}   # of stored configs
