"""Measurements of vecdb beside raw FAISS. Not part of any distribution: `python -m bench first`."""
