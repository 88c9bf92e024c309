"""GCL: image, text and the two fused as one contrastive problem."""
