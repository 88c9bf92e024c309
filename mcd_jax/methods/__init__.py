"""What the core doesn't own: a file or a folder for each method. Deleting one removes the method and nothing else."""
