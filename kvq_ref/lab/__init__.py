"""Experiments: what the attention forms do, measured. One idea a file, and nothing here prints.

check.py        a claim with a number and a bar
correctness.py  every form against brute force, finite differences and its kernel
data.py         bundled data sets            csv_file.py   the user's own
predict.py      attention as a predictor, with nothing trained
limits.py       linear attention as the limit of Intention
geometry.py     attention weights against the angle between query and key
nn/             small models on any form, with gradients by hand
config.py       what a training run is       tasks/        what it learns
environments/   real ones, and teachers who act in them
catalogue.py    every task by name           scores.py     what a run is judged by
train.py        one run, in a folder
grid.py         which runs a sweep has       cell.py       one of them
sweep.py        all of them, by joblib       cluster.py    or by Dask
results.py      runs that have finished      statistics.py intervals and paired tests
analysis.py     what the runs say            yardsticks.py  beside what simple methods do
sweep_tables.py, sweep_figures.py, sweep_report.py         and how it is told
looks.py        names, colours and markers of the forms
table.py        a table as text              picture.py    a figure as PNG, light and dark
tables.py       the tour's tables            figures.py    the tour's figures
report.py       tables and figures on an HTML page
"""
