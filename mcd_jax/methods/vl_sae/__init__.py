"""VL-SAE: sparse concepts of frozen encoders."""
