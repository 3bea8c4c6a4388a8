"""The planner in Numba, file by file and name by name as in `cpp/src/planner`, where the algorithms are explained.

Two files more than there: `metrics.py` is a part of tables.hpp, `label_pool.py` has what search.cpp takes from the
standard library (a heap and a hash map).
"""
