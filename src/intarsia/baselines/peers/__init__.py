"""Methods of 2023 to 2026 without old images, each after its paper, one file each.

ranpac     random features and ridge regression          slca       a slow network, heads aligned on drawn features
tuna       an adapter per task, the surest one answers   lca        one network, merged spectrally after each task
ewc_lora   one LoRA, held by the Fisher of its product

They share ``fine_tuning``, one task's training under its own classes, and ``alignment``, one head for all classes
trained on features drawn from Gaussians.
"""
