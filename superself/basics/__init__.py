"""Random state, colour spaces and pictures, for all other parts; imports nothing from this package."""
