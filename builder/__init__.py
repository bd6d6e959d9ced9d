"""What `build.py` does, a file a step. Standard library only: it runs before anything is installed."""
