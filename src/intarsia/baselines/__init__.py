"""Methods to compare with, each after its paper: a frozen dataclass with ``train``, one file each.

joint      all images at once, not incremental         finetune   one network in turn, nothing against forgetting
ewc        held by the Fisher of earlier tasks         derpp      rehearsal: a reservoir of old images
modules    ITA, IEL and a plain L2                     tmc        tangent models, averaged
seed       an ensemble of experts and Gaussians        frozen     no training
peers      a folder: methods of 2023 to 2026 without old images
"""
