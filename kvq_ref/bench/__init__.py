"""Side-by-side timings. Absolute times drift; ratios of interleaved runs are what can be compared.

jobs.py           what is measured: a form, a shape, forward or forward and backward
peers.py          who is measured, and what a peer has to offer
peers_ours.py     kvq_ref, as its users call it
peers_torch.py    PyTorch; torch_formulas.py and torch_causal.py have its formulations of each form
peers_jax.py      JAX under jit, with its formulations
worker.py         the process of one peer: checks and times what it is asked to
processes.py      starting, asking and ending such processes, pinned to the same cores
schedule.py       one job: who disagrees, who is worth timing, and the rounds in which all take turns
summary.py        rounds that count, medians, ratios
memory.py         peak memory of one long call
special.py        the smallest calls; kernels mixed with NumPy
report.py         tables in Markdown; figure.py draws them
run.py            all of it, written down after every job
training.py       training steps of small models; training_ours.py and training_torch.py make them,
training_run.py   and this is the run and its report
cost.py           a token's cost as T grows, form beside form; cost_figure.py draws it

implementations.py and timing.py compare the compiled kernels with the reference
inside one process: what ``kvq-ref tour`` shows.
"""
