"""Weights that rpc-server keeps on the worker's disk with `-c`, so that a head need not send them."""
