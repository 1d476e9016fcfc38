"""Experiments: what the attention forms do, measured. One idea a file, and nothing here prints.

check.py        a claim with a number and a bar
correctness.py  every form against brute force, finite differences and its kernel
data.py         bundled data sets            csv_file.py   the user's own
predict.py      attention as a predictor, with nothing trained
limits.py       linear attention as the limit of Intention
geometry.py     attention weights against the angle between query and key
nn/             small models on any form, with gradients by hand
looks.py        names, colours and markers of the forms
tables.py       tables as text               figures.py    tables as pictures
report.py       one HTML page of it all
"""
