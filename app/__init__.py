"""`worker`: one file that lends a machine to a llama.cpp cluster."""

__version__ = "0.1.0"
