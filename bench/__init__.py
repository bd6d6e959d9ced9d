"""Speed, measured beside real peers. `python3 build.py bench` starts it; no test asserts a time."""
