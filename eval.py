"""Evaluates saved weights: ``python eval.py run=outputs/...``. What it does: drconv/commands/evaluate.py."""

from drconv.commands.evaluate import evaluate, main, worker

__all__ = ["evaluate", "main", "worker"]

if __name__ == "__main__":
    main()
