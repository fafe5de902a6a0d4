"""A trained network in other programs' formats, each held against the network before its file is put in place.

The formats' libraries are the extra `export`; NeuroBench is the extra `neurobench`.
"""
