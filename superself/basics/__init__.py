"""What every other part may use: random state, colours, pictures, checks, processes. Imports nothing from this package."""
