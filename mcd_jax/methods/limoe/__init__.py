"""LIMoE: mixtures of experts over images and texts."""
