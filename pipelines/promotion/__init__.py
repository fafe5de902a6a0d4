"""Which version of a model an alias points at: promotion through a gate, the way back, and the registry to look at.

Versions are MLflow's; `registry` writes them, with a record in their tags: hashes of their files, the data set, top1.
"""
