"""The tour: check every form, use attention as a predictor, look at theorem and geometry, time the kernels.

    kvq-ref tour                                    everything, into ./kvq-tour
    kvq-ref tour --data my.csv --target price       attention as a predictor on your own table

findings.py  what is asked and what is found      steps.py  what is done, in order
story.py     what is told about it                run.py    doing it, under a progress bar
"""

from kvq_ref.tour.findings import Findings, Options, TourError
from kvq_ref.tour.run import take_tour

__all__ = ["Findings", "Options", "TourError", "take_tour"]
