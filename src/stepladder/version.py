"""The version, apart from the package's root so that parts may know it without importing the whole."""

__version__ = "0.1.0"
