"""StarDist in its own environment; run by `benchmarks/peers.py`, imports nothing of this project.

`Config2D` as it is with 32 rays, or as in StarDist's training example on such nuclei: half the
resolution (grid 2), random turns, mirrors and intensities. 15 % of the training images are its val
split, as in the example; it chooses its thresholds there, too.

Dimension key
    I: images    H, W: rows and columns
"""

from importlib.metadata import version

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from exchange import LOW_SCORE, main, milliseconds, read_split, user_seconds
from keras.callbacks import Callback
from stardist.matching import matching_dataset
from stardist.models import Config2D, StarDist2D
from tqdm import tqdm

NAME = "model"
IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
GRID_OF_EXAMPLE = (2, 2)


class Budget(Callback):
    """Stop when the user CPU time of the process is used up, and count the steps."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.steps = seconds, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if user_seconds() >= self.seconds:
            self.model.stop_training = True


def train(data, out, seconds):
    """Train until the budget is used up; the best weights on its val split are kept."""
    _one_thread()
    np.random.seed(0)
    tf.keras.utils.set_random_seed(0)
    example = out.name.startswith("stardist-example")
    images, labels = _train_split(data)
    learned, val = _split(len(images))
    grid = GRID_OF_EXAMPLE if example else (1, 1)
    config = Config2D(n_rays=32, n_channel_in=1, grid=grid, train_tensorboard=False)
    model = StarDist2D(config, name=NAME, basedir=str(out))
    model.prepare_for_training()
    budget = Budget(seconds)
    model.callbacks.append(budget)
    model.train(
        [images[n] for n in learned],
        [labels[n] for n in learned],
        validation_data=([images[n] for n in val], [labels[n] for n in val]),
        augmenter=_augmented if example else None,
    )
    names = ("stardist", "csbdeep", "tensorflow-cpu", "keras", "numpy")
    return {
        "seconds": user_seconds(),
        "steps": budget.steps,
        "batch": config.train_batch_size,
        "versions": {name: version(name) for name in names},
    }


def _one_thread():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _train_split(data):
    images, labels = read_split(data, "train")
    return [_normal(image) for image in images], list(labels)


def _normal(image_HW):
    return normalize(image_HW, 1, 99.8)


def _split(count):
    """Return the places of the images that are learned, and of those of the val split."""
    order = np.random.RandomState(42).permutation(count)
    held = max(1, round(0.15 * count))
    return order[:-held], order[-held:]


def _augmented(image_HW, label_HW):
    """Turn, mirror and change the intensity at random, as StarDist's example does."""
    quarters = np.random.randint(4)
    image_HW, label_HW = np.rot90(image_HW, quarters), np.rot90(label_HW, quarters)
    for axis in (0, 1):
        if np.random.rand() > 0.5:
            image_HW, label_HW = np.flip(image_HW, axis), np.flip(label_HW, axis)
    image_HW = image_HW * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
    image_HW = image_HW + 0.02 * np.random.uniform(0, 1) * np.random.normal(size=image_HW.shape)
    return image_HW, label_HW


def predict(data, out):
    """Find the instances of the val split, and time them, at the thresholds StarDist chose."""
    _one_thread()
    model = StarDist2D(None, name=NAME, basedir=str(out))
    train_images, labels = _train_split(data)
    _, val = _split(len(train_images))
    model.optimize_thresholds([train_images[n] for n in val], [labels[n] for n in val])
    images, truths = read_split(data, "val")

    def label_image(image):
        return model.predict_instances(_normal(image))[0]

    found = [label_image(image) for image in tqdm(images, "val")]
    every = [
        model.predict_instances(_normal(image), prob_thresh=LOW_SCORE)
        for image in tqdm(images, "val, low scores")
    ]
    np.savez_compressed(
        out / "labels.npz", found=np.stack(found), every=np.stack([labels for labels, _ in every])
    )
    judged = matching_dataset(list(truths), found, thresh=IOUS, by_image=False)
    return {
        "scores": [details["prob"].tolist() for _, details in every],
        "accuracy": [float(one.accuracy) for one in judged],
        "operating_score": float(model.thresholds.prob),
        "milliseconds": milliseconds(label_image, images),
    }


if __name__ == "__main__":
    main(train, predict, __doc__)
