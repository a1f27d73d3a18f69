import commands  # noqa: F401  # before any library of somebody else's, see commands/__init__.py
