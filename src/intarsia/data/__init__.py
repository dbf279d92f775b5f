"""Images -> tasks: streams, splits, decoding, augmentation."""
