"""Which method suits these images? Three are trained, followed, compared, reported, and the best is exported.

    python examples/three_methods.py                      patches of the bundled photographs, about 6 minutes on two cores
    python examples/three_methods.py --data my_images     a folder with train/CLASS and test/CLASS of your own

TensorBoard and MLflow are used where they are installed (extras "tensorboard" and "mlflow"); nothing leaves this computer:

    tensorboard --logdir store/three
    mlflow ui --backend-store-uri sqlite:///store/three/mlflow/mlflow.db
"""

import argparse
import importlib.util
from pathlib import Path

from superself import compare, create, load_backbone, report, runs
from superself.data import open_images, photos
from superself.evaluation import (
    Alignment,
    LinearProbe,
    NeighboursFigure,
    RotationProxy,
    Spectrum,
    show_curves,
    show_map,
)
from superself.training import warmup_cosine

METHODS = ("simclr", "rotatenet", "splitbrain")


def main() -> None:
    options = parse()
    folder = Path(options.store)
    train, test = open_data(options)
    trackers = [name for name in ("tensorboard", "mlflow") if importlib.util.find_spec(name)]

    # Train, each with the same evaluators: before the first step, after every epoch, and after the last.
    for method in METHODS:
        evaluators = [
            LinearProbe(train, test, every=options.epochs),
            RotationProxy(test, every=options.epochs),  # these three need no labels
            Alignment(test, every=options.epochs),
            Spectrum(test),
            NeighboursFigure(test, every=options.epochs),
        ]
        create(method, train, backbone=options.backbone, seed=0).supervise(
            epochs=options.epochs,
            batch_size=64,
            name=folder / method,
            lr_scheduler=warmup_cosine(0.1),
            probe=(train, test),
            evaluators=evaluators,
            trackers=trackers,
            notes="Which of three methods suits these images?",
            overwrite=True,
        )

    # Compare them with each other and with the same network before training.
    comparison = compare({method: folder / method for method in METHODS}, train, test, fractions=(0.05,))

    # Reports with the comparison in them, and the best as a file for other programs.
    print(runs(folder))
    print(f"curves: {show_curves([folder / method for method in METHODS], folder / 'curves.png')}")
    best = comparison.best if comparison.best in METHODS else METHODS[0]
    supervisor = create(best).load(folder / best)
    show_map(supervisor.get_backbone(), test, folder / f"{best}.map.png", random=True)
    for method in METHODS:
        print(f"report: {report(folder / method, tables={'Comparison': comparison})}")
    exported = supervisor.export(folder / "best.safetensors")
    load_backbone(exported.path)  # checks that the features are the same
    print(f"the best, {best}, is in {exported.path}")


def open_data(options: argparse.Namespace) -> tuple:
    """Labelled training and test images; training does not look at the labels."""
    if options.data == "photos":
        return photos("train", options.size, options.count), photos(
            "test", options.size, options.count and options.count // 2
        )
    return tuple(
        open_images(f"imagefolder:{options.data}/{part}", image_size=options.size) for part in ("train", "test")
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="photos", help="photos, or a folder with train/CLASS and test/CLASS")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--count", type=int, help="of the photographs' patches; all by default")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--backbone", default="resnet9:width=0.25")
    parser.add_argument("--store", default="store/three", help="folder of the runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
