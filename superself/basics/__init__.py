"""What every other part may use: random state, colour spaces and pictures. Imports nothing of this package."""
