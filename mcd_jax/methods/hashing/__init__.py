"""Cross-modal hashing: AHLR-R, DCHMT, DSPH."""
