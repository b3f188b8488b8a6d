"""Mean and deviation of the channels of images in [0, 1], by their number."""

__all__ = ["MEAN", "STD"]

# Fixed, not fitted: a normalisation that follows the data would have to travel with every export.
# 3: ImageNet's statistics, near those of most photographs; 1: between digits and Fashion-MNIST;
# 2: a and b of Lab over 256, around one half, as of CIFAR-10.
MEAN = {1: (0.3,), 2: (0.5, 0.5), 3: (0.485, 0.456, 0.406)}
STD = {1: (0.35,), 2: (0.04, 0.05), 3: (0.229, 0.224, 0.225)}
