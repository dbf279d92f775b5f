"""Methods to compare with, each after its paper, one file each: ``learn`` trains it and yields it after every task.

joint      all images at once, not incremental         finetune   one network in turn, nothing against forgetting
ewc        held by the Fisher of earlier tasks         derpp      rehearsal: a reservoir of old images
l2         ITA with a plain L2 for its Fisher          tmc        tangent models, averaged
seed       an ensemble of experts and Gaussians
"""

from intarsia.baselines.stage import Stage

__all__ = ["Stage"]
