"""Fuzzing of everything that reads bytes from outside: one function for each reader, driven in two ways.

`test_fuzz.py` gives each some mutated inputs in every test run; `python -m tests.fuzz` searches for long, guided
by coverage. A target ends, or raises: what its module documents it catches itself, the rest is a finding.
"""
