"""The methods in one line each; read by `sslops train --help`, which must not wait for torch."""

__all__ = ["SUMMARIES"]

# The names of methods/registry.py, in its order.
SUMMARIES: dict[str, str] = {
    "simclr": "contrast two views of an image (Chen et al. 2020, arXiv:2002.05709)",
    "moco": "match a view to its key among a queue of keys, v1 and v2 (He et al. 2020,"
    " arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297)",
    "mocov3": "predict a slow copy's keys, in-batch negatives (Chen et al. 2021, arXiv:2104.02057)",
    "cpc-audio": "predict the next frames of sound (van den Oord et al. 2018, arXiv:1807.03748)",
    "cpc-image": "predict the rows of patches below (van den Oord et al. 2018, arXiv:1807.03748)",
    "rotation": "tell by how many quarter turns an image is rotated (Gidaris et al. 2018,"
    " arXiv:1803.07728)",
    "inpainting": "fill holes from what lies around them (Pathak et al. 2016, arXiv:1604.07379)",
    "relative-patch": "tell which neighbour of a patch another one is (Doersch et al. 2015,"
    " arXiv:1505.05192)",
    "jigsaw": "tell the order of shuffled tiles (Noroozi & Favaro 2016, arXiv:1603.09246)",
    "colorization": "predict the colours of a picture from its lightness (Zhang et al. 2016,"
    " arXiv:1603.08511)",
    "split-brain": "predict colours from lightness and lightness from colours, with two halves of a"
    " network (Zhang et al. 2017, arXiv:1611.09842)",
    "video-colorization": "copy a grey frame's colours from frames before it (Vondrick et al. 2018,"
    " arXiv:1806.09594)",
    "supervised": "cross-entropy with labels: the control, not a method to learn by",
}
