"""Trains one network: ``python train.py model=drconv_shufflenetv2_0.5x``. What it does: drconv/commands/train.py."""

from drconv.commands.train import main, train, worker

__all__ = ["main", "train", "worker"]

if __name__ == "__main__":
    main()
