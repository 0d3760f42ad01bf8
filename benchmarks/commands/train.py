"""``python -m benchmarks train``: a triplet-trained embedding network from labelled images."""

from __future__ import annotations

from benchmarks.training.train import TrainSettings, train


def run(settings: TrainSettings) -> None:
    try:
        train(settings)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; the same command goes on from the last state saved beside "
            f"{settings.output}"
        )
        raise


Settings = TrainSettings
