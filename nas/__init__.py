"""The search: study, budget, Ray Tune, Optuna, MLflow and the command line."""
