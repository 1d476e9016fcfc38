"""Small models on any attention form, with gradients by hand. Each function gives its value and its pullback.

parameters.py   all parameters in one flat array, with names for its parts
layers.py       linear, embedding, layer norm, activations
positions.py    how a model knows the order of tokens
attention.py    multi-head attention over any form
perceptron.py   the other half of a block
model.py        the transformer
encoder.py      a perceptron of any depth
cross_attention.py   queries to a context, with a learned alpha
in_context.py   the model that reads a context and answers queries
losses.py       what is made small
optimizers.py   how                     schedules.py   and how fast

compiled.py     which of these have a kernel, and when it is used

Written with NumPy's functions, which take CuPy's arrays too.
"""
