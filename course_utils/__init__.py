"""The library of the course: small modules, one noun each, to be read after the lecture."""

__version__ = "0.1.0"
