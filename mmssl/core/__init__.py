"""Floor 0: protocols and types that all other floors use. Names no modality, no method and no data set.

Shape legend, used in every docstring and comment of the project
    B  samples of this process          W  processes            G  samples of the global batch, W * B
    T  tokens of one sample             D  width of an encoder  E  width of a shared embedding space
    C  channels                         H, W  height and width of a picture (next to C only)
    K  classes, prototypes or captions  N  samples of a data set
"""
