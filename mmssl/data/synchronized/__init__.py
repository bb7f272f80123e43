"""One draw of augmentation parameters for all modalities of a sample, applied so that their relation holds."""
