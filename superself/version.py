"""The version, alone in its file so that the package can be described without importing torch."""

__version__ = "0.1.0"
