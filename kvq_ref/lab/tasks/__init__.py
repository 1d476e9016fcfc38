"""What models learn.

task.py         what every task is
                sequences, of graded complexity: what comes next follows from what was
recurrences.py  nt (x_t = x_{t-1} + x_{t-tau} mod N), sums, products, copy
lookups.py      a table, and nested lookups in it
several.py      several NT tasks for one model
held_out.py     which starts are kept for the test

episodes.py     tasks in context: an episode is a context of pairs (x, y), and queries to answer from it alone
sinusoid.py     few-shot regression of sinusoids
linear_regression.py   and of linear functions, where Bayes' predictor is known
few_shot.py     few-shot classification of images: digits.py, photographs.py
recall.py       associative recall: the capacity of a memory
registration.py        point clouds: an affine map from correspondences
outliers.py     which point of a set does not belong
policies.py    policy distillation: act as a teacher does, in a real environment
"""
