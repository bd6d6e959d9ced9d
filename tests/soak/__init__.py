"""The soak: workers and heads come and go between network namespaces for as long as one likes, and nothing may be lost.

`python -m tests.soak MINUTES` makes the LAN, lets the events of `events.py` happen in an order that a seed decides,
checks every byte, and at the end looks for whatever was left behind.
"""
