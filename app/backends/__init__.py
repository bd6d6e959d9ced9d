"""Which backend libraries and devices the server is to use, found out by a child that may crash in its place."""
