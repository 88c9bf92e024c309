"""Generated scenes: where things stand (`layout`), and what is said of them (`phrases`). The source is `data.sources.scenes`."""
