"""Accuracy class by class: where a model's mistakes are."""

from intarsia.data.stream import TaskStream
from intarsia.evaluation.metrics import Classifier, matching_tasks


def class_accuracy(model: Classifier, stream: TaskStream) -> dict[str, float]:
    """Class -> accuracy in percent on its test images, all classes of the model competing.

    Raises:
        InputError: the stream lacks a task of the model, or gives it other classes.
    """
    found: dict[str, float] = {}
    first = 0
    for task in matching_tasks(model.classes, stream):
        hit = model.logits(task.test.tensor(model.preprocessing)).argmax(1) == task.test.labels + first
        for label, name in enumerate(task.classes):
            found[name] = 100 * float(hit[task.test.labels == label].double().mean())
        first += len(task.classes)
    return found
