"""The search: study, budget, Ray Tune, Optuna, MLflow and the command line."""

import os

# Before torch is loaded. Threads that wait for one on a busy core must not keep theirs busy: beside a neighbour on one of two cores
# a training takes twice its time then, and else six times; on an idle machine it is some 5 % slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
