"""Measurements of vecdb beside what it is compared with. Not part of any distribution: `python -m bench index`."""
