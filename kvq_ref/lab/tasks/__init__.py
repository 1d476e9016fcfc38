"""Autoregressive tasks of graded complexity: what comes next follows from what was.

task.py         what every task is
recurrences.py  nt (x_t = x_{t-1} + x_{t-tau} mod N), sums, products, copy
lookups.py      a table, and nested lookups in it
several.py      several NT tasks for one model
held_out.py     which starts are kept for the test
"""
