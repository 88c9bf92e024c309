"""m2-Mix and m3-Mix: geodesic mixtures as hard negatives."""
