"""Every method with a configuration that trains in a second, for test_methods.py."""

# A line a method: (name, config fields). digits is in scikit-learn's wheel.
METHOD_CASES = [
    ("simclr", {"data": "digits", "width": 8, "proj_hidden": 32, "proj_dim": 16}),
    ("supervised", {"data": "digits", "width": 8}),
    ("mocov3", {"data": "digits", "width": 8, "proj_hidden": 32, "proj_dim": 16}),
    (
        "mocov3",
        {
            "data": "digits",
            "arch": "vit-tiny",
            "width": 12,
            "depth": 2,
            "patch": 4,
            "second_views": "grey-solarise",
            "proj_hidden": 32,
            "proj_dim": 16,
        },
    ),
    (
        "moco",
        {"data": "digits", "width": 8, "proj_hidden": 32, "proj_dim": 16, "queue": 200},
    ),
    ("cpc-audio", {"data": "tones", "width": 8, "context": 8, "window": 0.2}),
    ("video-colorization", {"data": "moving-shapes", "image_size": 16, "width": 8}),
    ("cpc-image", {"data": "photos", "image_size": 16, "width": 4, "patch": 4, "pred_steps": 2}),
    ("rotation", {"data": "digits", "width": 4}),
    ("inpainting", {"data": "digits", "width": 4}),
    ("inpainting", {"data": "digits", "width": 4, "mask": "centre", "adversarial": 0.0}),
    ("relative-patch", {"data": "digits", "width": 4, "hidden": 16}),
    ("jigsaw", {"data": "digits", "width": 4, "embed": 8, "hidden": 16}),
    ("colorization", {"data": "photos", "image_size": 16, "width": 8, "decoder_width": 16}),
    (
        "colorization",
        {"data": "photos", "width": 8, "decoder_width": 16, "target": "regression", "stride": 2},
    ),
    ("split-brain", {"data": "photos", "image_size": 16, "width": 8, "decoder_width": 16}),
]
