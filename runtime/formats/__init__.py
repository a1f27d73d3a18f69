"""What one program writes and another reads, each format once: a class that writes a file is the one that reads it.

Nothing here runs a network or imports a backend, so exporters, engines and tests can all import it.
"""
