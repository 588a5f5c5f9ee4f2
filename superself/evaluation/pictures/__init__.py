"""Pictures of what a network has learned; each function writes a file and returns its path."""
