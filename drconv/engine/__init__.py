"""The thin engine: launch, training loop, evaluation loop, checkpoints and logs, on plain torch."""
